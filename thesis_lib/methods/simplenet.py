"""SimpleNet: a small network learns to tell patch vectors from the same ones with noise added.

What is learned: an adaptor, D x D, and a discriminator that gives every patch a number, high where it is nominal.
Source: Liu et al. 2023 (arXiv 2303.15023) and its published code; thesis ch. 5, where th- lacks its sign and the score,
too: nominal patches get a high D, so the score is -D. Differs from the paper by default as the thesis' PatchCore does:
pooled embedding (the paper's own is embedding="original_d1536"), 256 pixels. Differs, too: the batch
norm of a state that is kept is measured anew on the training patches. The published running statistics lag some ten
steps behind the weights, which puts early states at chance: batch_norm="running" has them.
Letters: B images, P patches, D embedding.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.core import memory
from thesis_lib.core.parameters import above, at_least, one_of, parameter
from thesis_lib.core.seeds import seed_of
from thesis_lib.methods.base import PatchDetector, Prediction, Stages, State
from thesis_lib.methods.trained import Optimizers, Schedules, Trained
from thesis_lib.networks.maps import Extracted, Stored
from thesis_lib.patches import embedding

SLOPE = 0.2             # of the leaky ReLU
BATCH_NORMS = ("recomputed", "running")
DECAY = 1e-5            # of the discriminator's weights; the adaptor has AdamW's own


@dataclass(kw_only=True)
class SimpleNet(Trained, PatchDetector):
    layers: tuple[int, ...] = parameter((2, 3), "levels whose feature maps are used, 1 to 4, e.g. 2,3", features=True)
    embedding: str = parameter("avg_k3_s1_p1", "original_d1536, avg_k3_s1_p1, max_..., avgmax_..., adaptive_7 or "
                               "identity", features=True)
    hidden: int = parameter(1024, "width of the discriminator's inner layer")
    noise: float = parameter(0.015, "sigma of the Gaussian noise on adapted vectors that makes pseudo-anomalies")
    margin: float = parameter(0.5, "th+ = margin and th- = -margin: D beyond them costs nothing")
    epochs: int = parameter(40, "meta-epochs; with snapshots=epochs a state is kept after each")
    passes: int = parameter(4, "of a meta-epoch through all pictures")
    batch: int = parameter(8, "pictures of a step")
    adaptor_rate: float = parameter(1e-4, "learning rate of the adaptor (AdamW)")
    discriminator_rate: float = parameter(2e-4, "learning rate of the discriminator (Adam)")

    batch_norm: str = parameter("recomputed", "statistics of a state that is kept: recomputed over all training "
                                "patches, or running, as published", neutral=("running",))     # older rows have those

    name: ClassVar[str] = "simplenet"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("batch_norm", self.batch_norm, BATCH_NORMS)
        at_least(self, 1, "hidden", "epochs", "passes", "batch")
        above(self, 0, "noise", "margin", "adaptor_rate", "discriminator_rate")

    @property
    def stages(self) -> Stages:
        weight, bias, last = self._learned("folded_")

        def search(patches: embedding.Patches) -> torch.Tensor:
            inner = F.leaky_relu(F.linear(patches.vectors.flatten(0, 1), weight, bias), SLOPE, inplace=True)
            heat = -(inner @ last).view(patches.vectors.shape[:2])                  # -D (B, P)
            return patches.only_inside(heat, embedding.OUTSIDE).unflatten(1, patches.grid)

        def score(heat: torch.Tensor) -> Prediction:
            return Prediction(heat.flatten(1).amax(dim=1), heat)

        return {"extraction": self.extract, "embedding": self.embed_of(), "search": search, "score": score}

    def _take(self, state: State) -> None:
        super()._take(state)
        self.folded_ = fold(self.networks_)         # once, not for every picture

    def gather(self, maps: Extracted | Stored) -> np.ndarray:
        """Patches of all pictures (N, P, D) float32, in an unnamed file on disk: the network runs only once. NaN where
        a patch does not count.
        """
        embedded = map(self.embed_of(), maps.batches(self.layers))
        return memory.on_disk(patches.only_inside(patches.vectors, torch.nan) for patches in embedded)

    def architecture(self) -> nn.ModuleDict:
        d = self.embed_of().width(self.backbone_.channels)
        # The batch norm takes any bias in front of it away again; Adam would turn its gradient, rounding alone, into
        # full steps. The official code has both, the paper's adaptor has none.
        networks = nn.ModuleDict({
            "adaptor": nn.Linear(d, d, bias=False),
            "discriminator": nn.Sequential(nn.Linear(d, self.hidden, bias=False), nn.BatchNorm1d(self.hidden),
                                           nn.LeakyReLU(SLOPE), nn.Linear(self.hidden, 1, bias=False))})
        for layer in networks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
        return networks

    def optimizers(self, networks: nn.ModuleDict, steps: int) -> tuple[Optimizers, Schedules]:
        adaptor = torch.optim.AdamW(networks["adaptor"].parameters(), lr=self.adaptor_rate)
        discriminator = torch.optim.Adam(networks["discriminator"].parameters(), lr=self.discriminator_rate,
                                         weight_decay=DECAY)
        return [adaptor, discriminator], []

    def steps_of(self, collected: np.ndarray) -> int:
        return self.epochs * self.passes * -(-len(collected) // self.batch)

    def losses(self, networks: nn.ModuleDict, constants: State, collected: np.ndarray, step: int) -> State:
        # 1. q, the adapted patches of some pictures.
        chosen = pictures_of(step, len(collected), self.batch, self.seed)
        patches = counted(collected[chosen]).to(self.torch_device)                            # (b*P, D)
        memory.release(collected)
        adapted = networks["adaptor"](patches).float()          # bfloat16 would round away noise as small as this
        # 2. q-, the same with Gaussian noise: the anomalies that there are no pictures of.
        pseudo = adapted + self.noise * torch.randn_like(adapted)
        # 3. max(0, th+ - D(q)) + max(0, D(q-) - th-), with th- = -th+. One batch of both: they must share the
        #    statistics of the batch norm.
        d, d_pseudo = networks["discriminator"](torch.cat([adapted, pseudo])).float().view(2, -1)
        return {"nominal": F.relu(self.margin - d).mean(), "pseudo": F.relu(d_pseudo + self.margin).mean()}

    def calibrate(self, networks: nn.ModuleDict, constants: State, collected: np.ndarray) -> State:
        """No constants: what a state is calibrated to stands in its batch norm. No step reads it there."""
        if self.batch_norm == "recomputed":
            measure_norm(networks, collected, self.noise)
        return {}


def pictures_of(step: int, count: int, batch: int, seed: int) -> np.ndarray:
    """Indices of the pictures of a step: every pass visits each of `count` once, in an order of its own."""
    steps = -(-count // batch)
    order = np.random.default_rng(seed_of("shuffle", seed, step // steps)).permutation(count)
    return order[step % steps * batch:][:batch]


def counted(collected: np.ndarray) -> torch.Tensor:
    """(n, D): of the patches of one or more pictures, (P, D) or (b, P, D), those that count."""
    patches = torch.from_numpy(collected).flatten(0, -2)
    absent = patches[:, 0].isnan()
    return patches[~absent] if absent.any() else patches


def measure_norm(networks: nn.ModuleDict, collected: np.ndarray, noise: float) -> None:
    """Give the batch norm the statistics of y = W q over all patches (N, P, D) and as many pseudo-anomalies.

    A batch of the training is such a mixture. Noise leaves the mean of y as it is and adds noise^2 |w|^2 to the
    variance, w the row of W; to that of the mixture half as much. So nothing has to be drawn.
    """
    first, second, *_ = cast(nn.Sequential, networks["discriminator"])
    linear, norm = cast(nn.Linear, first), cast(nn.BatchNorm1d, second)
    total = squares = torch.zeros(linear.out_features, dtype=torch.float64, device=linear.weight.device)
    count = 0
    for patches in collected:                                                               # (P, D)
        y = linear(networks["adaptor"](counted(np.array(patches)).to(linear.weight.device))).double()
        total, squares, count = total + y.sum(0), squares + y.square().sum(0), count + len(y)
        memory.release(collected)
    mean, squares = total / count, squares / count
    norm.running_mean = mean.float()
    norm.running_var = (squares - mean.square() + noise ** 2 / 2 * linear.weight.double().square().sum(1)).float()


def fold(networks: nn.ModuleDict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(hidden, D), (hidden,) and (hidden,): all in front of the leaky ReLU is linear once trained, so one product does.

    A patch x has D = last @ leaky_relu(weight @ x + bias).
    """
    adaptor, (linear, batch_norm, _, output) = networks["adaptor"], cast(nn.Sequential, networks["discriminator"])
    adapt, first, last = (cast(nn.Linear, layer).weight for layer in (adaptor, linear, output))
    norm = cast(nn.BatchNorm1d, batch_norm)
    assert norm.running_mean is not None and norm.running_var is not None           # it is one that counts them
    # The adaptor's A and the first layer's W have no bias, the norm makes gamma (y - mu) / sqrt(var + eps) + beta of
    # y = W A x:  with scale = gamma / sqrt(var + eps)  that is  (scale W A) x + (beta - scale mu).
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = scale[:, None] * (first.double() @ adapt.double())
    bias = norm.bias - scale * norm.running_mean
    return weight.float(), bias.float(), last[0]
