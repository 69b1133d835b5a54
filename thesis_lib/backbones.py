"""Frozen torchvision networks, cut after the deepest wanted level, that return their feature maps.

Levels 1 to 4 are layer1..layer4 of a ResNet and the four stages of a ConvNeXt (strides 4, 8, 16, 32).
"""

import hashlib
import importlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

RESNETS = ("resnet18", "resnet34", "wide_resnet50_2", "wide_resnet101_2")
CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
NAMES = RESNETS + CONVNEXTS
BUNDLED = {"resnet18": ("resnet18_procedural.safetensors", "46c50604f8db1e41")}     # file, first digits of its SHA-256
TAPS = ("output", "preactivation", "branch")
_KEEP = []


class WeightsError(ValueError):
    """Weights are missing or do not fit; the message says what to do."""


class WeightsMissing(WeightsError):
    """They may be all right elsewhere, but this network's are not at hand here."""


class Backbone(nn.Module):
    """Images (B, 3, H, W) -> {level: (B, C, h, w)}.

    Attributes: `channels` and `strides` per level, `weights` = where the numbers come from
    (`source`: imagenet | bundled | random | file, `sha256` of the file or tag, `seed` of random ones).
    tap: "output" of each level; "preactivation", what its last ReLU is given (ResNet); or "branch", the last block's
    inner branch before layer scale and skip connection (ConvNeXt). What the next level is given does not depend on it.
    """

    def __init__(self, name: str, levels: nn.ModuleDict, layers: Sequence[int], weights: dict, tap: str = "output"):
        super().__init__()
        self.name, self.layers, self.weights, self.tap = name, check(name, layers, tap), weights, tap
        self.levels = levels
        self.channels, self.strides = shapes(name, self.layers)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        check_images(images)
        return dict(zip(self.layers, _walk(self.levels, self.layers, images, self.tap), strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return sum(values.nbytes for values in self.levels.state_dict().values())

    def cut(self, layers: Sequence[int]) -> "Backbone":
        """The same network for fewer levels: shares the modules, ends after the deepest of `layers`."""
        levels = nn.ModuleDict({level: module for level, module in self.levels.items() if int(level) <= max(layers)})
        return Backbone(self.name, levels, layers, self.weights, self.tap).eval()


class Maps(nn.Module):
    """The bare network of a backbone, images -> tuple of maps: no check and no dict, so that tools can trace it."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.levels, self.layers, self.tap = backbone.levels, backbone.layers, backbone.tap
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _walk(self.levels, self.layers, images, self.tap)


def load(name: str, layers: Sequence[int], weights: str = "imagenet", seed: int = 0, tap: str = "output") -> Backbone:
    """Build a frozen backbone up to max(layers).

    weights: "imagenet" (torchvision's V1 file, downloaded once and hash-checked), "bundled" (trained by this project
    on pictures made by formula, ships with it, hash-checked; resnet18 only), "random" (torchvision's initialisation
    drawn from `seed`), or a .safetensors file with torchvision's key names that holds at least the needed levels.
    Raises WeightsError; there is no silent fallback.
    """
    layers, origin = check(name, layers, tap), record(name, weights, seed)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):     # torchvision initialises from the global generator
            torch.manual_seed(seed)
            state = _trunk(name, layers).state_dict()
    else:
        read = _imagenet(name) if weights == "imagenet" else _file(bundled(name) if weights == "bundled" else weights)
        state = _state(name, layers, read, origin["source"])
    return restore(name, layers, state, origin, tap)


def at_hand(name: str, layers: Sequence[int], weights: str) -> bool:
    """Whether these weights can be had here; damaged or unfit ones still raise WeightsError."""
    try:
        load(name, layers, weights)
    except WeightsMissing:
        return False
    return True


def restore(name: str, layers: Sequence[int], state: dict[str, torch.Tensor], origin: dict,
            tap: str = "output") -> Backbone:
    """Backbone from its own `levels.state_dict()`, as a saved detector holds it."""
    layers = check(name, layers)
    with torch.device("meta"):                      # no memory for the levels that are cut off
        trunk = _trunk(name, layers)
    trunk.load_state_dict(state, assign=True)
    for parameter in trunk.parameters():
        parameter.requires_grad_(False)
    return Backbone(name, trunk, layers, origin, tap).eval()


def record(name: str, weights: str, seed: int = 0) -> dict:
    """Where the weights come from, without loading them: part of a result's identity."""
    if weights == "random":
        return {"source": "random", "seed": seed, "sha256": None}
    if weights == "imagenet":
        return {"source": "imagenet", "sha256": str(torchvision().models.get_model_weights(name).IMAGENET1K_V1)}
    if weights == "bundled":
        path, wanted = bundled(name), BUNDLED[name][1]
        if (found := _sha256(path)) != wanted:
            raise WeightsError(f"{path}: hash {found}, the project's file has {wanted}; it is damaged or another one, "
                               "install the project again")
        return {"source": "bundled", "sha256": found}
    path = Path(weights).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise WeightsError(f"weights={weights!r}: needs imagenet, bundled, random or an existing .safetensors file")
    # The name of the file, not its folder: a result must not depend on where it lies.
    return {"source": path.name, "sha256": _sha256(path)}


def bundled(name: str) -> Path:
    """File of the weights that ship with the project, in torchvision's key names; WeightsError where there is none."""
    if name not in BUNDLED:
        raise WeightsMissing(f"weights=bundled: there are none for {name}, only for {', '.join(BUNDLED)}; "
                           "give imagenet, random or a .safetensors file")
    return Path(__file__).parent / "weights" / BUNDLED[name][0]


def check(name: str, layers: Sequence[int], tap: str = "output") -> tuple[int, ...]:
    """Sorted levels, or ValueError naming what is wrong."""
    if name not in NAMES:
        raise ValueError(f"backbone={name!r}: needs one of {', '.join(NAMES)}")
    levels = tuple(sorted(set(layers)))
    if not levels or any(level not in (1, 2, 3, 4) for level in levels):
        raise ValueError(f"layers={','.join(map(str, layers))}: needs one or more of 1, 2, 3, 4")
    possible = ("output", "preactivation" if name in RESNETS else "branch")
    if tap not in possible:
        raise ValueError(f"tap={tap!r}: {name} has {' and '.join(possible)}")
    return levels


def check_images(images: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images of shape {tuple(images.shape)}: needs (B, 3, H, W)")


def torchvision():
    """torchvision, also where its compiled operators do not load (PyPI's wheel beside the CPU build of torch).

    Only nms and qnms are declared, and only after the import has failed for want of them: none of them is
    used here, and where the operators do load a second declaration would be an error.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP.append(library)       # the declaration lives as long as this object
    return importlib.import_module("torchvision")


def _walk(levels: nn.ModuleDict, layers: Sequence[int], x: torch.Tensor, tap: str) -> tuple[torch.Tensor, ...]:
    maps = []
    for level, block in levels.items():
        if tap == "output" or int(level) not in layers:
            found = x = block(x)
        else:
            found, x = _tapped(block, x)
        if int(level) in layers:
            maps.append(found)
    return tuple(maps)


def _trunk(name: str, layers: Sequence[int]) -> nn.ModuleDict:
    """One module per level up to the deepest; the stem belongs to level 1."""
    net = torchvision().models.get_model(name, weights=None)
    if name in RESNETS:
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        blocks = [net.layer1, net.layer2, net.layer3, net.layer4]
    else:                       # features: stem, stage 1, downsampling, stage 2, ...
        stem = net.features[0]
        blocks = [net.features[1]] + [nn.Sequential(*net.features[2 * j:2 * j + 2]) for j in (1, 2, 3)]
    blocks[0] = nn.Sequential(stem, blocks[0])
    return nn.ModuleDict({str(level): blocks[level - 1] for level in range(1, max(layers) + 1)})


def _tapped(level: nn.Sequential, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last block of a level computes inside, and the level's output."""
    blocks = level[-1] if isinstance(level[-1], nn.Sequential) else level       # level 1 begins with the stem
    for module in (*level[:-1], *blocks[:-1]) if blocks is not level else blocks[:-1]:
        x = module(x)
    last = blocks[-1]
    if hasattr(last, "layer_scale"):                                            # ConvNeXt: x + scale * branch(x)
        branch = last.block(x)
        return branch, x + last.layer_scale * branch
    inner = last.relu(last.bn1(last.conv1(x)))                                  # ResNet: relu(F(x) + x)
    inner = last.bn2(last.conv2(inner))
    if hasattr(last, "conv3"):
        inner = last.bn3(last.conv3(last.relu(inner)))
    before = inner + (x if last.downsample is None else last.downsample(x))
    return before, F.relu(before)


def shapes(name: str, layers: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Channels and strides of these levels."""
    every = _pyramid(name)
    return {level: every[level][0] for level in layers}, {level: every[level][1] for level in layers}


@cache
def _pyramid(name: str) -> dict[int, tuple[int, int]]:
    """(channels, stride) of every level, read off tensors without storage."""
    with torch.device("meta"), torch.no_grad():
        x, side, found = torch.empty(1, 3, 64, 64), 64, {}
        for level, block in _trunk(name, (1, 2, 3, 4)).eval().items():
            x = block(x)
            found[int(level)] = x.shape[1], side // x.shape[-1]
    return found


def _torchvision_key(name: str, key: str) -> str:
    """Key of our trunk -> key in torchvision's checkpoint ("1.0.1.weight" -> "bn1.weight")."""
    level, *rest = key.split(".")
    level = int(level)
    if name in RESNETS:
        if level > 1:
            return ".".join([f"layer{level}", *rest])
        part, *rest = rest
        return ".".join([f"{('conv1', 'bn1')[int(rest.pop(0))]}" if part == "0" else "layer1", *rest])
    part, *rest = rest
    return ".".join(["features", str(2 * (level - 1) + int(part)), *rest])


def _state(name: str, layers: Sequence[int], state: dict, source: str) -> dict[str, torch.Tensor]:
    """State of our trunk out of a checkpoint with torchvision's key names."""
    with torch.device("meta"):
        trunk = _trunk(name, layers)
    values = {}
    for key, template in trunk.state_dict().items():
        wanted = _torchvision_key(name, key)
        if wanted.endswith("num_batches_tracked"):      # a training counter, absent from weight files
            values[key] = torch.zeros((), dtype=torch.long)
            continue
        if wanted not in state:
            raise WeightsMissing(f"{source}: holds no {wanted}; layers {','.join(map(str, layers))} of {name} need it")
        value = state[wanted].float()
        if value.shape != template.shape:
            raise WeightsError(f"{source}: {wanted} is {tuple(value.shape)}, {name} needs {tuple(template.shape)}")
        if not value.isfinite().all():
            raise WeightsError(f"{source}: {wanted} holds NaN or infinite values; the file is damaged")
        values[key] = value
    return values


def _sha256(path: Path) -> str:
    try:
        return _content_hash(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"{path}: not readable ({error.strerror}); install the project again") from error


@cache
def _content_hash(path: Path, changed: int) -> str:
    """Once for every state of the file: a table of a hundred configurations asks a hundred times."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _file(weights: str | Path) -> dict:
    path = Path(weights).expanduser()
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def _imagenet(name: str) -> dict:
    tag = torchvision().models.get_model_weights(name).IMAGENET1K_V1
    try:
        return tag.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:                                # URLError is one, too
        raise WeightsMissing(
            f"weights=imagenet: {tag.url.rsplit('/', 1)[-1]} could not be downloaded ({error}); with a network it is "
            f"fetched once into torch's cache; without one give weights=bundled ({', '.join(BUNDLED)}), a .safetensors "
            "file or weights=random") from error
    except RuntimeError as error:                           # torch reports a hash mismatch as RuntimeError
        raise WeightsError(f"weights=imagenet: {error}; delete the file in torch's cache and try again") from error
