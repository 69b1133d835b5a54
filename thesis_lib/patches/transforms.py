"""What may stand in place of a level's last ReLU, and scalings of the embedding's channels.

Maps (B, C, h, w) go into an activation, vectors (N, D) into a scaling; both come out in their shape.
Source: the thesis' later state, sec. 3.5.3, Fig. 3.22 to 3.25: five functions times {none, N, N and W}.
Letters: N training vectors, D channels of the embedding.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from thesis_lib.core.errors import ThesisError

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "sigmoid": torch.sigmoid,
    "softmin": lambda x: F.softmin(x, dim=1),           # over the channels of one position, before pooling
}
SCALINGS = ("none", "normalise", "normalise_weight")
BINS = 100
FLOOR = 0.05            # of the mean deviation, added to each one: a channel that hardly varies must not explode
BLOCK = 1024            # rows at a time: as float64 they stay in the cache


@dataclass(frozen=True)
class Scaling:
    """(x - shift) * factor per channel; both (D,)."""

    shift: torch.Tensor
    factor: torch.Tensor

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        return (vectors - self.shift) * self.factor

    def in_place(self, vectors: np.ndarray) -> np.ndarray:
        """The same for an array (N, D) that may lie on disk; it is overwritten and returned."""
        for start in range(0, len(vectors), BLOCK):
            part = slice(start, start + BLOCK)
            vectors[part] = self(torch.from_numpy(vectors[part])).numpy()
        return vectors


def fit(kind: str, vectors: np.ndarray, base: float = 2.0) -> Scaling | None:
    """Scaling learned from training vectors (N, D); None for "none".

    normalise: (x_i - mu_i) / (sigma_i + 0.05 mean(sigma)).
    normalise_weight: then times D exp(H_i) / sum_j exp(H_j), with the entropy H_i of the channel's values in 100
    equal bins. The thesis' text takes logarithms to base 2, its code natural ones: `base` decides, and it matters
    inside the exponential.
    """
    if kind == "none":
        return None
    n = len(vectors)
    mean = sum(block.sum(axis=0) for block in _blocks(vectors)) / n
    sigma = np.sqrt(sum(np.square(block - mean).sum(axis=0) for block in _blocks(vectors)) / n)
    divisor = sigma + FLOOR * sigma.mean()
    if not divisor.all():
        raise ThesisError(f"scaling={kind}: no channel of the {n} training vectors varies")
    factor = 1 / divisor
    if kind == "normalise_weight":
        factor = factor * weights(entropies(vectors, base))
    return Scaling(torch.from_numpy(mean).float(), torch.from_numpy(factor).float())


def entropies(vectors: np.ndarray, base: float) -> np.ndarray:
    """H_i (D,) of each channel of (N, D): 100 bins of equal width between its smallest and largest value."""
    low = np.min([block.min(axis=0) for block in _blocks(vectors)], axis=0)
    high = np.max([block.max(axis=0) for block in _blocks(vectors)], axis=0)
    width = np.where(high > low, high - low, 1)
    counts = np.zeros((vectors.shape[1], BINS))
    for block in _blocks(vectors):
        bins = np.minimum((block - low) / width * BINS, BINS - 1).astype(int)
        for channel, values in enumerate(bins.T):
            counts[channel] += np.bincount(values, minlength=BINS)
    shares = counts / len(vectors)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1) / math.log(base)


def weights(entropy: np.ndarray) -> np.ndarray:
    """D exp(H_i) / sum_j exp(H_j), mean 1."""
    exponentials = np.exp(entropy - entropy.max())
    return len(entropy) * exponentials / exponentials.sum()


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """BLOCK rows at a time, as float64."""
    for start in range(0, len(vectors), BLOCK):
        yield np.asarray(vectors[start:start + BLOCK], dtype=np.float64)
