"""Image AUROC with its interval, pixel AUROC, PRO: all on raw float64 scores.

Letters: n pictures, S seeds, H, W pixels.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import label as connected_regions
from scipy.stats import bootstrap, rankdata
from sklearn.metrics import roc_auc_score

from thesis_lib.core.errors import ThesisError


def image_auroc(labels: Sequence[int], scores: Sequence[float], names: Sequence[str] | None = None) -> float:
    """Share of (anomalous, nominal) pairs in the right order, ties counting half; labels and scores (n,).

    Raises ValueError naming the pictures (by `names` or number) when a score is NaN or infinite, or when only one
    class is there: scaling or dropping them would change the number without a word.
    """
    labels, scores = _checked(labels, scores, names)
    return float(roc_auc_score(labels, scores))


def auroc_interval(labels: Sequence[int], scores: np.ndarray, *, level: float = 0.95, resamples: int = 2000,
                   seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap over the test pictures, each class resampled by itself.

    scores (n,) or (S, n): with several seeds the mean AUROC over the seeds is resampled, all on the same pictures.
    """
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    return _interval(labels, scores, np.full(len(scores), 1 / len(scores)), level, resamples, seed)


def auroc_difference(labels: Sequence[int], scores: np.ndarray, baseline: np.ndarray, *, level: float = 0.95,
                     resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean AUROC of scores minus that of baseline, each (n,) or (S, n), and its interval: (difference, low, high).

    Paired: every resample takes the same pictures for both, so that what both find hard does not widen the interval.
    """
    scores, baseline = (np.atleast_2d(np.asarray(one, dtype=np.float64)) for one in (scores, baseline))
    weights = np.repeat([1 / len(scores), -1 / len(baseline)], [len(scores), len(baseline)])
    both = np.concatenate([scores, baseline])
    low, high = _interval(labels, both, weights, level, resamples, seed)
    return float(weights @ [image_auroc(labels, row) for row in both]), low, high


def pixel_auroc(masks: np.ndarray, maps: np.ndarray) -> float:
    """AUROC over all pixels; masks (n, H, W) bool, maps (n, H, W) float."""
    fewest, most, count = _false_alarms(masks, maps)
    return 1 - int((fewest + most).sum()) / (2 * len(fewest) * count)       # integers up to here: exact


def pro(masks: np.ndarray, maps: np.ndarray, *, limit: float = 0.3) -> float:
    """Per-region overlap, averaged over false positive rates up to `limit` and divided by it (Bergmann et al. 2021).

    Each connected defect region weighs the same, whatever its size, so every defect pixel weighs one over the size of
    its region. The area is the sum of what each pixel adds from the false positive rate on at which it is found; no
    threshold is sampled.
    """
    fewest, most, count = _false_alarms(masks, maps)
    first, last = fewest / count, most / count          # of nominal pixels that tie with it, half are found before it
    beyond = np.maximum(limit - first, 0) ** 2 / (2 * np.maximum(last - first, 1 / count))
    area = np.where(last <= limit, limit - (first + last) / 2, beyond)
    sizes = []
    for mask in np.asarray(masks, dtype=bool):
        regions, _ = connected_regions(mask, structure=np.ones((3, 3)))
        sizes.append(np.bincount(regions.ravel())[regions[mask]])
    return float(np.average(area / limit, weights=1 / np.concatenate(sizes)))


def _false_alarms(masks: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """For each defect pixel, in the order of masks[masks], the nominal pixels that score higher than it and those that
    score at least as high, both (d,); and how many nominal pixels there are.
    """
    masks, maps = np.asarray(masks, dtype=bool), np.asarray(maps)
    _checked(masks.ravel(), maps.ravel(), None)
    nominal, scores = np.sort(maps[~masks]), maps[masks]
    order = np.argsort(scores)                          # looked up in turn, the places stay in the cache
    counts = np.empty((2, len(scores)), dtype=np.int64)
    for count, side in zip(counts, ("right", "left"), strict=True):
        count[order] = len(nominal) - np.searchsorted(nominal, scores[order], side)
    return *counts, len(nominal)


def _interval(labels, scores, weights, level, resamples, seed) -> tuple[float, float]:
    """Bootstrap interval of the weighted sum of the AUROCs of scores (S, n)."""
    for row in scores:
        labels, _ = _checked(labels, row, None)
    good, bad = (np.flatnonzero(labels == value) for value in (0, 1))

    def combined(good_rows, bad_rows, axis=-1):
        values = [_mann_whitney(row[good_rows], row[bad_rows]) for row in scores]
        return np.tensordot(weights, values, axes=1)

    result = bootstrap((good, bad), combined, vectorized=True, n_resamples=resamples, batch=250,
                       confidence_level=level, method="percentile", rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _mann_whitney(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """AUROC along the last axis; good (..., a), bad (..., b)."""
    ranks = rankdata(np.concatenate([good, bad], axis=-1), axis=-1)[..., good.shape[-1]:]
    b = bad.shape[-1]
    return (ranks.sum(axis=-1) - b * (b + 1) / 2) / (good.shape[-1] * b)


def _checked(labels, scores, names) -> tuple[np.ndarray, np.ndarray]:
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
