"""A large picture through a network in tiles, one after the other, and their feature maps put together.

A picture (B, C, H, W) goes in, the maps that the network gives of the whole come out, but for what it sees across the
seams. At no time does the network hold more than a tile. Runs without torch, on a device, too.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import in_pixels

ALIGNED = 32            # pixels: the largest stride of a network; tiles begin at multiples of it, so maps fit together
OVERLAP = 32            # pixels that a tile sees beyond its own part, to each side where there are any


def check(shape: tuple[int, int], tiles: tuple[int, int]) -> None:
    """ThesisError where a picture of this shape (H, W) is too small for so many columns and rows."""
    (height, width), (columns, rows) = shape, tiles
    if width < ALIGNED * columns or height < ALIGNED * rows:
        raise ThesisError(f"tiles={columns}x{rows}: of pictures of {in_pixels(shape)} pixels a tile would be less than "
                          f"{ALIGNED} pixels wide or high; needs fewer tiles, or a larger image_size")


def parts(side: int, count: int) -> list[tuple[int, int, int, int]]:
    """Of each tile along a side: first and last pixel of its own part, and of what it sees; ends do not count.

    >>> parts(128, 2)
    [(0, 64, 0, 96), (64, 128, 32, 128)]
    """
    ends = [ALIGNED * round(number * side / count / ALIGNED) for number in range(count)] + [side]
    return [(first, last, max(0, first - OVERLAP), min(side, last + OVERLAP))
            for first, last in itertools.pairwise(ends)]


def stitched(run: Callable[[Any], Sequence[Any]], image: Any, tiles: tuple[int, int], strides: Sequence[int],
             join: Callable[[list[Any], int], Any]) -> list[Any]:
    """Maps (B, C, h, w) of a picture (B, C, H, W), one of each stride; `run` gives those of a tile.

    Arrays or tensors; join is np.concatenate or torch.cat. Each tile gives its own part, without what it sees beyond.
    """
    columns, rows = tiles
    height, width = image.shape[-2:]
    lines = []
    for top, bottom, upper, lower in parts(height, rows):
        line = []
        for left, right, begin, end in parts(width, columns):
            maps = run(image[..., upper:lower, begin:end])
            # The last tile of a side gives all that is left: a side need not be a multiple of the stride.
            line.append([x[..., (top - upper) // stride:None if bottom == height else (bottom - upper) // stride,
                           (left - begin) // stride:None if right == width else (right - begin) // stride]
                         for x, stride in zip(maps, strides, strict=True)])
        lines.append([join(list(of_level), -1) for of_level in zip(*line, strict=True)])
    return [join(list(of_level), -2) for of_level in zip(*lines, strict=True)]
