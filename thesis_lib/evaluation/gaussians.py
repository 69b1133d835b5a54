"""PaDiM's maps of pictures by Gaussians that have not learned from them and their block, without learning anew.

What `PaDiM.gather` collects and folds go in, a map of each picture comes out: those of a fit for each fold, at the
price of one fit. A block of b pictures changes the scatter matrix of N by rank b only (Woodbury): with A = S + m eps I,
m = N-b-1 and the block's deviations C (b, d) from the mean of all, the deviations from the mean of the others are M C,
M = I + 1 1^T / (N-b), their scatter is S - C^T M C, and with G = C A^-1 C^T and T = M G the squared distances are
m diag(T (I - T)^-1 M). Of a diagonal covariance sums of numbers take the place of matrices.
Letters: N training pictures and those added, P positions, d channels kept.
"""

from collections.abc import Sequence

import numpy as np
import torch

from thesis_lib.methods.padim import CACHED, PaDiM


def left_out(detector: PaDiM, collected: np.ndarray, folds: Sequence[Sequence[int]]) -> torch.Tensor:
    """(n, h, w) float32: maps of the pictures of all folds, in the order of their numbers.

    collected (N, P, D): as the detector gathers it, without NaN. Pictures in no fold are learned only.
    """
    n, positions, total = collected.shape
    channels = detector.drawn(total)
    squared = torch.full((n, positions), torch.nan, dtype=torch.float64)
    for start in range(0, positions, CACHED):
        place = slice(start, start + CACHED)
        vectors = torch.from_numpy(np.array(collected[:, place])[..., channels]).double().transpose(0, 1)  # (p, N, d)
        centred = vectors - vectors.mean(dim=1, keepdim=True)
        if detector.covariance == "diagonal":
            for fold in folds:
                squared[list(fold), place] = _of_diagonal(centred, fold, detector.eps).T
            continue
        scatter = centred.mT @ centred
        whitened: dict[int, torch.Tensor] = {}          # m -> C L^-T with A = L L^T, of all pictures
        for fold in folds:
            left = n - len(fold)
            if left - 1 not in whitened:
                whitened[left - 1] = _whitened(centred, scatter, (left - 1) * detector.eps)
            rows = whitened[left - 1][:, list(fold)]                                        # (p, b, d)
            mixed = torch.eye(len(fold), dtype=torch.float64) + 1 / left                    # M
            inner = mixed @ rows @ rows.mT                                                  # T
            solved = torch.linalg.solve(torch.eye(len(fold), dtype=torch.float64) - inner, mixed.expand_as(inner))
            squared[list(fold), place] = (left - 1) * (inner @ solved).diagonal(dim1=1, dim2=2).T
    numbers = sorted(number for fold in folds for number in fold)
    height, width = detector.grid_
    return squared[numbers].clamp(min=0).sqrt().float().unflatten(1, (height, width))


def _of_diagonal(centred: torch.Tensor, fold: Sequence[int], eps: float) -> torch.Tensor:
    """Squared distances (p, b) of a fold by the means and variances of the others; centred (p, N, d) adds up to 0."""
    rows = centred[:, list(fold)]                                                       # (p, b, d)
    left = centred.shape[1] - len(fold)
    mean = -rows.sum(dim=1, keepdim=True) / left                                        # of the others, (p, 1, d)
    scatter = (centred.square().sum(dim=1) - rows.square().sum(dim=1))[:, None] - left * mean.square()
    return ((rows - mean).square() / (scatter.clamp(min=0) / (left - 1) + eps)).sum(dim=2)


def _whitened(centred: torch.Tensor, scatter: torch.Tensor, ridge: float) -> torch.Tensor:
    """centred (p, N, d) L^-T, where L L^T = scatter (p, d, d) + ridge I."""
    ridged = scatter.clone()
    ridged.diagonal(dim1=1, dim2=2).add_(ridge)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(ridged), centred.mT, upper=False).mT
