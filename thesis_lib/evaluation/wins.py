"""Which defective picture beats which good one: all that AUROCs of many configurations on the same pictures depend on.

Scores go in, a `Wins` of each configuration comes out, and from several of them intervals, paired differences, and how
much choosing the best of them by the very same pictures flatters. Nothing is fitted again.
Letters: G good and B defective pictures, S seeds, R resamples, F folds, M configurations.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
RESAMPLES = 2000
BATCH = 250             # resamples that are drawn at a time: as `metrics.auroc_interval` does, so that both agree


@dataclass(frozen=True)
class Wins:
    """`won` (G, B): 1 where the defective picture scores higher, 1/2 where they tie, the mean over seeds.

    folds (G,): scores are compared within a fold alone; `auroc` is the mean over the folds of the share that is won.
    Test pictures that one detector scores are one fold.

    >>> two = Wins.of([0.1, 0.9], [0.5, 0.5])
    >>> two.won.tolist(), two.auroc
    ([[1.0, 1.0], [0.0, 0.0]], 0.5)
    """

    won: np.ndarray
    folds: np.ndarray

    @classmethod
    def of(cls, good: ArrayLike, bad: ArrayLike) -> "Wins":
        """Of scores (G,) and (B,), or (S, G) and (S, B) of several seeds, by detectors that score all pictures."""
        won = np.mean([_won(*scores) for scores in zip(np.atleast_2d(good), np.atleast_2d(bad), strict=True)], axis=0)
        return cls(won, np.zeros(len(won), dtype=int))

    @classmethod
    def folded(cls, runs: Sequence[Sequence[tuple[Sequence[int], ArrayLike, ArrayLike]]]) -> "Wins":
        """Of runs with one seed each, and in it for each fold the numbers of its good pictures, their scores (g,), and
        those of all defective ones (B,) by the same detector. The folds of all runs are the same.
        """
        count = sum(len(numbers) for numbers, _, _ in runs[0])
        won, folds = np.zeros((count, len(np.asarray(runs[0][0][2])))), np.zeros(count, dtype=int)
        for run in runs:
            for fold, (numbers, good, bad) in enumerate(run):
                won[list(numbers)] += _won(np.asarray(good), np.asarray(bad)) / len(runs)
                folds[list(numbers)] = fold
        return cls(won, folds)

    @property
    def auroc(self) -> float:
        """The mean over the folds."""
        return float(self.values(np.ones((1, len(self.won))), np.ones((1, self.won.shape[1])))[0])

    def roc(self, points: int = 201) -> tuple[np.ndarray, np.ndarray]:
        """Shares of good and of defective pictures that are flagged, (points,) each, the mean over the folds.

        A defective picture is found as soon as the good ones are flagged that it does not beat.
        """
        alarms, found = np.linspace(0, 1, points), np.zeros(points)
        for fold in np.unique(self.folds):
            needed = 1 - self.won[self.folds == fold].mean(axis=0)                          # (B,)
            found += (needed[:, None] <= alarms + 1e-9).mean(axis=0) / len(np.unique(self.folds))
        return alarms, found

    def only(self, bad: ArrayLike) -> "Wins":
        """Against some of the defective pictures alone, given by number or (B,) bool."""
        return Wins(self.won[:, np.asarray(bad)], self.folds)

    def values(self, good: np.ndarray, bad: np.ndarray) -> np.ndarray:
        """(R,): AUROC where the pictures count so often, good (R, G) and bad (R, B). A fold of which no good picture
        counts is left out; NaN where none counts at all.
        """
        weights = np.zeros(good.shape)
        present = np.zeros(len(good))
        with np.errstate(invalid="ignore", divide="ignore"):
            for fold in np.unique(self.folds):
                inside = self.folds == fold
                total = good[:, inside].sum(axis=1, keepdims=True)
                weights[:, inside] = np.where(total > 0, good[:, inside] / total, 0)
                present += total[:, 0] > 0
            return ((weights @ self.won) * bad).sum(axis=1) / bad.sum(axis=1) / present


def interval(wins: Wins, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the AUROC over the pictures, of each fold and class by itself; that of
    `metrics.auroc_interval` where there is one fold. NaN where a class has a single picture.
    """
    return _percentiles(wins, np.concatenate([wins.values(*drawn) for drawn in _drawn(_key(wins), seed)]))


def difference(one: Wins, other: Wins, *, seed: int = 0) -> tuple[float, float, float]:
    """AUROC of one minus that of the other, with its paired interval: every resample has the same pictures for both;
    where the two were not scored on the same good ones, each has its own.
    """
    resampled = [one.values(*first) - other.values(*second) for first, second in _together([one, other], seed)]
    return one.auroc - other.auroc, *_percentiles(one, np.concatenate(resampled))


def optimism(wins: Sequence[Wins], *, seed: int = 0) -> float:
    """By how much the AUROC of the best of M configurations is flattered, as it was chosen by these very pictures.

    In each resample the configuration that is best on the drawn pictures is valued on those that were not drawn; the
    mean of the difference over all resamples. Of equal ones the first is chosen. NaN where a class has a single
    picture. Efron and Tibshirani 1993, ch. 17.
    """
    lost: list[np.ndarray] = []
    for draws in _together(wins, seed):
        drawn = np.stack([one.values(good, bad) for one, (good, bad) in zip(wins, draws, strict=True)])     # (M, r)
        left = np.stack([one.values(1.0 * (good == 0), 1.0 * (bad == 0))
                         for one, (good, bad) in zip(wins, draws, strict=True)])
        chosen, column = drawn.argmax(axis=0), np.arange(drawn.shape[1])
        lost.append(drawn[chosen, column] - left[chosen, column])
    differences = np.concatenate(lost)
    valid = differences[np.isfinite(differences)]
    return float(valid.mean()) if min(wins[0].won.shape) > 1 and len(valid) else math.nan


def _together(several: Sequence[Wins], seed: int) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """For each batch of draws (good, bad) of each: the same defective pictures for all, and the same good ones for all
    that were scored on as many in the same folds.
    """
    own = [_drawn(_key(one), seed) for one in several]
    for number, (_, bad) in enumerate(own[0]):
        yield [(draws[number][0], bad) for draws in own]


def _won(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """(G, B)."""
    good, bad = np.asarray(good, dtype=float)[:, None], np.asarray(bad, dtype=float)[None]
    return (bad > good) + 0.5 * (bad == good)


def _key(wins: Wins) -> tuple[tuple[int, ...], int]:
    """What the draws depend on: the fold of each good picture, and B."""
    return tuple(wins.folds.tolist()), wins.won.shape[1]


@lru_cache(maxsize=4)
def _drawn(key: tuple[tuple[int, ...], int], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """How often each picture is drawn, (BATCH, G) and (BATCH, B) a batch; each fold of good ones by itself. All
    configurations on the same pictures share them.
    """
    of_good, bad = key
    folds, rng, drawn = np.array(of_good), np.random.default_rng(seed), []
    for _ in range(RESAMPLES // BATCH):
        good = np.zeros((BATCH, len(folds)))
        for fold in np.unique(folds):
            members = np.flatnonzero(folds == fold)
            good[:, members] = _counts(rng, len(members))
        drawn.append((good, _counts(rng, bad)))
    return drawn


def _counts(rng: np.random.Generator, n: int) -> np.ndarray:
    """(BATCH, n): how often each of n is drawn in n draws."""
    chosen = rng.integers(0, n, (BATCH, n)) + n * np.arange(BATCH)[:, None]
    return np.bincount(chosen.ravel(), minlength=BATCH * n).reshape(BATCH, n).astype(float)


def _percentiles(wins: Wins, resampled: np.ndarray) -> tuple[float, float]:
    if min(wins.won.shape) < 2:
        return math.nan, math.nan
    low, high = np.percentile(resampled, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return round(float(low), 12), round(float(high), 12)        # sums of weights make 1 of 0.9999999999999997
