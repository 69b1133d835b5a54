"""EfficientAD: a student that fails to follow its teacher, and an autoencoder that fails to follow it as a whole.

Source: Batzner et al. 2024 (arXiv 2303.14535); thesis sec. 4.3. Where the thesis is silent (normalisation of the
teacher, augmentation, quantiles) or differs (it counts 10 % of the elements as hard, 0.1 % are) the paper and its
re-implementation nelson1425/EfficientAD decide. Differs from them: the penalty's pictures are a parameter.
All networks learn in torch, whatever the engine: it only runs what has been learned, as one ONNX model.
Letters: B images, C = 384 channels, h, w grid.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import at_least, one_of, parameter, share
from thesis_lib.core.seeds import mixed
from thesis_lib.data.pictures import denormalise, evenly, normalise
from thesis_lib.methods.base import Prediction
from thesis_lib.methods.trained import Trained, held_out, standard
from thesis_lib.networks import autoencoder, backbones, engines
from thesis_lib.networks.pdn import CHANNELS, PDN, RIM
from thesis_lib.networks.weightfiles import torchvision
from thesis_lib.training import distillation, sources

GREY = 0.3              # of the penalty's pictures lose their colours
STRENGTH = 0.2          # a factor of 0.8 to 1.2 changes brightness, contrast or saturation
MAPS = ("local", "global", "combined")


class TaughtPictures(NamedTuple):
    images: np.ndarray          # (N, 3, H, W)
    described: np.ndarray       # (N, C, h, w), by the teacher; the same at every step, so computed once


class Outputs(NamedTuple):
    teacher: torch.Tensor       # (B, C, h, w), normalised
    student: torch.Tensor       # (B, 2 C, h, w): S and S'
    autoencoder: torch.Tensor   # (B, C, h, w)


@dataclass(kw_only=True)
class EfficientAD(Trained):
    backbone: str = parameter("pdn_small", "teacher, and the size of its student: " + ", ".join(backbones.PDNS),
                              features=True)
    weights: str = parameter("bundled", "of the teacher: bundled, random or a .safetensors file", features=True)
    engine: str = parameter("eager", "what runs the trained networks: eager (torch), fast (ONNX Runtime) or int8")
    calibration: int = parameter(100, "pictures trained on, evenly spaced, that set the ranges of int8")
    steps: int = parameter(70_000, "steps of one picture")
    penalty: str = parameter("procedural", "pictures that the student shall not describe: procedural, none, or a "
                             "folder of photographs (the paper's ImageNet)")
    held_out: float = parameter(0.1, "share of the training pictures that only set the quantiles of the maps")
    hard: float = parameter(0.999, "quantile of the squared differences above which they count")
    low: float = parameter(0.9, "quantile of a map that becomes 0")
    high: float = parameter(0.995, "quantile of a map that becomes 0.1")
    rate: float = parameter(1e-4, "learning rate of Adam, a tenth of it after 95 % of the steps")
    decay: float = parameter(1e-5, "weight decay")

    name: ClassVar[str] = "efficientad"
    layers: ClassVar[tuple[int, ...]] = (1,)
    trunk: ClassVar[str] = "eager"

    def __post_init__(self) -> None:
        one_of("backbone", self.backbone, backbones.PDNS)
        super().__post_init__()
        at_least(self, 1, "steps")
        at_least(self, 0, "rate", "decay")
        share(self, "held_out", "hard")
        if not 0 <= self.low < self.high <= 1:
            raise ThesisError(f"low={self.low}, high={self.high}: needs 0 <= low < high <= 1")

    def parameters(self, identity_only=False):
        found = super().parameters(identity_only)
        if identity_only and self.penalty != "none":     # a folder counts for its pictures, not for where it lies
            found["penalty"] = sources.parse(self.penalty, 32, 1).identity
        return found

    def recipe(self):
        """Engines share a training; the key stays, for trainings that are under way."""
        found = super().recipe() | {"engine": self.trunk}
        del found["calibration"]
        return found

    @property
    def stages(self):
        self._learned("networks_")
        return {"extraction": self._outputs, "score": self._score}

    def maps(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Local, global and combined map, (B, h, w) each: squared differences, normalised by their quantiles."""
        found = dict(zip(MAPS, _differences(outputs), strict=False))
        for (name, heat), (low, high) in zip(found.items(), self.constants_["quantiles"], strict=True):
            found[name] = 0.1 * (heat - low) / (high - low)
        return found | {"combined": (found["local"] + found["global"]) / 2}

    def gather(self, maps) -> TaughtPictures:
        """All pictures and what the teacher says of them, in an unnamed file on disk."""
        def rows():
            for images, features in zip(maps.pictures(), maps.batches((1,)), strict=True):
                self.side_ = autoencoder.check(images)
                yield torch.cat([images.flatten(1), features[1].flatten(1)], dim=1)

        collected = memory.on_disk(rows())
        if len(collected) < 2:
            raise ThesisError(f"{len(collected)} training picture: one is held out, so it needs at least 2")
        pixels, grid = 3 * self.side_ ** 2, self.side_ // 4 - 2 * RIM
        return TaughtPictures(collected[:, :pixels].reshape(-1, 3, self.side_, self.side_),
                       collected[:, pixels:].reshape(-1, CHANNELS, grid, grid))

    def pictures(self, collected):
        return collected.images

    def architecture(self):
        networks = {"student": PDN(self.backbone, 2 * CHANNELS), "autoencoder": autoencoder.build(self.side_, CHANNELS)}
        return nn.ModuleDict(networks).to(memory_format=torch.channels_last)

    def steps_of(self, collected):
        return self.steps

    def optimizers(self, networks, steps):
        adam = torch.optim.Adam(networks.parameters(), lr=self.rate, weight_decay=self.decay)
        return [adam], [torch.optim.lr_scheduler.StepLR(adam, max(1, int(0.95 * steps)), 0.1)]

    def learn(self, collected):
        self.backbone_.to(self.torch_device)
        try:
            super().learn(collected)
        finally:
            self.backbone_.to("cpu")
        if self.engine != "eager":
            for step in self.course_.kept:
                self.course_.kept[step] = self.at(step).on(self.engine, collected).state()
            self._take(self.course_.kept[self.course_.step])
        return self

    def on(self, engine: str, collected: TaughtPictures, seven_bits: bool | None = None) -> "EfficientAD":
        """What has been learned, on fast or int8; seven_bits as in `engines.int8`.

        The ranges of int8 come from pictures that were trained on, its quantiles from its own maps of those held out:
        the ones of the float networks would belong to other maps.
        """
        other = copy.copy(self)
        other.engine = engine
        model = engines.convert(_Networks(self), (torch.zeros(1, 3, self.side_, self.side_),), self._what,
                                inputs=["images"], outputs=list(Outputs._fields),
                                free={name: {0: "B"} for name in ("images", *Outputs._fields)})
        trained, held = self.split(len(collected.images))
        if engine == "int8":
            chosen = evenly(sorted(trained), self.calibration)
            model = engines.int8(model, f"int8, {self._what}", (self._image(collected, one) for one in chosen),
                                 seven_bits)
        other.graph_ = engines.Graph(model, self._what)
        if engine == "int8":
            outputs = (other._outputs(self._image(collected, one)) for one in held)
            other.constants_ = self.constants_ | self._quantiles(outputs)
        return other

    def split(self, count: int) -> tuple[list[int], list[int]]:
        """Numbers of the pictures that are trained on, and of those that are held out."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return held_out(order.tolist(), self.held_out)

    def prepare(self, collected):
        """Mean and standard deviation of the teacher's channels over the training pictures, (C, 1, 1)."""
        if self.penalty != "none":
            self._penalty = sources.parse(self.penalty, self.side_, 1, self.seed)
        return standard(collected.described, self.split(len(collected.images))[0])

    def losses(self, networks, constants, collected, step):
        trained, _ = self.split(len(collected.images))
        epoch, number = divmod(step, len(trained))
        shuffle = torch.Generator().manual_seed(mixed(self.seed, epoch))
        order = torch.randperm(len(trained), generator=shuffle)
        image, described = self._taken(collected, [trained[order[number]]])
        changed, shown = augmented(image), [image]
        if self.penalty != "none":
            shown.append(distillation.greyed(self._penalty[step], GREY).to(self.torch_device))
        shown = torch.cat([*shown, changed]).contiguous(memory_format=torch.channels_last)
        teacher = (self.backbone_(shown[-1:])[1].float() - constants["mean"]) / constants["std"]
        rebuilt = networks["autoencoder"](shown[-1:]).float()
        local, other = halves(networks["student"], shown)
        target = (described - constants["mean"]) / constants["std"]
        found = {"hard": hard_loss((target - local[:1]).square(), self.hard),
                 "autoencoder": (teacher - rebuilt).square().mean(),
                 "student_autoencoder": (rebuilt - other).square().mean()}
        if self.penalty != "none":
            found["penalty"] = local[1].square().mean()
        return found

    def calibrate(self, networks, constants, collected):
        """(2, 2): low and high quantile of the local and of the global map over the pictures that are held out."""
        def outputs():
            for index in self.split(len(collected.images))[1]:
                image, described = self._taken(collected, [index])
                teacher = (described - constants["mean"]) / constants["std"]
                yield Outputs(teacher, networks["student"](image), networks["autoencoder"](image))

        return self._quantiles(outputs())

    def state(self):
        return super().state() | (engines.packed(self.graph_.model) if self.graph_ else {})

    def restore(self, state):
        self.side_ = self.image_size_[0]
        super().restore(state)

    def _take(self, state):
        super()._take(state)
        self.graph_ = engines.Graph(engines.unpacked(state), self._what) if engines.MODEL in state else None

    @property
    def _what(self) -> str:
        return f"the networks of {self.name}, {self.backbone}"

    def _quantiles(self, outputs: Iterable[Outputs]) -> dict[str, torch.Tensor]:
        found = [_differences(one) for one in outputs]
        maps = [torch.stack(several).cpu().numpy() for several in zip(*found, strict=True)]
        return {"quantiles": torch.tensor([np.quantile(heat, [self.low, self.high]).tolist() for heat in maps])}

    def _image(self, collected: TaughtPictures, number: int) -> torch.Tensor:
        image = torch.from_numpy(np.array(collected.images[number:number + 1]))
        memory.release(collected.images)
        return image

    def _taken(self, collected: TaughtPictures, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        taken = tuple(torch.from_numpy(np.array(values[numbers])).to(self.torch_device) for values in collected)
        memory.release(collected.images)                    # both lie in one file, gigabytes of it
        return taken

    def _outputs(self, images: torch.Tensor) -> Outputs:
        self.check_size(images)
        if self.graph_:
            return Outputs(*self.graph_(images))
        teacher = (self.backbone_(images)[1] - self.constants_["mean"]) / self.constants_["std"]
        return Outputs(teacher, self.networks_["student"](images), self.networks_["autoencoder"](images))

    def _score(self, outputs: Outputs) -> Prediction:
        """Maximum of the combined map; the map has the rim again that a PDN cuts off, and so the picture's shape."""
        heat = self.maps(outputs)["combined"]
        return Prediction(heat.flatten(1).amax(1), F.pad(heat, [RIM] * 4))


class _Networks(nn.Module):
    """Images -> the fields of `Outputs`; the teacher's last convolution gives what is normalised already, so that all
    its channels have the same range.
    """

    def __init__(self, detector: EfficientAD):
        super().__init__()
        self.networks = detector.networks_
        self.teacher = copy.deepcopy(detector.backbone_.levels["1"])
        mean, std = (detector.constants_[name].double().flatten() for name in ("mean", "std"))
        last = self.teacher[-1]
        last.weight.data = (last.weight.double() / std[:, None, None, None]).float()
        last.bias.data = ((last.bias.double() - mean) / std).float()
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.teacher(images), self.networks["student"](images), self.networks["autoencoder"](images)


def halves(student: PDN, shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S of all pictures (B, 3, H, W) but the last one, and S' of that: (B - 1, C, h, w) and (1, C, h, w).

    The losses ask for no other half, and the student's last convolution, of 2 C outputs, is half its work.
    """
    *before, last = student
    for layer in before:
        shown = layer(shown)
    weights, biases = last.weight.split(CHANNELS), last.bias.split(CHANNELS)
    parts = (shown[:-1], shown[-1:])
    return tuple(F.conv2d(*one).float() for one in zip(parts, weights, biases, strict=True))


def hard_loss(squared: torch.Tensor, quantile: float) -> torch.Tensor:
    """Mean of all elements at or above their quantile (linear between elements), of any number of elements."""
    count = squared.numel()
    return squared.flatten().topk(count - int(np.ceil(quantile * (count - 1)))).values.mean()


def augmented(image: torch.Tensor) -> torch.Tensor:
    """Image (B, 3, H, W), normalised, with another brightness, contrast or saturation; by torch's generator."""
    functional = torchvision().transforms.functional
    change = (functional.adjust_brightness, functional.adjust_contrast,
              functional.adjust_saturation)[torch.randint(3, ()).item()]
    factor = 1 + STRENGTH * (2 * torch.rand(()).item() - 1)
    return normalise(change(denormalise(image).clamp(0, 1), factor))


def _differences(outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Local map (S - T) and global map (S' - A): squared differences, mean over the channels, (B, h, w)."""
    student, other = outputs.student.split(CHANNELS, dim=1)
    return (student - outputs.teacher).square().mean(1), (other - outputs.autoencoder).square().mean(1)
