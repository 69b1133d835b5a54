"""Where in a picture the most unusual place of its anomaly map lies; without torch and SciPy, for a device, too.

A map (h, w) goes in, a box in pixels of the original picture comes out.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from thesis_lib.core.preprocess import Preprocess

Box = tuple[int, int, int, int]         # x, y, w, h


def region(heat: np.ndarray, preprocess: Preprocess, size: tuple[int, int]) -> Box:
    """x, y, w, h in a picture of this width and height: the box around the maximum of its map (h, w), of the places
    that hang together and are nearer to the maximum than to the median. The map is -inf where nothing counts.
    """
    # 1. Places of the map.
    peak = np.unravel_index(heat.argmax(), heat.shape)
    level = (heat[peak] + np.median(heat[heat > -np.inf])) / 2
    rows, columns = np.nonzero(_around(heat >= level, (int(peak[0]), int(peak[1]))))
    # 2. Pixels of what the network sees.
    (h, w), (height, width) = heat.shape, preprocess.shape
    top, bottom = int(rows.min()) * height // h, -(-(int(rows.max()) + 1) * height // h)
    left, right = int(columns.min()) * width // w, -(-(int(columns.max()) + 1) * width // w)
    # 3. Pixels of the original.
    xs, ys = (whence[part] for whence, part in zip(_whence(preprocess, size), (slice(left, right), slice(top, bottom)),
                                                   strict=True))
    x, y = int(xs.min()), int(ys.min())
    return x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y


def _around(places: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """Of places (h, w) of a map those that hang together with `start` by their sides."""
    found = np.zeros_like(places)
    waiting = [start]
    while waiting:
        row, column = waiting.pop()
        if 0 <= row < places.shape[0] and 0 <= column < places.shape[1] and places[row, column] \
                and not found[row, column]:
            found[row, column] = True
            waiting += [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return found


@lru_cache(maxsize=4)       # pictures of one camera have one size
def _whence(preprocess: Preprocess, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which columns (W,) and rows (H,) of the original are seen: pictures of coordinates go the way of the pixels."""
    seen = []
    for axis, count in enumerate(size):
        line = np.arange(count, dtype=np.float32)
        values = np.broadcast_to(line if axis == 0 else line[:, None], size[::-1])
        whence = np.asarray(preprocess.geometry(Image.fromarray(np.ascontiguousarray(values)), "nearest"))
        seen.append(whence[0] if axis == 0 else whence[:, 0])
    return seen[0], seen[1]
