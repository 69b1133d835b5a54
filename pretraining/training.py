"""Training of ResNet-18 to name the formula class at each place of a picture, with checkpoint and resume."""

import dataclasses
import json
import logging
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from pretraining.stream import Batch, Stream
from thesis_lib.backbones import torchvision
from thesis_lib.methods.base import parameter

log = logging.getLogger(__name__)
UNSEEN = 2**31      # number of the first batch that no training reaches: the accuracy is measured from here on


class RecipeError(ValueError):
    """A checkpoint or an option does not fit; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the weights, but for rounding on another machine."""

    steps: int = parameter(2800, "batches")
    classes: int = parameter(768, "classes of all families of formulas together")
    side: int = parameter(64, "side of a picture, pixels")
    batch: int = parameter(64, "pictures per batch")
    rate: float = parameter(2e-3, "highest learning rate of AdamW, one cycle")
    decay: float = parameter(0.05, "weight decay")
    seed: int = parameter(0, "of the classes, the pictures and the first weights")

    def __post_init__(self):
        for name in ("steps", "classes", "side", "batch"):
            if getattr(self, name) < (32 if name == "side" else 2):
                raise RecipeError(f"{name}={getattr(self, name)}: needs at least {32 if name == 'side' else 2}")


class Network(nn.Module):
    """Torchvision's ResNet-18 with a linear classifier per place at levels 2 and 3, and one per picture at level 4.

    Images (B, 3, S, S) -> {level: logits (B, classes, h, w)}; h = w = 1 at level 4. Patch detectors compare the
    vectors of single places, so single places are taught; a loss at the end alone leaves the middle levels to chance.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.trunk = torchvision().models.resnet18(num_classes=1)
        self.trunk.fc = nn.Identity()
        self.heads = nn.ModuleDict({"2": nn.Conv2d(128, classes, 1), "3": nn.Conv2d(256, classes, 1),
                                    "4": nn.Conv2d(512, classes, 1)})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        trunk = self.trunk
        second = trunk.layer2(trunk.layer1(trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))))
        third = trunk.layer3(second)
        fourth = trunk.layer4(third)
        return {"2": self.heads["2"](F.avg_pool2d(second, 3, 1, 1)), "3": self.heads["3"](third),
                "4": self.heads["4"](fourth.mean((2, 3), keepdim=True))}


def losses(outputs: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
    """Cross-entropy per level; a place counts for both pictures of the mosaic by the area each has of it."""
    result = {}
    for level, logits in outputs.items():
        share = F.adaptive_avg_pool2d(batch.mask, logits.shape[-2:])[:, 0]
        likely = logits.log_softmax(1)
        first, second = (likely.gather(1, labels[:, None, None, None].expand(-1, 1, *likely.shape[2:]))[:, 0]
                         for labels in (batch.first, batch.second))
        result[level] = -(share * first + (1 - share) * second).mean()
    return result


def train(recipe: Recipe, out: Path, *, device: str = "cpu", threads: int | None = None, every: int = 200,
          limit: int | None = None) -> dict | None:
    """Train, write the weights to `out` (.safetensors, float16, torchvision's keys) and return their card.

    A checkpoint is left beside `out` each `every` steps and taken up by the next call with the same recipe.
    limit: stop after so many steps of this call, with a checkpoint and without a file (returns None).
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise RecipeError(f"out={out}: needs a name that ends in .safetensors")
    for name, value in (("every", every), ("threads", threads), ("limit", limit)):
        if value is not None and value < 1:
            raise RecipeError(f"{name}={value}: needs at least 1")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise RecipeError(f"device={device}: needs cpu, or cuda where there is one")
    torch.set_num_threads(threads or torch.get_num_threads())
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_suffix(".checkpoint")
    stream = Stream(recipe.classes, recipe.side, recipe.batch, recipe.seed, device)
    with torch.random.fork_rng(devices=[]):     # PyTorch initialises from the global generator
        torch.manual_seed(recipe.seed)
        network = Network(recipe.classes)
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=recipe.steps, pct_start=min(0.3, 150 / recipe.steps))
    state = {"network": network, "optimizer": optimizer, "schedule": schedule}
    done, seconds = _resume(checkpoint, recipe, state, device)
    began, recent = time.perf_counter() - seconds, {}
    for step in range(done, min(recipe.steps, done + (limit or recipe.steps))):
        batch = stream[step]
        parts = losses(network(batch.images.contiguous(memory_format=torch.channels_last)), batch)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
        schedule.step()
        done = step + 1
        for level, part in parts.items():
            recent[level] = 0.98 * recent.get(level, part.item()) + 0.02 * part.item()
        if done % 50 == 0:
            log.info("step %d of %d, %.0f s, loss at level %s", done, recipe.steps, time.perf_counter() - began,
                     ", ".join(f"{level}: {value:.3f}" for level, value in recent.items()))
        if done % every == 0 or done == recipe.steps:
            _save(checkpoint, recipe, state, done, time.perf_counter() - began)
    if done < recipe.steps:
        _save(checkpoint, recipe, state, done, time.perf_counter() - began)
        return None
    card = {"recipe": dataclasses.asdict(recipe), "pictures": recipe.steps * recipe.batch,
            "accuracy": accuracy(network, stream), "hours": round((time.perf_counter() - began) / 3600, 2),
            "device": _device(device), "threads": torch.get_num_threads(), "torch": torch.__version__.split("+")[0]}
    _export(network, card, out)
    checkpoint.unlink()
    return card


@torch.no_grad()
def accuracy(network: Network, stream: Stream, batches: int = 20) -> dict[str, float]:
    """Share of whole, unseen pictures whose class is right, by the mean logits of each level (chance: 1 / classes)."""
    network.eval()
    right = {}
    for index in range(batches):
        batch = stream.batch_of(UNSEEN + index, mosaics=False)
        for level, logits in network(batch.images).items():
            right.setdefault(level, []).append((logits.mean((2, 3)).argmax(1) == batch.first).float().mean().item())
    return {level: round(sum(values) / len(values), 4) for level, values in right.items()}


def _export(network: Network, card: dict, out: Path) -> None:
    state = {key: value.half().contiguous().cpu() for key, value in network.trunk.state_dict().items()
             if not key.endswith("num_batches_tracked")}
    partial = out.with_name(out.name + ".partial")
    safetensors.torch.save_file(state, partial, metadata={"card": json.dumps(card)})
    os.replace(partial, out)


def _save(path: Path, recipe: Recipe, state: dict, step: int, seconds: float) -> None:
    partial = path.with_name(path.name + ".partial")
    torch.save({"recipe": dataclasses.asdict(recipe), "step": step, "seconds": seconds}
               | {name: part.state_dict() for name, part in state.items()}, partial)
    os.replace(partial, path)


def _resume(path: Path, recipe: Recipe, state: dict, device: str) -> tuple[int, float]:
    """Steps and seconds of an earlier call with this recipe."""
    if not path.is_file():
        return 0, 0.0
    stored = torch.load(path, map_location=device, weights_only=True)
    other = [f"{name}={value}" for name, value in dataclasses.asdict(recipe).items() if stored["recipe"][name] != value]
    if other:
        raise RecipeError(f"{path}: made with another recipe than {', '.join(other)}; delete it to start anew")
    for name, part in state.items():
        part.load_state_dict(stored[name])
    log.info("going on after step %d", stored["step"])
    return stored["step"], stored["seconds"]


def _device(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}"
