"""Image AUROC with its interval, pixel AUROC, PRO: all on raw float64 scores.

Letters: n pictures, S seeds, H, W pixels.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import label as connected_regions
from scipy.stats import bootstrap, rankdata
from sklearn.metrics import auc, roc_auc_score, roc_curve


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
    labels, scores = _checked(np.asarray(masks).ravel(), np.asarray(maps).ravel(), None)
    return float(roc_auc_score(labels, scores))


def pro(masks: np.ndarray, maps: np.ndarray, *, limit: float = 0.3) -> float:
    """Per-region overlap, averaged over false positive rates up to `limit` and divided by it (Bergmann et al. 2021).

    Each connected defect region weighs the same, whatever its size: that is the ROC curve with every defect pixel
    weighted by one over the size of its region, so no threshold is sampled.
    """
    masks = np.asarray(masks, dtype=bool)
    weights = np.ones(masks.shape, dtype=np.float64)
    for mask, weight in zip(masks, weights, strict=True):
        regions, _ = connected_regions(mask, structure=np.ones((3, 3)))
        weight[mask] = 1.0 / np.bincount(regions.ravel())[regions[mask]]
    labels, scores = _checked(masks.ravel(), np.asarray(maps).ravel(), None)
    fpr, overlap, _ = roc_curve(labels, scores, sample_weight=weights.ravel())
    inside = fpr <= limit       # the curve's own points: at a vertical step np.interp would keep its upper end only
    return float(auc(np.append(fpr[inside], limit), np.append(overlap[inside], np.interp(limit, fpr, overlap))) / limit)


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
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be two lists of the same length")
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        listed = ", ".join(str(names[i] if names is not None else i) for i in wrong[:5])
        raise ValueError(f"{len(wrong)} of {len(scores)} scores are NaN or infinite, first: {listed}")
    if len(np.unique(labels)) != 2:
        only = "nominal" if len(labels) and labels[0] == 0 else "anomalous"
        raise ValueError(f"AUROC needs nominal and anomalous pictures; all {len(labels)} here are {only}")
    return labels, scores
