"""Distillation: a small network learns to say what a large one, or an embedding of its maps, says of the same picture.

`distil` is the loop for any loss on any source of pictures; `PatchTarget` and `pdn` are the distillation of a PDN.
Source: Batzner et al. 2024 (EfficientAD, arXiv 2303.14535), appendix A.3; thesis sec. 3.5.2 and 4.3.1. Differs from
the paper: He's first weights (He et al., ICCV 2015), the rate falls to 0 along a cosine, and the teacher is shown the
picture of the PDN at twice its side, not a finer one.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.core import identity
from thesis_lib.core.parameters import parameter
from thesis_lib.core.seeds import seed_of
from thesis_lib.networks import backbones, weightfiles
from thesis_lib.networks.pdn import CHANNELS, PDN
from thesis_lib.networks.torch_setup import channels_last
from thesis_lib.patches import embedding
from thesis_lib.training import sources
from thesis_lib.training.descent import Course, Losses, TrainingError, checkpoint_of, descend
from thesis_lib.training.sources import Source

GREY = 0.1              # of the pictures lose their colours, for teacher and student alike
LEVEL = 1024            # numbers that each level of the target is pooled to, before all of them are to those of the PDN


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the weights of a PDN, but for rounding on another machine."""

    network: str = parameter("pdn_small", "what is trained: " + ", ".join(backbones.PDNS))
    teacher: str = parameter("resnet18", "network whose patch embedding it learns")
    weights: str = parameter("bundled", "of the teacher: bundled, imagenet or a .safetensors file")
    layers: tuple[int, ...] = parameter((2, 3), "levels of the teacher")
    pictures: str = parameter("procedural", "procedural, or a folder of photographs")
    side: int = parameter(128, "of a picture, pixels; the paper's 256")
    batch: int = parameter(4, "pictures per step; the paper's 16")
    steps: int = parameter(4800, "steps; the paper's 60000")
    sample: int = parameter(128, "pictures that set mean and deviation of the target; the paper's 10000")
    rate: float = parameter(1e-4, "highest learning rate of Adam; the paper's is constant")
    decay: float = parameter(1e-5, "weight decay")
    precision: str = parameter("bfloat16", "of the convolutions: bfloat16 or float32")
    seed: int = parameter(0, "of the pictures and the first weights")

    def __post_init__(self) -> None:
        if self.network not in backbones.PDNS:
            raise TrainingError(f"network={self.network}: needs one of {', '.join(backbones.PDNS)}")
        backbones.check(self.teacher, self.layers)
        for name, least in (("side", 64), ("batch", 1), ("steps", 2), ("sample", 1)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name}={getattr(self, name)}: needs at least {least}")
        if self.side % 16:
            raise TrainingError(f"side={self.side}: needs a multiple of 16, so that both have one grid")
        if self.precision not in ("bfloat16", "float32"):
            raise TrainingError(f"precision={self.precision}: needs bfloat16 or float32")


class PatchTarget(nn.Module):
    """PatchCore's embedding of a frozen backbone: images (B, 3, S, S) -> (B, D, S/4, S/4), levels 2 and deeper.

    Each level is pooled to LEVEL numbers, and all of them side by side to D, as in nelson1425/EfficientAD.
    `standardise` sets mean and deviation of every channel; the target is told in these.
    """

    mean: torch.Tensor          # (D, 1, 1)
    std: torch.Tensor

    def __init__(self, backbone: backbones.Backbone, dim: int = CHANNELS) -> None:
        super().__init__()
        self.backbone, self.embed = backbone, embedding.Original(dim, LEVEL)
        self.register_buffer("mean", torch.zeros(dim, 1, 1))
        self.register_buffer("std", torch.ones(dim, 1, 1))

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        doubled = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
        features = self.backbone(doubled.contiguous(memory_format=torch.channels_last))
        patches = self.embed({level: x.float() for level, x in features.items()})
        return (patches.vectors.mT.unflatten(2, patches.grid) - self.mean) / self.std

    def standardise(self, batches: Iterable[torch.Tensor]) -> "PatchTarget":
        """From batches of images."""
        count, total = 0, torch.zeros_like(self.mean[:, 0, 0], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for images in batches:
            target = self(images).double()
            count += target[:, 0].numel()
            total, squares = total + target.sum((0, 2, 3)), squares + target.square().sum((0, 2, 3))
        mean = total / count
        self.mean.copy_(mean[:, None, None])
        self.std.copy_((squares / count - mean.square()).clamp(min=1e-12).sqrt()[:, None, None])
        return self


def distil(network: nn.Module, losses: Callable[[torch.Tensor], Losses], source: Source, *,
           steps: int, rate: float, decay: float, seed: int, checkpoint: Path, subject: Mapping[str, Any],
           code: Mapping[str, str] | None = None, precision: str = "float32", torch_device: str = "cpu",
           **options: Any) -> Course:
    """Train `network` in place: step i minimises the sum of `losses(images)` of batch i of the source, by Adam.

    Some of the pictures lose their colours. The rate falls from `rate` to 0 along a cosine. The other arguments and
    `options` are those of `descend`: checkpoint, resume, progress. code: of the losses; that of this module is added.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def step(number: int) -> Losses:
        images = greyed(source[number].to(torch_device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(torch_device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            return losses(images)

    channels_last(network, torch_device).train()
    return descend(network, [optimizer], step, schedules=[schedule], steps=steps, seed=seed, checkpoint=checkpoint,
                   subject={**subject, "pictures": source.identity}, code=identity.code(__name__) | dict(code or {}),
                   torch_device=torch_device, **options)


def greyed(images: torch.Tensor, share: float = GREY) -> torch.Tensor:
    """Images (B, 3, H, W), normalised, each without its colours at this chance, drawn from torch's generator."""
    chosen = torch.rand(len(images)) < share
    grey = sources.greyscale(images)
    return torch.where(chosen.to(images.device)[:, None, None, None], grey, images)


def unseen(pictures: str, side: int, batch: int, seed: int, batches: int) -> Iterator[torch.Tensor]:
    """Batches of the source of that name for the statistics of a target: drawn apart from those of a training with this
    seed, and as many of them are grey.
    """
    own = seed_of("statistics", seed)
    source = sources.parse(pictures, side, batch, own)
    for number in range(batches):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("step", own, number))
            images = greyed(source[number])
        yield images


def initialised(network: PDN) -> PDN:
    """He's weights, which keep the size of a signal through ReLUs; the last layer small, to begin near the mean.

    torch's own shrink it from layer to layer, and the first forty steps then change next to nothing.
    """
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if layer is not convolutions[-1] else "linear")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    convolutions[-1].weight.data.mul_(0.1)
    return network


def pdn(recipe: Recipe, out: Path, *, torch_device: str = "cpu", every_s: float = 60.0,
        limit: int | None = None) -> dict[str, Any] | None:
    """Train a PDN, write its weights to `out` (.safetensors, float16, the published key names) and return their card.

    A checkpoint is left beside `out` each `every_s` seconds and taken up by the next call with the same recipe.
    limit: stop after so many steps of this call, with a checkpoint and without a file (returns None).
    """
    out = Path(out)
    checkpoint = checkpoint_of(out, torch_device, limit)
    source = sources.parse(recipe.pictures, recipe.side, recipe.batch, recipe.seed)
    backbone = backbones.load(recipe.teacher, recipe.layers, recipe.weights)
    target = channels_last(PatchTarget(backbone), torch_device)
    count = -(-recipe.sample // recipe.batch)
    others = unseen(recipe.pictures, recipe.side, recipe.batch, recipe.seed, count)
    target.standardise(images.to(torch_device) for images in others)
    with torch.random.fork_rng(devices=[]):     # PyTorch initialises from the global generator
        torch.manual_seed(seed_of("weights", recipe.seed))
        network = initialised(PDN(recipe.network, padding=True))

    def losses(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"distance": (network(images).float() - target(images)).square().mean()}

    subject = dataclasses.asdict(recipe) | {"weights": backbone.weights}
    course = distil(network, losses, source, steps=recipe.steps, rate=recipe.rate, decay=recipe.decay,
                    seed=recipe.seed, precision=recipe.precision, checkpoint=checkpoint, subject=subject,
                    every_s=every_s, limit=limit, torch_device=torch_device, what="distillation")
    if course.step < recipe.steps:
        return None
    recent = course.losses["distance"][-max(1, recipe.steps // 20):]
    card = {"recipe": subject | {"pictures": source.identity}, "pictures": recipe.steps * recipe.batch,
            "distance": round(sum(recent) / len(recent), 4), "hours": round(course.seconds / 3600, 2),
            "torch": torch.__version__.split("+")[0]}
    weightfiles.write(network.state_dict(), card, out)
    checkpoint.unlink()
    return card
