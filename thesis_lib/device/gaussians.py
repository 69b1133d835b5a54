"""What PaDiM does after its network, in NumPy: for a device without torch and SciPy.

Patch vectors of one picture and what was learned go in, distances come out; a map goes in, it comes out smoothed.
Letters: P positions, D all channels, d channels kept, r rows and c columns of a panel of L^-1.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

TRUNCATE = 4.0          # a Gaussian ends after so many sigma, as SciPy's does


def distances(vectors: np.ndarray, channels: np.ndarray, mean: np.ndarray, factor: Sequence[np.ndarray]) -> np.ndarray:
    """|L^-1 (y - mu)| of vectors (P, D) -> (P,): channels (d,), mean (P, d), factor as `PaDiM.learn` makes it.

    The factor is panels (P, r, c), or for a diagonal covariance one (P, d).
    """
    y = vectors[:, channels] - mean
    if factor[0].ndim == 2:
        return np.sqrt(np.square(y * factor[0]).sum(axis=1))
    squared = np.zeros(len(y), y.dtype)
    for panel in factor:            # each number of it is used once: reading them takes the time, so einsum will do
        squared += np.square(np.einsum("prc,pc->pr", panel, y[:, :panel.shape[2]])).sum(axis=1)
    return np.sqrt(squared)


def read(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    """`distances` to what a .npz file holds of `PaDiM.state`."""
    with np.load(file, allow_pickle=False) as held:
        channels, mean = held["channels"], held["mean"]
        factor = [held[name] for name in sorted(held.files) if name.startswith("factor.")]
    return lambda vectors: distances(vectors, channels, mean, factor)


def smoothed(heat: np.ndarray, sigma: float) -> np.ndarray:
    """A map (h, w) after a Gaussian of sigma positions, mirrored at its rim; a mean of neighbours in which -inf has no
    part. It is -inf where all of them are. sigma 0 changes nothing.
    """
    if not sigma:
        return heat
    counted = heat > -np.inf
    if counted.all():
        return _blurred(heat, sigma)
    weights = _blurred(counted.astype(heat.dtype), sigma)
    sums = _blurred(np.where(counted, heat, 0), sigma)
    return np.where(weights > 0, sums / np.where(weights > 0, weights, 1), -np.inf).astype(heat.dtype)


def _blurred(heat: np.ndarray, sigma: float) -> np.ndarray:
    """Down the columns, then along the rows; each time added up in float64."""
    radius = int(TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma))
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(heat, [(radius, radius) if axis == other else (0, 0) for other in (0, 1)], mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis=axis)
        heat = (windows @ weights).astype(heat.dtype)
    return heat
