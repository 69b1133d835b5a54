"""Training of ResNet-18 on pictures made by formula, with checkpoint and resume: a recipe goes in, weights come out.

Two tasks at once. *Naming*: the formula class at each place of a picture (formula-driven supervised learning, Kataoka
et al., ACCV 2020). *Finding again*: a place of one view of a scene among all places of the second views, by a dense
contrastive loss (Pinheiro et al., NeurIPS 2020; Wang et al., CVPR 2021). The first teaches what belongs to a texture,
the second keeps the fine detail that makes a defect.
"""

import dataclasses
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pretraining.stream import Batch, Stream, mixed
from thesis_lib.core import identity
from thesis_lib.core.parameters import parameter
from thesis_lib.networks import weightfiles
from thesis_lib.networks.torch_setup import channels_last
from thesis_lib.networks.weightfiles import torchvision
from thesis_lib.training.descent import TrainingError, checkpoint_of, descend

UNSEEN = 2**31      # number of the first batch that no training reaches: the accuracy is measured from here on


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the weights, but for rounding on another machine."""

    steps: int = parameter(7500, "batches")
    classes: int = parameter(768, "classes of all families of formulas together")
    side: int = parameter(64, "side of a picture, pixels")
    batch: int = parameter(64, "pictures per batch, two views of each scene")
    places: int = parameter(1536, "places of a batch to be found again, per level")
    finding: float = parameter(0.3, "weight of the loss of finding again; naming has 1")
    rate: float = parameter(2e-3, "highest learning rate of AdamW, one cycle")
    decay: float = parameter(0.05, "weight decay")
    precision: str = parameter("bfloat16", "of the convolutions: bfloat16 or float32")
    seed: int = parameter(0, "of the classes, the pictures and the first weights")

    def __post_init__(self) -> None:
        for name, least in (("steps", 2), ("classes", 2), ("side", 32), ("batch", 2), ("places", 2)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name}={getattr(self, name)}: needs at least {least}")
        if self.precision not in ("bfloat16", "float32"):
            raise TrainingError(f"precision={self.precision}: needs bfloat16 or float32")


class Network(nn.Module):
    """Torchvision's ResNet-18 with heads that are thrown away afterwards.

    Images (B, 3, S, S) -> ({level: logits (B, classes, h, w)} of levels 2 to 4, {level: descriptors (B, 128, h, w)} of
    levels 1 to 3); h = w = 1 for the logits of level 4. Patch detectors compare the vectors of single places, so single
    places are taught. Up to level 3 a hidden layer stands between the trunk and each task, so that the trunk keeps what
    the task throws away (Chen et al., ICML 2020).
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = torchvision().models.resnet18(num_classes=1)
        self.trunk.fc = nn.Identity()
        self.namers = nn.ModuleDict({"2": _head(128, classes), "3": _head(256, classes),
                                     "4": nn.Conv2d(512, classes, 1)})
        self.finders = nn.ModuleDict({"1": _head(64, 128), "2": _head(128, 128), "3": _head(256, 128)})

    def forward(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        trunk, maps = self.trunk, {}
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        for level in "1234":
            maps[level] = x = getattr(trunk, f"layer{level}")(x)
        maps["4"] = maps["4"].mean((2, 3), keepdim=True)
        logits = {level: head(maps[level]).float() for level, head in self.namers.items()}
        descriptors = {level: head(maps[level]).float() for level, head in self.finders.items()}
        return logits, descriptors


def _head(channels: int, out: int) -> nn.Sequential:
    """Two 1 x 1 convolutions: each place by itself."""
    return nn.Sequential(nn.Conv2d(channels, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
                         nn.Conv2d(256, out, 1))


def naming_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy of logits (B, classes, h, w); a place counts for both classes of a mosaic by the area of each."""
    h, w = logits.shape[-2:]
    share = F.adaptive_avg_pool2d(batch.mask, (h, w))[:, 0]             # of class `first`, (B, h, w)
    likely = logits.log_softmax(1)
    first, second = (likely.gather(1, labels[:, None, None, None].expand(-1, 1, h, w))[:, 0]
                     for labels in (batch.first, batch.second))
    return -(share * first + (1 - share) * second).mean()


def finding_loss(descriptors: torch.Tensor, batch: Batch, places: int, generator: torch.Generator) -> torch.Tensor:
    """Cross-entropy of finding the same place among `places` of the whole batch, in both directions (InfoNCE).

    descriptors (B, D, h, w), first views before second ones; temperature 0.1. Places that the first view does not show
    are left out.
    """
    # 1. Each place of the second view, and the same place of the scene in the first one.
    (first, second), (h, w) = descriptors.chunk(2), descriptors.shape[-2:]
    grid = F.affine_grid(batch.warp, [len(second), 1, h, w], align_corners=False)   # of the second view, in the first
    inside = grid.abs().amax(-1) < 1 - 1 / h
    first = F.grid_sample(first, grid, align_corners=False).movedim(1, -1)[inside]  # (places, D)
    second = second.movedim(1, -1)[inside]
    # 2. Cosines of some of them, each with each; the right answers are on the diagonal.
    chosen = torch.randperm(len(second), generator=generator, device=second.device)[:places]
    likeness = F.normalize(first[chosen], dim=1) @ F.normalize(second[chosen], dim=1).T / 0.1
    right = torch.arange(len(chosen), device=second.device)
    return (F.cross_entropy(likeness, right) + F.cross_entropy(likeness.T, right)) / 2


def train(recipe: Recipe, out: Path, *, torch_device: str = "cpu", every_s: float = 60.0,
          limit: int | None = None) -> dict[str, Any] | None:
    """Train, write the weights to `out` (.safetensors, float16, torchvision's keys) and return their card.

    A checkpoint is left beside `out` each `every_s` seconds and taken up by the next call with the same recipe.
    limit: stop after so many steps of this call, with a checkpoint and without a file (returns None).
    """
    out = Path(out)
    checkpoint = checkpoint_of(out, torch_device, limit)
    stream = Stream(recipe.classes, recipe.side, recipe.batch, recipe.seed, torch_device)
    with torch.random.fork_rng(devices=[]):     # PyTorch initialises from the global generator
        torch.manual_seed(recipe.seed)
        network = Network(recipe.classes)
    network = channels_last(network, torch_device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=recipe.steps, pct_start=min(0.3, 150 / recipe.steps))

    def losses(step: int) -> dict[str, torch.Tensor]:
        batch = stream[step]
        with torch.autocast(torch.device(torch_device).type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits, descriptors = network(batch.images.contiguous(memory_format=torch.channels_last))
        generator = torch.Generator(torch_device).manual_seed(mixed(recipe.seed, step + 1))
        parts = {f"naming {level}": naming_loss(values, batch) for level, values in logits.items()}
        for level, values in descriptors.items():
            parts[f"finding {level}"] = recipe.finding * finding_loss(values, batch, recipe.places, generator)
        return parts

    course = descend(network, [optimizer], losses, schedules=[schedule], steps=recipe.steps, seed=recipe.seed,
                     checkpoint=checkpoint, subject=dataclasses.asdict(recipe), code=identity.code(__name__),
                     every_s=every_s, limit=limit, torch_device=torch_device, what="pretraining")
    if course.step < recipe.steps:
        return None
    card = {"recipe": dataclasses.asdict(recipe), "pictures": recipe.steps * recipe.batch,
            "accuracy": accuracy(network, stream), "hours": round(course.seconds / 3600, 2),
            "device": _named(torch_device), "threads": torch.get_num_threads(),
            "torch": torch.__version__.split("+")[0]}
    weightfiles.write(network.trunk.state_dict(), card, out)
    checkpoint.unlink()
    return card


@torch.no_grad()
def accuracy(network: Network, stream: Stream, batches: int = 20) -> dict[str, float]:
    """Share of whole, unseen pictures whose class is right, by the mean logits of each level (chance: 1 / classes)."""
    network.eval()
    right: dict[str, list[float]] = {}          # level -> share of each batch
    for index in range(batches):
        batch = stream.batch_of(UNSEEN + index, mosaics=False)
        for level, logits in network(batch.images)[0].items():
            named = logits.mean((2, 3)).argmax(1)
            right.setdefault(level, []).append((named == batch.first).float().mean().item())
    return {level: round(sum(values) / len(values), 4) for level, values in right.items()}


def _named(torch_device: str) -> str:
    """What a reader of the card knows the torch device by."""
    if torch_device.startswith("cuda"):
        return torch.cuda.get_device_name(torch_device)
    return f"CPU {platform.machine()}"
