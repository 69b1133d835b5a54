"""The inside of a mask picture as a short text that can stand in a row, a saved detector and a bundle.

A mask (H, W) goes in, run lengths come out, and back. Needs neither torch nor a file.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from thesis_lib.core.errors import ThesisError


@dataclass(frozen=True)
class Region:
    """A mask picture as run lengths: pixels outside, inside, outside, ..., line by line; as in COCO, by lines.

    >>> Region.parse("4x2:1,2,3,2").mask()
    array([[0, 1, 1, 0],
           [0, 0, 1, 1]], dtype=uint8)
    """

    size: tuple[int, int]           # width and height
    runs: tuple[int, ...]

    @classmethod
    def of(cls, mask: np.ndarray) -> "Region":
        """From a mask (H, W)."""
        height, width = mask.shape
        values = np.concatenate([[False], mask.ravel() > 0])
        ends = np.flatnonzero(values[1:] != values[:-1])        # places where the next run begins
        return cls((width, height), tuple(np.diff([0, *ends, height * width]).tolist()))

    @classmethod
    @lru_cache(maxsize=8)
    def parse(cls, text: str) -> "Region":
        """From its text; ThesisError where that is none."""
        if not (match := re.fullmatch(r"(\d+)x(\d+):(\d+(?:,\d+)*)", text)):
            raise ThesisError(f"roi={text[:40]!r}: is no region")
        width, height, runs = int(match[1]), int(match[2]), tuple(map(int, match[3].split(",")))
        if sum(runs) != width * height:
            raise ThesisError(f"roi={text[:40]!r}...: its runs add up to {sum(runs)}, not to {width}x{height} pixels")
        return cls((width, height), runs)

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}:{','.join(map(str, self.runs))}"

    def mask(self) -> np.ndarray:
        """(H, W) uint8: 1 inside, 0 outside."""
        return np.repeat(np.arange(len(self.runs), dtype=np.uint8) % 2, self.runs).reshape(self.size[::-1])
