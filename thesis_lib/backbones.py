"""Frozen torchvision networks, cut after the deepest wanted level, that return their feature maps.

Levels 1 to 4 are layer1..layer4 of a ResNet and the four stages of a ConvNeXt (strides 4, 8, 16, 32).
"""

import hashlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

RESNETS = ("resnet18", "resnet34", "wide_resnet50_2", "wide_resnet101_2")
CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
NAMES = RESNETS + CONVNEXTS
BUNDLED = {"resnet18": ("resnet18_procedural.safetensors", "46c50604f8db1e41")}     # file, first digits of its SHA-256
_KEEP = []


class WeightsError(ValueError):
    """Weights are missing or do not fit; the message says what to do."""


class Backbone(nn.Module):
    """Images (B, 3, H, W) -> {level: (B, C, h, w)}.

    Attributes: `channels` and `strides` per level, `weights` = where the numbers come from
    (`source`: imagenet | bundled | random | file, `sha256` of the file or tag, `seed` of random ones).
    """

    def __init__(self, name: str, levels: nn.ModuleDict, layers: Sequence[int], weights: dict):
        super().__init__()
        self.name, self.layers, self.weights = name, tuple(layers), weights
        self.levels = levels
        self.channels, self.strides = shapes(name, self.layers)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        check_images(images)
        return dict(zip(self.layers, _walk(self.levels, self.layers, images), strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return sum(values.nbytes for values in self.levels.state_dict().values())


class Maps(nn.Module):
    """The bare network of a backbone, images -> tuple of maps: no check and no dict, so that tools can trace it."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.levels, self.layers = backbone.levels, backbone.layers
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _walk(self.levels, self.layers, images)


def load(name: str, layers: Sequence[int], weights: str = "imagenet", seed: int = 0) -> Backbone:
    """Build a frozen backbone up to max(layers).

    weights: "imagenet" (torchvision's V1 file, downloaded once and hash-checked), "bundled" (trained by this project
    on pictures made by formula, ships with it, hash-checked; resnet18 only), "random" (torchvision's initialisation
    drawn from `seed`), or a .safetensors file with torchvision's key names that holds at least the needed levels.
    Raises WeightsError; there is no silent fallback.
    """
    layers, origin = check(name, layers), record(name, weights, seed)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):     # torchvision initialises from the global generator
            torch.manual_seed(seed)
            state = _trunk(name, layers).state_dict()
    else:
        read = _imagenet(name) if weights == "imagenet" else _file(bundled(name) if weights == "bundled" else weights)
        state = _state(name, layers, read, origin["source"])
    return restore(name, layers, state, origin)


def restore(name: str, layers: Sequence[int], state: dict[str, torch.Tensor], origin: dict) -> Backbone:
    """Backbone from its own `levels.state_dict()`, as a saved detector holds it."""
    layers = check(name, layers)
    with torch.device("meta"):                      # no memory for the levels that are cut off
        trunk = _trunk(name, layers)
    trunk.load_state_dict(state, assign=True)
    for parameter in trunk.parameters():
        parameter.requires_grad_(False)
    return Backbone(name, trunk, layers, origin).eval()


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
        raise WeightsError(f"weights=bundled: there are none for {name}, only for {', '.join(BUNDLED)}; "
                           "give imagenet, random or a .safetensors file")
    return Path(__file__).parent / "weights" / BUNDLED[name][0]


def check(name: str, layers: Sequence[int]) -> tuple[int, ...]:
    """Sorted levels, or ValueError naming the wrong one."""
    if name not in NAMES:
        raise ValueError(f"backbone={name!r}: needs one of {', '.join(NAMES)}")
    levels = tuple(sorted(set(layers)))
    if not levels or any(level not in (1, 2, 3, 4) for level in levels):
        raise ValueError(f"layers={','.join(map(str, layers))}: needs one or more of 1, 2, 3, 4")
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


def _walk(levels: nn.ModuleDict, layers: Sequence[int], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    maps = []
    for level, block in levels.items():
        x = block(x)
        if int(level) in layers:
            maps.append(x)
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


def shapes(name: str, layers: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Channels and strides per level, read off tensors without storage."""
    with torch.device("meta"), torch.no_grad():
        x, side, channels, strides = torch.empty(1, 3, 64, 64), 64, {}, {}
        for level, block in _trunk(name, layers).eval().items():
            x = block(x)
            if int(level) in layers:
                channels[int(level)], strides[int(level)] = x.shape[1], side // x.shape[-1]
    return channels, strides


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
            raise WeightsError(f"{source}: holds no {wanted}; layers {','.join(map(str, layers))} of {name} need it")
        value = state[wanted].float()
        if value.shape != template.shape:
            raise WeightsError(f"{source}: {wanted} is {tuple(value.shape)}, {name} needs {tuple(template.shape)}")
        if not value.isfinite().all():
            raise WeightsError(f"{source}: {wanted} holds NaN or infinite values; the file is damaged")
        values[key] = value
    return values


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise WeightsError(f"{path}: not readable ({error.strerror}); install the project again") from error


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
        raise WeightsError(
            f"weights=imagenet: {tag.url.rsplit('/', 1)[-1]} could not be downloaded ({error}); with a network it is "
            f"fetched once into torch's cache; without one give weights=bundled ({', '.join(BUNDLED)}), a .safetensors "
            "file or weights=random") from error
    except RuntimeError as error:                           # torch reports a hash mismatch as RuntimeError
        raise WeightsError(f"weights=imagenet: {error}; delete the file in torch's cache and try again") from error
