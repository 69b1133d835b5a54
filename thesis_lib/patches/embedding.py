"""From feature maps {level: (B, C, h, w)} to patch vectors (B, P, D), P = h*w on the finest grid.

An embedding is named by a string, so that it can stand in a result row and on the command line:

    original_d1024      PatchCore's own (thesis sec. 3.2.1): 3x3 neighbourhoods, adaptive mean pooling to D
    avg_k3_s1_p1        pooling per level (sec. 3.5.3), channels unchanged; also max_, avgmax_ (both, concatenated)
    adaptive_7          average pooling to 7 x 7 positions per level
    identity            the feature map as it is
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import at_centres, in_pixels
from thesis_lib.networks.backbones import INSIDE, Features

OUTSIDE = -torch.inf    # value of a map where nothing counts: the largest value, which is the score, is never there
JOINS = ("repeat", "interpolate")


class Patches(NamedTuple):
    """The patch vectors of B pictures, where they lie, and which of them count.

    >>> pictures = Patches(torch.tensor([[[1.0], [2.0], [3.0]]]), (1, 3), torch.tensor([[True, False, True]]))
    >>> pictures.counted                                # of the three patches two count
    tensor([[1.],
            [3.]])
    >>> pictures.spread(pictures.counted, OUTSIDE)      # back in their places
    tensor([[[1.],
             [-inf],
             [3.]]])
    """

    vectors: torch.Tensor           # (B, P, D)
    grid: tuple[int, int]           # (h, w), P = h*w, row by row
    inside: torch.Tensor | None = None      # (B, P) bool, those that count; None: all do

    @property
    def counted(self) -> torch.Tensor:
        """(n, D): the vectors that count, of one picture after the other."""
        return self.vectors.flatten(0, 1) if self.inside is None else self.vectors[self.inside]

    @property
    def counts(self) -> list[int]:
        """How many of each picture count."""
        b, p, _ = self.vectors.shape
        return [p] * b if self.inside is None else self.inside.sum(dim=1).tolist()

    def spread(self, values: torch.Tensor, elsewhere: float) -> torch.Tensor:
        """(B, P, ...) of values (n, ...) as `counted` has them; places that do not count have the other number."""
        shape = (*self.vectors.shape[:2], *values.shape[1:])
        if self.inside is None:
            return values.view(shape)
        full = values.new_full(shape, elsewhere)
        full[self.inside] = values
        return full

    def only_inside(self, values: torch.Tensor, elsewhere: float) -> torch.Tensor:
        """Values (B, P, ...) of all patches, the other number where they do not count."""
        if self.inside is None:
            return values
        return values.masked_fill(~self.inside.view(*self.inside.shape, *[1] * (values.ndim - 2)), elsewhere)


class Embedding:
    """Feature maps of a batch -> Patches. A patch counts where the pixel in its middle does."""

    def __call__(self, features: Features) -> Patches:
        patches = self.embed({level: maps for level, maps in features.items() if level != INSIDE})
        if INSIDE not in features:
            return patches
        inside = torch.from_numpy(at_centres(features[INSIDE][:, 0].numpy(), patches.grid) > 0).flatten(1)
        if not inside.any(dim=1).all():
            raise ThesisError(f"a picture has no patch that counts: of {in_pixels(patches.grid)} no middle lies inside;"
                              " needs larger pictures, a larger region or a finer grid")
        return patches._replace(inside=inside)

    def embed(self, features: Features) -> Patches:
        """Of the levels alone, all patches."""
        raise NotImplementedError

    def width(self, channels: Mapping[int, int]) -> int:
        """D, from the channels of every level that is used."""
        raise NotImplementedError


@dataclass(frozen=True)
class Original(Embedding):
    """Unfold levels into 3x3 patches, bring them to the finest grid, mean-pool each, stack, pool again to `dim`.

    Source: Roth et al. 2022 and its published code; thesis sec. 3.2.1. Patches are interpolated bilinearly
    after the unfold, and the flattened order is channel-major (C, 3, 3), so a pooling window of 9 is one channel.
    per_level: numbers that each level is pooled to, None for `dim`. The published commands for ensembles have 1024 and
    then 384; original_d384 pools to 384 both times, which gives image scores that are 3 to 12 % apart. Only a PDN's
    target takes both widths.
    """

    dim: int = 1024
    per_level: int | None = None

    def width(self, channels: Mapping[int, int]) -> int:
        return self.dim

    def embed(self, features: Features) -> Patches:
        grid = _finest(features)
        levels = []
        for level in sorted(features):
            x = features[level]                                             # (B, C, h, w)
            patches = F.unfold(x, kernel_size=3, padding=1)                 # (B, C*9, h*w)
            patches = patches.reshape(len(x), -1, *x.shape[-2:])            # (B, C*9, h, w)
            if x.shape[-2:] != grid:
                patches = F.interpolate(patches, grid, mode="bilinear", align_corners=False)
            vectors = patches.flatten(2).transpose(1, 2)                    # (B, P, C*9)
            levels.append(F.adaptive_avg_pool1d(vectors, self.per_level or self.dim))
        if len(levels) == 1 and levels[0].shape[2] == self.dim:     # the second pooling would change nothing
            return Patches(levels[0], grid)
        return Patches(F.adaptive_avg_pool1d(torch.cat(levels, dim=2), self.dim), grid)


@dataclass(frozen=True)
class Pooled(Embedding):
    """Pool every level in two dimensions, bring the deeper ones to the finest grid, concatenate the channels.

    All of it with the channels of a place side by side in memory, as the patch vectors need them in the end: torch's
    pooling is 4 to 10 times faster on that layout, and the last transposition costs nothing.
    """

    pools: tuple[Callable[[torch.Tensor], torch.Tensor], ...]
    join: str

    def width(self, channels: Mapping[int, int]) -> int:
        return len(self.pools) * sum(channels.values())

    def embed(self, features: Features) -> Patches:
        pooled = {level: self._pool(x.contiguous(memory_format=torch.channels_last)) for level, x in features.items()}
        grid, levels = _finest(pooled), [pooled[level] for level in sorted(pooled)]
        if self.join == "interpolate":
            levels = [x if x.shape[-2:] == grid else F.interpolate(x, grid, mode="bilinear", align_corners=False)
                      for x in levels]
        # A single one has nothing to be joined with, so it is not copied.
        joined = _joined(levels, grid) if len(levels) > 1 else levels[0].permute(0, 2, 3, 1)
        return Patches(joined.flatten(1, 2).contiguous(), grid)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        return _beside([pool(x) for pool in self.pools])


def parse(name: str, join: str = "repeat") -> Embedding:
    """Embedding of that name; ValueError names the rule that is broken.

    join: how a deeper level reaches the finest grid: "repeat" (block-wise, what the thesis measured; sides must
    divide) or "interpolate" (bilinear, always possible). `original` interpolates by definition.

    >>> maps = {2: torch.zeros(1, 128, 28, 28), 3: torch.zeros(1, 256, 14, 14)}
    >>> patches = parse("avg_k3_s1_p1")(maps)
    >>> patches.vectors.shape, patches.grid     # (B, P, D): 784 = 28 * 28 patches of 384 = 128 + 256 numbers
    (torch.Size([1, 784, 384]), (28, 28))
    """
    if join not in JOINS:
        raise ThesisError(f"join={join!r}: needs one of {', '.join(JOINS)}")
    if match := re.fullmatch(r"original_d(\d+)", name):
        if int(match[1]) < 1:
            raise ThesisError(f"embedding={name!r}: d must be at least 1")
        return Original(int(match[1]))
    if name == "identity":
        return Pooled((_Identity(),), join)
    match = re.fullmatch(r"adaptive_(\d+)", name)
    if match and int(match[1]) > 0:
        return Pooled((_Adaptive(int(match[1])),), join)
    if match := re.fullmatch(r"(avg|max|avgmax)_k(\d+)_s(\d+)_p(\d+)", name):
        kernel, stride, padding = map(int, match.groups()[1:])
        if kernel < 1 or stride < 1 or padding > kernel // 2:
            raise ThesisError(f"embedding={name!r}: needs k >= 1, s >= 1 and p <= floor(k/2) = {kernel // 2}")
        kinds = ("avg", "max") if match[1] == "avgmax" else (match[1],)
        return Pooled(tuple(_Pool(kind, kernel, stride, padding) for kind in kinds), join)
    raise ThesisError(f"embedding={name!r}: needs original_d1024, avg_k3_s1_p1, max_..., avgmax_..., adaptive_7 "
                     "or identity (numbers are free)")


@dataclass(frozen=True)
class _Pool:
    """Average or largest of kernel x kernel positions, every stride-th one."""

    kind: str
    kernel: int
    stride: int
    padding: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        side = min(x.shape[-2:])
        if side + 2 * self.padding < self.kernel:
            raise ThesisError(f"{self.kind}_k{self.kernel}_s{self.stride}_p{self.padding}: kernel is larger than the "
                             f"padded map, in + 2p = {side + 2 * self.padding} < k = {self.kernel}")
        # Padded zeros count in the average, as in the measurements of the thesis.
        pool = F.avg_pool2d if self.kind == "avg" else F.max_pool2d
        return pool(x, self.kernel, self.stride, self.padding)


@dataclass(frozen=True)
class _Adaptive:
    """Averages on side x side positions, whatever the map has."""

    side: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x, self.side)


class _Identity:
    """The map as it is."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _beside(maps: list[torch.Tensor]) -> torch.Tensor:
    """Channels of all maps; torch.cat would copy a single one, too."""
    return torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]


def _finest(features: Features) -> tuple[int, int]:
    """(h, w) of the lowest level."""
    h, w = features[min(features)].shape[-2:]
    return h, w


def _joined(levels: list[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    """Channels of all maps (B, C, h, w) side by side (B, H, W, D), each position of a coarser map as a block of
    H/h x W/w positions. Every number is written once, to its last place.
    """
    for x in levels:
        h, w = x.shape[-2:]
        if grid[0] % h or grid[1] % w:
            raise ThesisError(f"join=repeat: a map of {h}x{w} does not repeat block-wise onto {grid[0]}x{grid[1]}, "
                             "the sides must divide; use join=interpolate")
    if torch.jit.is_tracing():                  # what is written into a part of a tensor does not convert to ONNX
        return torch.cat([x.permute(0, 2, 3, 1)[:, :, None, :, None]
                          .expand(-1, -1, grid[0] // x.shape[2], -1, grid[1] // x.shape[3], -1)
                          .reshape(len(x), *grid, -1) for x in levels], dim=-1)
    joined = levels[0].new_empty(len(levels[0]), *grid, sum(x.shape[1] for x in levels))
    first = 0                                   # channel of the level
    for x in levels:
        channels, h, w = x.shape[1:]
        blocks = joined.view(len(x), h, grid[0] // h, w, grid[1] // w, -1)
        blocks[..., first:first + channels] = x.permute(0, 2, 3, 1)[:, :, None, :, None]
        first += channels
    return joined
