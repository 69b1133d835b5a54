"""Whether pictures still look as those did that a bundle was made from: four values of each picture and a band of them.

Mean grey, contrast, sharpness and the median of the anomaly map go in; none of them is moved much by a small defect.
`bands` makes the bands on the desktop, from n good pictures; a `Watch` counts on the device how many of the last 50
pictures lie outside, and needs neither torch nor SciPy.

The ends of a band are order statistics, the r-th smallest and the r-th largest of the n values with r = 0.005 (n + 1),
at least 1: up to 0.5 % of good pictures, but not less than 1 in n + 1, are expected beyond either. Few pictures make
that uncertain: the true share beyond an end is distributed as Beta(r, n+1-r), whatever the values look like, and the
count among the next 50 as a beta-binomial. The limit is the smallest count that has, at any of the eight ends, a chance
below 1 in 10 000 altogether. The chance of any one window adds up over windows that overlap, too: of 10 000 good
pictures less than one window over the limit is expected, on average over the n pictures that a band was made from.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from thesis_lib.core import files
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import IMAGENET_MEAN, IMAGENET_STD

WINDOW = 50             # pictures that are looked back on
CHANCE = 1e-4           # of a window of good pictures that is reported
SHARE = 0.005           # of good pictures beyond either end of a band
MAP = "median of the map"
SIDES = "below", "above"
Values = Mapping[str, float]            # name -> value, of one picture
Bands = Mapping[str, Mapping[str, Any]]         # name -> low, high, n, limit


def of_picture(image: np.ndarray) -> dict[str, float]:
    """Values of a picture as `Preprocess.array` gives it, (3, H, W), or (4, H, W) where not all pixels count.

    In grey levels of 0 to 255: mean and standard deviation of the grey, and the mean absolute Laplacian.
    """
    colours = image[:3] * np.array(IMAGENET_STD, np.float32)[:, None, None]
    grey = 255 * (colours + np.array(IMAGENET_MEAN, np.float32)[:, None, None]).mean(axis=0)        # (H, W)
    inside = image[3] > 0 if len(image) > 3 else np.ones(grey.shape, dtype=bool)
    middle, counted = grey[1:-1, 1:-1], inside[1:-1, 1:-1].copy()
    curvature = 4 * middle
    for rows, columns in ((slice(0, -2), slice(1, -1)), (slice(2, None), slice(1, -1)),
                          (slice(1, -1), slice(0, -2)), (slice(1, -1), slice(2, None))):
        curvature = curvature - grey[rows, columns]
        counted &= inside[rows, columns]
    sharpness = float(np.abs(curvature[counted]).mean()) if counted.any() else 0.0
    return {"mean grey": float(grey[inside].mean()), "contrast": float(grey[inside].std()), "sharpness": sharpness}


def of_map(heat: np.ndarray) -> float:
    """Median of an anomaly map (h, w) where it counts."""
    return float(np.median(heat[heat > -np.inf]))


def limit(n: int, ends: int) -> int | None:
    """The smallest count beyond one of so many ends, of WINDOW good pictures, that has a chance below CHANCE / ends.

    None: so few pictures have made the band that every count is more likely than that.

    >>> limit(60, 8), limit(300, 8), limit(3, 8)
    (14, 6, None)
    """
    from scipy.stats import betabinom  # the desktop has it

    rank = _rank(n)
    chances = betabinom.sf(np.arange(WINDOW), WINDOW, rank, n + 1 - rank)       # of more than so many
    rare = np.flatnonzero(chances < CHANCE / ends)
    return int(rare[0]) + 1 if len(rare) else None


def bands(values: Mapping[str, ArrayLike]) -> dict[str, dict[str, Any]]:
    """Of values (n,) of good pictures; each may have another n. A band without a limit can report nothing."""
    made = {}
    for name, given in values.items():
        ordered = np.sort(np.asarray(given, dtype=np.float64))
        n, rank = len(ordered), _rank(len(ordered))
        made[name] = {"low": float(ordered[rank - 1]), "high": float(ordered[n - rank]), "n": n,
                      "limit": limit(n, 2 * len(values))}
    return made


def lines(made: Bands) -> list[str]:
    """What a person should read of bands."""
    said = [f"{name} {one['low']:.4g} to {one['high']:.4g}" for name, one in made.items()]
    mute = [f"{name} ({one['n']})" for name, one in made.items() if one["limit"] is None]
    few = [f"too few pictures to tell a change from chance: {', '.join(mute)}"] if mute else []
    return ["light of good pictures: " + ", ".join(said), *few]


class Watch:
    """The last 50 pictures, and what of them has been reported; `file` keeps both from one start to the next.

    A file of another bundle or engine, which `origin` names, is begun anew.
    """

    def __init__(self, made: Bands, file: Path | None = None, origin: str = "") -> None:
        self.bands = {name: one for name, one in made.items() if one["limit"] is not None}
        self.file, self.origin = file, origin
        self.seen: deque[Values] = deque(maxlen=WINDOW)
        self.told: set[tuple[str, str]] = set()
        if file is not None and file.exists():
            try:
                kept = json.loads(file.read_text(encoding="utf-8"))
                if kept["origin"] == origin:
                    self.seen.extend({name: float(one[name]) for name in self.bands} for one in kept["values"])
                    self.told = {(name, side) for name, side in kept["told"]}
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise ThesisError(f"{file}: no history of `thesis detect` ({error!r}); remove it, or name another "
                                  "file") from None

    def see(self, values: Values) -> list[str]:
        """A line for each value that has left its band in so many of the last pictures; said once, and again only after
        no more than half as many were outside.
        """
        self.seen.append(values)
        said = []
        for name, one in self.bands.items():
            for side in SIDES:
                out = self._outside(name, side)
                if (name, side) in self.told and out <= one["limit"] // 2:
                    self.told.remove((name, side))
                if (name, side) not in self.told and out >= one["limit"]:
                    self.told.add((name, side))
                    said.append(f"the light has changed: {name} {side} that of good pictures, {one['low']:.4g} to "
                                f"{one['high']:.4g}, in {out} of the last {len(self.seen)} pictures (now "
                                f"{values[name]:.4g})")
        return said

    def save(self) -> None:
        """Into `file`, where there is one."""
        if self.file is not None:
            files.write(self.file, json.dumps({"origin": self.origin, "values": list(self.seen),
                                               "told": sorted(self.told)}) + "\n")

    def _outside(self, name: str, side: str) -> int:
        low, high = self.bands[name]["low"], self.bands[name]["high"]
        values: Sequence[float] = [one[name] for one in self.seen]
        return sum(value < low if side == "below" else value > high for value in values)


def _rank(n: int) -> int:
    """r: of the value that is an end of the band, counted from outside."""
    return max(1, int(SHARE * (n + 1)))
