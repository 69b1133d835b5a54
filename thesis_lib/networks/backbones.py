"""Frozen networks, cut after the deepest wanted level: images (B, 3, H, W) go in, feature maps of each level come out.

Images may have a fourth channel, 1 where their pixels count and 0 elsewhere (`Preprocess.masked`). No network sees it;
it stands beside the maps under INSIDE.

Levels 1 to 4 are layer1..layer4 of a ResNet and the four stages of a ConvNeXt (strides 4, 8, 16, 32), both
torchvision's. A PDN has one level, its output (stride 4).
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from thesis_lib.core import tiles
from thesis_lib.core.errors import ThesisError
from thesis_lib.networks import weightfiles
from thesis_lib.networks.pdn import CONVOLUTIONS, FIELD, PDN
from thesis_lib.networks.torch_setup import check_finite
from thesis_lib.networks.weightfiles import WeightsError, WeightsMissing, record, torchvision

RESNETS = ("resnet18", "resnet34", "wide_resnet50_2", "wide_resnet101_2")
CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
PDNS = tuple(CONVOLUTIONS)
NAMES = RESNETS + CONVNEXTS + PDNS
Features = dict[int, torch.Tensor]      # level -> maps (B, C, h, w)
INSIDE = 0                              # in place of a level: the channel (B, 1, H, W) that says which pixels count
TAPS = ("output", "preactivation", "branch")


class Network(Protocol):
    """What makes pictures to feature maps, whatever runs it: a `Backbone`, or one that was exported or quantised."""

    name: str
    layers: tuple[int, ...]
    weights: dict[str, Any]
    channels: dict[int, int]
    strides: dict[int, int]
    tiles: tuple[int, int] | None

    def __call__(self, images: torch.Tensor) -> Features: ...


class Backbone(nn.Module):
    """Images (B, 3, H, W) -> {level: (B, C, h, w)}.

    Attributes: `channels` and `strides` per level, `weights` = where the numbers come from
    (`source`: imagenet | bundled | random | file, `sha256` of the file or tag, `seed` of random ones).
    tap: "output" of each level; "preactivation", what its last ReLU is given (ResNet); or "branch", the last block's
    inner branch before layer scale and skip connection (ConvNeXt). What the next level is given does not depend on it.
    tiles: columns and rows of the pictures, which are then seen one tile after the other (`core.tiles`); None: whole.
    """

    tiles: tuple[int, int] | None = None

    def __init__(self, name: str, levels: nn.ModuleDict, layers: Sequence[int], weights: dict[str, Any],
                 tap: str = "output") -> None:
        super().__init__()
        self.name, self.layers, self.weights, self.tap = name, check(name, layers, tap), weights, tap
        self.levels = levels
        self.channels, self.strides = shapes(name, self.layers)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> Features:
        check_images(self.name, images)
        def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
            return _walk(self.levels, self.layers, images, self.tap)

        return features_of(run, self, images)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return sum(values.nbytes for values in self.levels.state_dict().values())

    def cut(self, layers: Sequence[int]) -> "Backbone":
        """The same network for fewer levels: shares the modules, ends after the deepest of `layers`."""
        levels = nn.ModuleDict({level: module for level, module in self.levels.items() if int(level) <= max(layers)})
        return Backbone(self.name, levels, layers, self.weights, self.tap).eval().tiled(self.tiles)

    def tiled(self, tiles: tuple[int, int] | None) -> "Backbone":
        """The same network, sharing the modules, that sees pictures in so many columns and rows of tiles, or whole."""
        other = copy.copy(self)
        other.tiles = tiles
        return other


class Maps(nn.Module):
    """The bare network of a backbone, images -> tuple of maps: no check and no dict, so that tools can trace it."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.levels, self.layers, self.tap = backbone.levels, backbone.layers, backbone.tap
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _walk(self.levels, self.layers, images, self.tap)


def load(name: str, layers: Sequence[int], weights: str = "imagenet", seed: int = 0, tap: str = "output") -> Backbone:
    """Build a frozen backbone up to max(layers).

    weights: "imagenet" (torchvision's V1 file, downloaded once and hash-checked), "bundled" (trained by this project
    on pictures made by formula, ships with it, hash-checked; see `weightfiles.BUNDLED`), "random" (torch's own
    initialisation from `seed`), or a .safetensors file with torchvision's key names (of a PDN: conv1.weight ..., as
    published) that holds at least the needed levels.
    Raises WeightsError; there is no silent fallback.
    """
    layers, origin = check(name, layers, tap), record(name, weights, seed)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):     # torch initialises from the global generator
            torch.manual_seed(seed)
            state = _trunk(name, layers).state_dict()
    else:
        state = _state(name, layers, weightfiles.read(name, weights), origin["source"])
    return restore(name, layers, state, origin, tap)


def at_hand(name: str, layers: Sequence[int], weights: str) -> bool:
    """Whether these weights can be had here; damaged or unfit ones still raise WeightsError."""
    try:
        load(name, layers, weights)
    except WeightsMissing:
        return False
    return True


def restore(name: str, layers: Sequence[int], state: dict[str, torch.Tensor], origin: dict[str, Any],
            tap: str = "output") -> Backbone:
    """Backbone from its own `levels.state_dict()`, as a saved detector holds it."""
    layers = check(name, layers)
    with torch.device("meta"):                      # no memory for the levels that are cut off
        trunk = _trunk(name, layers)
    trunk.load_state_dict(state, assign=True)
    for parameter in trunk.parameters():
        parameter.requires_grad_(False)
    return Backbone(name, trunk, layers, origin, tap).eval()


def check(name: str, layers: Sequence[int] | None, tap: str = "output") -> tuple[int, ...]:
    """Sorted levels, for None the network's usual one: 2, of a PDN its only one. ValueError names what is wrong."""
    if name not in NAMES:
        raise ThesisError(f"backbone={name!r}: needs one of {', '.join(NAMES)}")
    known = (1,) if name in PDNS else (1, 2, 3, 4)
    if layers is None:
        layers = known[:2][-1:]
    levels = tuple(sorted(set(layers)))
    if not levels or not set(levels) <= set(known):
        raise ThesisError(f"layers={','.join(map(str, layers))}: needs one or more of {', '.join(map(str, known))}"
                         + (f", {name} has one level" if name in PDNS else ""))
    taps = ["output"]
    if name in RESNETS:
        taps.append("preactivation")
    elif name in CONVNEXTS:
        taps.append("branch")
    if tap not in taps:
        raise ThesisError(f"tap={tap!r}: {name} has {' and '.join(taps)}")
    return levels


def check_images(name: str, images: torch.Tensor) -> None:
    """ThesisError for what is no batch of colour pictures, holds NaN or infinity, or is too small for the network."""
    if images.ndim != 4 or images.shape[1] not in (3, 4):
        raise ThesisError(f"images of shape {tuple(images.shape)}: needs (B, 3, H, W), or a fourth channel that says "
                          "which pixels count")
    if name in PDNS and min(images.shape[-2:]) < FIELD:
        raise ThesisError(f"images of shape {tuple(images.shape)}: {name} needs at least {FIELD}x{FIELD} pixels")
    check_finite("images", images)


def features_of(run: Callable[[torch.Tensor], Sequence[torch.Tensor]], network: "Network",
                images: torch.Tensor) -> Features:
    """{level: maps} of what `run` makes of the colours, in tiles where the network has some; and {INSIDE: the fourth
    channel (B, 1, H, W)} of images that have one.
    """
    colours = images[:, :3]
    if network.tiles is None:
        maps = run(colours)
    else:
        maps = tiles.stitched(run, colours, network.tiles, [network.strides[level] for level in network.layers],
                              torch.cat)
    features = dict(zip(network.layers, maps, strict=True))
    return features | {INSIDE: images[:, 3:]} if images.shape[1] == 4 else features


def _walk(levels: nn.ModuleDict, layers: Sequence[int], x: torch.Tensor, tap: str) -> tuple[torch.Tensor, ...]:
    """Maps of the wanted layers; each level is given what the one before it puts out, whatever is tapped."""
    maps = []
    for level, block in levels.items():
        if int(level) not in layers:
            x = block(x)
        elif tap == "output":
            x = block(x)
            maps.append(x)
        else:
            inner, x = _tapped(block, x)
            maps.append(inner)
    return tuple(maps)


def _trunk(name: str, layers: Sequence[int]) -> nn.ModuleDict:
    """One module per level up to the deepest; the stem belongs to level 1."""
    if name in PDNS:
        return nn.ModuleDict({"1": PDN(name)})
    net = torchvision().models.get_model(name, weights=None)
    if name in RESNETS:
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        blocks = [net.layer1, net.layer2, net.layer3, net.layer4]
    else:                       # features: stem, stage 1, downsampling, stage 2, ...
        stem = net.features[0]
        blocks = [net.features[1]] + [nn.Sequential(*net.features[2 * j:2 * j + 2]) for j in (1, 2, 3)]
    blocks[0] = nn.Sequential(stem, blocks[0])
    return nn.ModuleDict({str(level): blocks[level - 1] for level in range(1, max(layers) + 1)})


def _tapped(level: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last block of a level computes inside, and the level's output."""
    *before_last, last = _blocks(level)
    for block in before_last:
        x = block(x)
    if hasattr(last, "layer_scale"):                                            # ConvNeXt: x + scale * branch(x)
        branch = last.block(x)
        return branch, x + last.layer_scale * branch
    inner = last.relu(last.bn1(last.conv1(x)))                                  # ResNet: relu(F(x) + x)
    inner = last.bn2(last.conv2(inner))
    if hasattr(last, "conv3"):
        inner = last.bn3(last.conv3(last.relu(inner)))
    preactivation = inner + (x if last.downsample is None else last.downsample(x))
    return preactivation, F.relu(preactivation)


def _blocks(level: nn.Module) -> list[Any]:
    """Blocks of torchvision's that a level walks through, their kind depends on the network; before them the stem or
    the downsampling, where the level begins with one and holds its blocks as a list of their own.
    """
    parts = list(level.children())
    return [*parts[:-1], *parts[-1]] if isinstance(parts[-1], nn.Sequential) else parts


def shapes(name: str, layers: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Channels and strides of these levels."""
    pyramid = _pyramid(name)
    return {level: pyramid[level][0] for level in layers}, {level: pyramid[level][1] for level in layers}


@cache
def maps(name: str, layers: tuple[int, ...], shape: tuple[int, int]) -> Features:
    """{level: (1, C, h, w)} of a picture of this shape (H, W), tensors without storage: shapes before any work."""
    with torch.device("meta"), torch.no_grad():
        image = torch.empty(1, 3, *shape)
        check_images(name, image)
        return dict(zip(layers, _walk(_trunk(name, layers).eval(), layers, image, "output"), strict=True))


@cache
def _pyramid(name: str) -> dict[int, tuple[int, int]]:
    """(channels, stride) of every level, read off tensors without storage; a PDN cuts a rim off."""
    pyramid = {}
    with torch.device("meta"), torch.no_grad():
        # A picture that is 64 pixels wider has a map that is 64 / stride positions wider.
        x, wider = torch.empty(1, 3, 64, 64), torch.empty(1, 3, 64, 128)
        for level, block in _trunk(name, (1, 2, 3, 4)).eval().items():
            x, wider = block(x), block(wider)
            pyramid[int(level)] = x.shape[1], 64 // (wider.shape[-1] - x.shape[-1])
    return pyramid


def _torchvision_key(name: str, key: str) -> str:
    """Key of our trunk -> key in torchvision's checkpoint ("1.0.1.weight" -> "bn1.weight")."""
    level, *rest = key.split(".")
    if name in PDNS:
        return ".".join(rest)
    if name in RESNETS:
        if level != "1":
            return ".".join([f"layer{level}", *rest])
        part, *rest = rest
        if part == "1":                                 # level 1 is (stem, layer1)
            return ".".join(["layer1", *rest])
        place, *rest = rest
        return ".".join([("conv1", "bn1")[int(place)], *rest])
    part, *rest = rest                                  # a level is (stem or downsampling, stage)
    return ".".join(["features", str(2 * (int(level) - 1) + int(part)), *rest])


def _state(name: str, layers: Sequence[int], state: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
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
