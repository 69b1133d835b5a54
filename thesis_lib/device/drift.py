"""Whether pictures still look as those did that a bundle was made from: four values of each picture and a band of them.

Mean grey, contrast, sharpness and the median of the anomaly map go in; none of them is moved much by a small defect.
`bands` makes the bands on the desktop, from n good pictures; a `Watch` counts on the device how many of the last 50
pictures lie outside, and needs neither torch nor SciPy.

Two counts are kept. One is of pictures beyond the ends of a band, order statistics: the r-th smallest and the r-th
largest of the n values with r = 0.005 (n + 1), at least 1. So up to 0.5 % of good pictures, but not less than 1 in
n + 1, are expected beyond either. The other is of pictures beyond the quartiles, r = 0.25 (n + 1): where good pictures
differ much, all of them may move without that many leave the band. How many good pictures really lie beyond is
uncertain: the share is distributed as Beta(r, n+1-r), whatever the values look like, and the count among the next 50 as
a beta-binomial. The limit is the smallest count that has, with eight ends and two counts at each, a chance below 1 in
10 000 altogether. The chance of any one window adds up over windows that overlap, too: of 10 000 good pictures less
than one window over the limit is expected, on average over the n pictures that a band was made from.

All that holds for pictures that do not depend on their neighbours. Where they do, fifty in a row lie beyond a quartile
easily, so the second count is left out of values that wander in the order of the file names (`wanders`).
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
QUARTER = 0.25          # and beyond either quartile
SHUFFLES = 999          # of the test whether values wander,
RARE = 0.01             # and its level
MAP = "median of the map"
SIDES = "below", "above"
Values = Mapping[str, float]            # name -> value, of one picture
# name -> low, high, n, limit, and quarter: low, high and limit of the quartiles, or None. Old bundles lack it.
Bands = Mapping[str, Mapping[str, Any]]


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


def limit(n: int, ends: int, share: float = SHARE) -> int | None:
    """The smallest count beyond one of so many ends, of WINDOW good pictures, that has a chance below CHANCE / ends.

    share: of good pictures that is expected there. An end with two counts is two of them. None: so few pictures have
    made the band that every count is more likely than that.

    >>> limit(60, 16), limit(300, 16), limit(3, 16), limit(300, 16, QUARTER)
    (14, 7, None, 29)
    """
    from scipy.stats import betabinom  # the desktop has it

    rank = _rank(n, share)
    chances = betabinom.sf(np.arange(WINDOW), WINDOW, rank, n + 1 - rank)       # of more than so many
    rare = np.flatnonzero(chances < CHANCE / ends)
    return int(rare[0]) + 1 if len(rare) else None


def wanders(values: ArrayLike) -> bool:
    """Whether values (n,), in the order in which they came, resemble their neighbours more than chance explains.

    The variance of the mean rank of a tenth of them in a row, at most WINDOW, is held against that of SHUFFLES shuffled
    orders, whatever the values look like; true where at most 1 % of these have so large a variance.

    >>> wanders(np.arange(60)), wanders(np.arange(60) % 7)
    (True, False)
    """
    ordered = np.sort(given := np.asarray(values, dtype=np.float64))
    # Twice the mean rank of those that are equal.
    ranks = (np.searchsorted(ordered, given, "left") + np.searchsorted(ordered, given, "right")).astype(np.float64)
    width = max(2, min(WINDOW, len(ranks) // 10))
    if len(ranks) <= width:
        return False
    orders = np.random.default_rng(0).permuted(np.tile(ranks, (SHUFFLES, 1)), axis=1)
    sums = np.cumsum(np.pad(np.vstack([ranks, orders]), ((0, 0), (1, 0))), axis=1)
    variance = (sums[:, width:] - sums[:, :-width]).var(axis=1)
    return bool(np.sum(variance >= variance[0]) <= RARE * (SHUFFLES + 1))       # it itself is one of them


def bands(values: Mapping[str, ArrayLike]) -> dict[str, dict[str, Any]]:
    """Of values (n,) of good pictures, in the order in which they were taken; each may have another n.

    A band without a limit can report nothing.
    """
    made: dict[str, dict[str, Any]] = {}
    for name, given in values.items():
        ordered = np.sort(np.asarray(given, dtype=np.float64))
        outer, inner = (_ends(ordered, share, 4 * len(values)) for share in (SHARE, QUARTER))
        made[name] = outer | {"n": len(ordered), "quarter": None if wanders(given) else inner}
    return made


def lines(made: Bands) -> list[str]:
    """What a person should read of bands."""
    said = [f"{name} {one['low']:.4g} to {one['high']:.4g}" for name, one in made.items()]
    mute = [f"{name} ({one['n']})" for name, one in made.items() if one["limit"] is None]
    few = [f"too few pictures to tell a change from chance: {', '.join(mute)}"] if mute else []
    wandering = [name for name, one in made.items() if one.get("quarter", one) is None]
    alike = [f"neighbouring pictures resemble each other, so that only what leaves these ends is told: "
             f"{', '.join(wandering)}"] if wandering else []
    return ["light of good pictures: " + ", ".join(said), *few, *alike]


class Watch:
    """The last 50 pictures, and what of them has been reported; `file` keeps both from one start to the next.

    A file of another bundle or engine, which `origin` names, is begun anew.
    """

    def __init__(self, made: Bands, file: Path | None = None, origin: str = "") -> None:
        self.bands = {name: ends for name, one in made.items()
                      if (ends := [end for end in (one, one.get("quarter")) if end and end["limit"] is not None])}
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
        """A line for each value and side of which so many of the last pictures are outside; said once, and again only
        after no more than half as many were.
        """
        self.seen.append(values)
        said = []
        for name, ends in self.bands.items():
            for side in SIDES:
                out = [self._outside(name, side, end) for end in ends]
                if (name, side) in self.told and all(count <= end["limit"] // 2
                                                     for end, count in zip(ends, out, strict=True)):
                    self.told.remove((name, side))
                reached = [(end, count) for end, count in zip(ends, out, strict=True) if count >= end["limit"]]
                if reached and (name, side) not in self.told:
                    self.told.add((name, side))
                    said.append(f"the light has changed: {self._words(name, side, *reached[0])} (now "
                                f"{values[name]:.4g})")
        return said

    def save(self) -> None:
        """Into `file`, where there is one."""
        if self.file is not None:
            files.write(self.file, json.dumps({"origin": self.origin, "values": list(self.seen),
                                               "told": sorted(self.told)}) + "\n")

    def _words(self, name: str, side: str, end: Mapping[str, Any], count: int) -> str:
        """What was seen beyond an end of the band, or beyond a quartile."""
        last = f"in {count} of the last {len(self.seen)} pictures"
        if "n" in end:
            return f"{name} {side} that of good pictures, {end['low']:.4g} to {end['high']:.4g}, {last}"
        return f"{name} {side} {end['low' if side == 'below' else 'high']:.4g} {last}; of good ones a quarter is"

    def _outside(self, name: str, side: str, end: Mapping[str, Any]) -> int:
        values: Sequence[float] = [one[name] for one in self.seen]
        return sum(value < end["low"] if side == "below" else value > end["high"] for value in values)


def _ends(ordered: np.ndarray, share: float, ends: int) -> dict[str, Any]:
    """low and high with that share of values (n,) beyond each, and the limit, where there are so many ends."""
    n, rank = len(ordered), _rank(len(ordered), share)
    return {"low": float(ordered[rank - 1]), "high": float(ordered[n - rank]), "limit": limit(n, ends, share)}


def _rank(n: int, share: float) -> int:
    """r: of the value that is an end, counted from outside."""
    return max(1, int(share * (n + 1)))
