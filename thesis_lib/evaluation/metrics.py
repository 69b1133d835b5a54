"""Image AUROC with its interval, pixel AUROC, PRO: all on raw float64 scores.

Labels (0 nominal, 1 anomalous) or masks and scores or maps go in, plain floats from 0 to 1 come out. AUROC: thesis sec.
2.3; PRO: Bergmann et al. 2021.
Letters: n pictures, S seeds, H, W pixels, d defect pixels of all pictures.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import label as connected_regions

from thesis_lib.core.errors import ThesisError


def image_auroc(labels: ArrayLike, scores: ArrayLike, names: Sequence[str] | None = None) -> float:
    """Share of (anomalous, nominal) pairs in the right order, ties counting half; labels and scores (n,).

    Raises ValueError naming the pictures (by `names` or number) when a score is NaN or infinite, or when only one
    class is there: scaling or dropping them would change the number without a word.

    Of these four pairs three are in the right order and one ties:

    >>> image_auroc(labels=[0, 0, 1, 1], scores=[0.1, 0.4, 0.4, 0.8])
    0.875
    """
    labels, scores = _checked(labels, scores, names)
    return float(_mann_whitney(scores[labels == 0], scores[labels == 1]))


def auroc_interval(labels: ArrayLike, scores: ArrayLike, *, level: float = 0.95, resamples: int = 2000,
                   seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap over the test pictures, each class resampled by itself.

    scores (n,) or (S, n): with several seeds the mean AUROC over the seeds is resampled, all on the same pictures.
    (nan, nan) where a class has a single picture: drawn again, that is always itself, so there is no interval.

    So few pictures say next to nothing:

    >>> low, high = auroc_interval(labels=[0, 0, 0, 1, 1, 1], scores=[0.1, 0.2, 0.6, 0.4, 0.7, 0.9])
    >>> f"{image_auroc([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.7, 0.9]):.2f}, {low:.2f} to {high:.2f}"
    '0.89, 0.56 to 1.00'
    """
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))                                  # (S, n)
    return _interval(labels, rows, np.full(len(rows), 1 / len(rows)), level, resamples, seed)


def auroc_difference(labels: ArrayLike, scores: ArrayLike, baseline: ArrayLike, *, level: float = 0.95,
                     resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean AUROC of scores minus that of baseline, each (n,) or (S, n), and its interval: (difference, low, high).

    Paired: every resample takes the same pictures for both, so that what both find hard does not widen the interval.
    low and high are nan where a class has a single picture, as in `auroc_interval`.
    """
    rows, others = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (scores, baseline))
    # Mean of the first minus mean of the second: a weighted sum of the AUROCs of all rows together.
    weights = np.repeat([1 / len(rows), -1 / len(others)], [len(rows), len(others)])
    both = np.concatenate([rows, others])
    low, high = _interval(labels, both, weights, level, resamples, seed)
    return float(weights @ [image_auroc(labels, row) for row in both]), low, high


def pixel_auroc(masks: np.ndarray, maps: np.ndarray, inside: np.ndarray | None = None) -> float:
    """AUROC over all pixels, or those inside; masks and inside (n, H, W) bool, maps (n, H, W) float."""
    fewest, most, count = _false_alarms(masks, maps, inside)
    return 1 - int((fewest + most).sum()) / (2 * len(fewest) * count)       # integers up to here: exact


def pro(masks: np.ndarray, maps: np.ndarray, inside: np.ndarray | None = None, *, limit: float = 0.3) -> float:
    """Per-region overlap, averaged over false positive rates up to `limit` and divided by it (Bergmann et al. 2021).

    Each connected defect region weighs the same, whatever its size, so every defect pixel weighs one over the size of
    its region. The area is the sum of what each pixel adds from the false positive rate on at which it is found; no
    threshold is sampled. Only pixels inside count, where that is given; masks lie inside.
    """
    fewest, most, count = _false_alarms(masks, maps, inside)
    # 1. False positive rates between which a defect pixel is found: from `first` to `last`, where nominal pixels tie
    #    with it, the curve rises along a line.
    first, last = fewest / count, most / count
    # 2. Area below it up to the limit: a trapezium where it is found before, else the begun triangle, or nothing.
    beyond = np.maximum(limit - first, 0) ** 2 / (2 * np.maximum(last - first, 1 / count))
    area = np.where(last <= limit, limit - (first + last) / 2, beyond)
    # 3. Mean over the regions of the mean over the pixels of each, in the order of masks[masks] as `area` is.
    sizes = []
    for mask in np.asarray(masks, dtype=bool):
        regions, _ = connected_regions(mask, structure=np.ones((3, 3)))
        sizes.append(np.bincount(regions.ravel())[regions[mask]])
    return float(np.average(area / limit, weights=1 / np.concatenate(sizes)))


def pointing(masks: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the highest pixel of each map (n, H, W) lies in its mask; of several all must.

    The pointing game of Zhang et al. 2018 (Top-down neural attention), without its margin round the object.

    >>> pointing(np.array([[[True, False]]] * 2), np.array([[[0.9, 0.1]], [[0.5, 0.5]]])).tolist()
    [True, False]
    """
    highest = np.asarray(maps) == np.max(maps, axis=(1, 2), keepdims=True)
    return ~(highest & ~np.asarray(masks, dtype=bool)).any(axis=(1, 2))


def _false_alarms(masks: np.ndarray, maps: np.ndarray,
                  inside: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """For each defect pixel, in the order of masks[masks], the nominal pixels that score higher than it and those that
    score at least as high, both (d,); and how many nominal pixels there are.
    """
    masks, maps = np.asarray(masks, dtype=bool), np.asarray(maps)
    counted = np.ones_like(masks) if inside is None else np.asarray(inside, dtype=bool)
    _checked(masks[counted], maps[counted], None)
    nominal, scores = np.sort(maps[counted & ~masks]), maps[masks]
    order = np.argsort(scores)                          # looked up in turn, the places stay in the cache
    fewest, most = np.empty((2, len(scores)), dtype=np.int64)
    fewest[order] = len(nominal) - np.searchsorted(nominal, scores[order], "right")
    most[order] = len(nominal) - np.searchsorted(nominal, scores[order], "left")
    return fewest, most, len(nominal)


def _interval(labels: ArrayLike, scores: np.ndarray, weights: np.ndarray, level: float, resamples: int,
              seed: int) -> tuple[float, float]:
    """Bootstrap interval of the weighted sum of the AUROCs of scores (S, n); NaN where there is none."""
    from scipy.stats import bootstrap  # half a second, which no command should pay that measures nothing

    for row in scores:
        labels, _ = _checked(labels, row, None)
    good, bad = (np.flatnonzero(np.asarray(labels) == value) for value in (0, 1))
    if min(len(good), len(bad)) < 2:
        return math.nan, math.nan

    def combined(good_rows: np.ndarray, bad_rows: np.ndarray, axis: int = -1) -> np.ndarray:
        """Of resampled pictures, numbers (resamples, a) of nominal and (resamples, b) of anomalous ones."""
        values = [_mann_whitney(row[good_rows], row[bad_rows]) for row in scores]
        return np.tensordot(weights, values, axes=1)

    result = bootstrap((good, bad), combined, vectorized=True, n_resamples=resamples, batch=250,
                       confidence_level=level, method="percentile", rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _mann_whitney(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """AUROC along the last axis; good (..., a), bad (..., b).

    (R - b (b + 1) / 2) / (a b), with R the sum of the ranks of the anomalous scores among all: the same share of pairs.
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([good, bad], axis=-1), axis=-1)[..., good.shape[-1]:]
    b = bad.shape[-1]
    return (ranks.sum(axis=-1) - b * (b + 1) / 2) / (good.shape[-1] * b)


def _checked(labels: ArrayLike, scores: ArrayLike, names: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """labels int and scores float64, both (n,); ThesisError where they have no AUROC."""
    labels, scores = np.asarray(labels).astype(int), np.asarray(scores, dtype=np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ThesisError(f"labels {labels.shape} and scores {scores.shape} must be two lists of the same length")
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        listed = ", ".join(str(names[i] if names is not None else i) for i in wrong[:5])
        raise ThesisError(f"{len(wrong)} of {len(scores)} scores are NaN or infinite, first: {listed}")
    if not labels.size or labels.min() == labels.max():
        only = "nominal" if len(labels) and labels[0] == 0 else "anomalous"
        raise ThesisError(f"AUROC needs nominal and anomalous pictures; all {len(labels)} here are {only}")
    return labels, scores
