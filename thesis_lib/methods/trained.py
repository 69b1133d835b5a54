"""What the detectors have in common that learn by gradient descent: training, resume, states on the way, storing.

In comes what `gather` has collected of nominal pictures, out come frozen networks and the constants that belong to
them, as tensors by name; the loop itself is `training.descent`. No test picture is ever seen: "best on test", which the
thesis criticises (sec. 4.4 and 5.3), is worked out afterwards by the evaluation, from the states kept on the way.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from thesis_lib.core import files, identity, memory, paths
from thesis_lib.core.parameters import at_least, one_of, parameter
from thesis_lib.core.preprocess import Size
from thesis_lib.core.seeds import seed_of
from thesis_lib.methods.base import Detector, State
from thesis_lib.networks import backbones
from thesis_lib.networks.torch_setup import check_torch_device, has_bfloat16
from thesis_lib.training import descent

# What a step runs through, and what it learns from; states on the way depend on `calibrate`, too.
STEPS = ("train", "gather", "pictures", "architecture", "optimizers", "steps_of", "prepare", "losses", "calibrate")
PRECISIONS = ("float32", "bfloat16", "auto")
PRECISION_HELP = "of the training: float32, bfloat16, or auto: bfloat16 where the processor has units for it"
Optimizers = Sequence[torch.optim.Optimizer]
Schedules = Sequence[torch.optim.lr_scheduler.LRScheduler]


@dataclass(kw_only=True)
class Trained(Detector):
    """A subclass says what is trained: `architecture`, `optimizers`, `steps_of`, `losses` and, if needed, `calibrate`.

    After `learn`: `networks_`, `constants_` (tensors by name) and `course_` (losses and the states kept on the way).
    """

    snapshots: int = parameter(5, "states kept on the way, evenly spaced, the last one among them")  # a row holds them
    resume: bool = parameter(True, "go on from the checkpoint of the same training, or take it over if it has ended",
                             identity=False)
    checkpoint_s: float = parameter(60.0, "seconds between two checkpoints", identity=False)
    torch_device: str = parameter("cpu", "where the training runs: cpu or cuda", neutral=True)
    precision: str = parameter("float32", PRECISION_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "snapshots")
        one_of("precision", self.precision, PRECISIONS)
        if self.precision == "auto":        # what a row names is what was used
            self.precision = "bfloat16" if has_bfloat16(self.torch_device) else "float32"

    def check_pictures(self, count: int, size: Size) -> None:
        super().check_pictures(count, size)
        check_torch_device(self.torch_device)

    def architecture(self) -> nn.ModuleDict:
        """The networks that are trained, freshly initialised; depends on the parameters and `backbone_` alone."""
        raise NotImplementedError

    def optimizers(self, networks: nn.ModuleDict, steps: int) -> tuple[Optimizers, Schedules]:
        """Optimizers and learning rate schedules."""
        raise NotImplementedError

    def steps_of(self, collected: Any) -> int:
        """Steps of the whole training."""
        raise NotImplementedError

    def prepare(self, collected: Any) -> State:
        """Constants that the training itself needs, such as the statistics of a teacher; no gradient."""
        return {}

    def recipe(self) -> dict[str, Any]:
        """The parameters that tell one training from another."""
        deciding = self.deciding()
        del deciding["weights"]                     # the path of a file; its hash is in the record
        deciding.pop("torch_device", None)          # a condition of its steps
        return deciding

    def pictures(self, collected: Any) -> np.ndarray:
        """What of the collected tells one training from another."""
        return collected

    def losses(self, networks: nn.ModuleDict, constants: State, collected: Any, step: int) -> State:
        """Named scalars whose sum is minimised. Random numbers come from torch's generator, set anew for each step."""
        raise NotImplementedError

    def calibrate(self, networks: nn.ModuleDict, constants: State, collected: Any) -> State:
        """Constants of the finished networks, such as the quantiles of held-out nominal maps; no gradient."""
        return {}

    def learn(self, collected: Any) -> Self:
        self.course_ = self.train(collected)
        self._take(self.course_.kept[self.course_.step])
        return self

    def train(self, collected: Any) -> descent.Course:
        """The whole training, from a checkpoint where there is one; its networks are the last of the states kept."""
        check_torch_device(self.torch_device)
        steps = self.steps_of(collected)
        keep = sorted({round(steps * share) for share in np.linspace(0, 1, self.snapshots + 1)[1:]})
        subject = {"method": self.name, "parameters": self.recipe(), "keep": keep,
                   "weights": self.backbone_.weights, "nominal": files.digest(self.pictures(collected))[:16]}
        recipe = files.digest(json.dumps(subject, sort_keys=True))[:16]
        checkpoint = paths.checkpoints() / f"{self.name}-{recipe}.checkpoint"
        if not self.resume:
            checkpoint.unlink(missing_ok=True)
        with torch.random.fork_rng(devices=[]):     # PyTorch initialises from the global generator
            torch.manual_seed(seed_of("weights", self.seed))
            networks = self.architecture().to(self.torch_device).train()
        with torch.no_grad():
            constants = {name: value.to(self.torch_device) for name, value in self.prepare(collected).items()}

        def losses(step: int) -> State:
            with torch.autocast(torch.device(self.torch_device).type, torch.bfloat16,
                                enabled=self.precision == "bfloat16"):
                return self.losses(networks, constants, collected, step)

        @torch.no_grad()
        def snapshot() -> State:
            networks.eval()
            # What the training needed and what its state of now is calibrated to: `restore` takes both.
            needed = constants | self.calibrate(networks, constants, collected)
            state = {f"networks.{key}": value.detach().cpu().clone() for key, value in networks.state_dict().items()}
            networks.train()
            for key, value in needed.items():
                state[f"constants.{key}"] = value.cpu()
            return state

        optimizers, schedules = self.optimizers(networks, steps)
        return descent.descend(
            networks, optimizers, losses, schedules=schedules, steps=steps, seed=self.seed, checkpoint=checkpoint,
            subject=subject, code=self.code(), keep=keep, snapshot=snapshot, every_s=self.checkpoint_s,
            torch_device=self.torch_device, what=f"{self.name}, seed {self.seed}")

    def at(self, step: int) -> Self:
        """The detector as it was after this step, one of `course_.kept`."""
        other = copy.copy(self)
        other._take(self.course_.kept[step])
        return other

    def state(self) -> State:
        networks = self._learned("networks_")
        state = {f"networks.{key}": value for key, value in networks.state_dict().items()}
        for key, value in self.constants_.items():
            state[f"constants.{key}"] = value
        return state

    def restore(self, state: State) -> None:
        self._take(state)

    def code(self) -> dict[str, str]:
        """Module -> hash of what the steps of the training run through, as `descend` wants it."""
        return identity.steps(type(self), STEPS) | identity.code(backbones.__name__)

    def _take(self, state: State) -> None:
        """Networks and constants out of a state, frozen."""
        with torch.random.fork_rng(devices=[]):         # PyTorch initialises from the global generator
            self.networks_ = self.architecture()
        self.networks_.load_state_dict(_below("networks.", state))
        self.networks_.eval().requires_grad_(False)
        self.constants_ = _below("constants.", state)


def held_out(order: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    """Numbers to be trained on, and those that are held out: the first of the order, at least one of either.

    What is trained on is rounded down, as in EfficientAD's re-implementation: of 11 pictures a tenth are 2.
    """
    count = min(max(1, len(order) - int((1 - share) * len(order))), len(order) - 1)
    return list(order[count:]), list(order[:count])


def standard(described: np.ndarray, numbers: Sequence[int]) -> State:
    """Mean and deviation of every channel of maps (N, C, h, w) over these pictures, (C, 1, 1) each; in float64."""
    total = squares = torch.zeros(described.shape[1], dtype=torch.float64)
    for number in numbers:
        maps = torch.from_numpy(np.array(described[number])).double()               # (C, h, w)
        total, squares = total + maps.mean((1, 2)), squares + maps.square().mean((1, 2))
        memory.release(described)
    # All maps have one size, so the mean over the pictures of their means is that over all positions.
    mean = total / len(numbers)
    std = (squares / len(numbers) - mean.square()).clamp(min=1e-12).sqrt()
    return {"mean": mean.float()[:, None, None], "std": std.float()[:, None, None]}


def _below(prefix: str, state: State) -> State:
    """The tensors whose names begin so, without the prefix."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

