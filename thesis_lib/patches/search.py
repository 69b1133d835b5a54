"""Exact nearest neighbours of query patches in a memory bank: vectors in, distances and bank rows out.

Six engines, the same answer: none of them approximates. The thesis compares FAISS and SciPy's cdist (Fig. 3.3).
Letters: Q queries, M bank rows, D embedding, k neighbours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import faiss
import numpy as np
import torch
from scipy.spatial.distance import cdist

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.nearest import nearest
from thesis_lib.core.threads import blas_threads
from thesis_lib.networks.torch_setup import check_finite, torch_threads

DISTANCES = ("l2", "l2_squared")
BLOCK = 2**21           # distances at a time, 8 MB; measured with benchmarks/bench_search.py
FEWEST = 64             # queries at a time even so: with fewer a product is slow
MANY = 128_000          # numbers of all queries together, from which on FAISS (1.15) multiplies matrices and is faster
CLOSE = 1e-3            # squared distance by squared length: below it |x|^2 - 2xy + |y|^2 has lost half its digits
FIRST = 200             # bank rows, and a tenth of a larger bank, that bound a distance; see `bounds`


@dataclass
class Search:
    """`fit` a bank (M, D), then `query` (Q, D) -> distances (Q, k) float32 ascending, indices (Q, k) int64."""

    distance: str = "l2"                    # l2 | l2_squared: what `query` returns
    threads: int | None = None              # None keeps the engine's own setting
    bank: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ThesisError(f"distance={self.distance!r}: needs one of {', '.join(DISTANCES)}")

    def fit(self, bank: torch.Tensor) -> Self:
        """Keep the bank (M, D), with what the search needs to know of it beforehand; ThesisError where it holds NaN."""
        check_finite("bank", bank)
        self.bank = bank.contiguous().float()
        self.__dict__.pop("_first", None)       # of an earlier bank
        return self

    def query(self, vectors: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances (Q, k) and bank rows (Q, k) of the k nearest, the nearest one first.

        Raises ThesisError for vectors with NaN or infinity, and for distances beyond float32: FAISS would answer with
        a finite number and row -1.

        >>> bank = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> Torch().fit(bank).query(torch.tensor([[3.0, 3.0]]), k=2)
        (tensor([[1.0000, 4.2426]]), tensor([[1, 0]]))
        """
        if k > len(self.bank):
            raise ThesisError(f"k={k} neighbours asked of a bank of {len(self.bank)} rows")
        check_finite("vectors", vectors)
        squared, indices = self._nearest(vectors.contiguous().float(), k)
        if indices.numel() and (int(indices.min()) < 0 or not squared.isfinite().all()):
            raise ThesisError("vectors: their squared distances to the bank are beyond the range of float32")
        squared = squared.clamp_min(0)      # |x|^2 - 2xy + |y|^2 rounds below zero near a bank row
        return (squared if self.distance == "l2_squared" else squared.sqrt()), indices

    def bounds(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches (P, D) of one picture -> distances, indices (P, 1) as of `query`: exact for the farthest patch, of
        the others the distance to some row, smaller than that of the farthest.

        A shorter way to the score of a picture, which only asks for the patch farthest from the bank. The first rows,
        which a greedy coreset has spread over everything nominal, bound the distance to all. Nothing is approximated.
        """
        # 1. An upper bound of every patch: the distance to the nearest of the first rows alone.
        distances, indices = self._first.query(vectors)
        # 2. The whole bank for the patches with the largest bounds, some at a time; `farthest` is s* among them.
        order, farthest = distances[:, 0].argsort(descending=True), -1.0
        for part in order.split(FEWEST):
            # 3. The largest bound that is left lies below s*: no other patch can be the farthest.
            if self._first is self or distances[part[0], 0] < farthest:
                break
            distances[part], indices[part] = self.query(vectors[part])
            farthest = max(farthest, distances[part].max().item())
        return distances, indices

    @cached_property
    def _first(self) -> Self:
        first = max(FIRST, len(self.bank) // 10)
        return type(self)(self.distance, self.threads).fit(self.bank[:first]) if first < len(self.bank) else self

    def _nearest(self, vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared distances (Q, k) ascending and indices (Q, k)."""
        raise NotImplementedError


class Faiss(Search):
    """faiss.IndexFlatL2: brute force in float32, no quantisation and no index structure."""

    def fit(self, bank: torch.Tensor) -> Self:
        super().fit(bank)
        self.index = faiss.IndexFlatL2(self.bank.shape[1])
        self.index.add(self.bank.numpy())
        return self

    def _nearest(self, vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        with _faiss_threads(self.threads):
            squared, indices = self.index.search(vectors.numpy(), k)
        return torch.from_numpy(squared), torch.from_numpy(indices)


class Cdist(Search):
    """SciPy: every distance written out in float64, on one thread, then sorted out."""

    def _nearest(self, vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        squared = cdist(vectors.numpy(), self.bank.numpy(), "sqeuclidean")              # (Q, M)
        if k == 1:
            indices = squared.argmin(axis=1, keepdims=True)
        else:
            indices = np.argpartition(squared, k - 1, axis=1)[:, :k]
            order = np.take_along_axis(squared, indices, axis=1).argsort(axis=1, kind="stable")
            indices = np.take_along_axis(indices, order, axis=1)
        distances = np.take_along_axis(squared, indices, axis=1).astype(np.float32)
        return torch.from_numpy(distances), torch.from_numpy(indices)


class Torch(Search):
    """|y|^2 - 2xy in float32: a matrix product per block of queries, whose smallest k rows are taken at once.

    Their distances are then written out: the form with the product cancels where they are small. A block's products
    are still in the cache when they are looked at, and all blocks reuse one buffer. The usual 1024 queries and 1000
    rows are one block: with several threads every further one would be a wait for each other.
    """

    def fit(self, bank: torch.Tensor) -> Self:
        super().fit(bank)
        self.norms = self.bank.square().sum(dim=1)                                      # (M,)
        return self

    def _nearest(self, vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = max(1, min(len(vectors), max(FEWEST, BLOCK // len(self.bank))))
        buffer = torch.empty(rows, len(self.bank))
        nearest, indices = torch.empty(len(vectors), k), torch.empty(len(vectors), k, dtype=torch.int64)
        with torch_threads(self.threads):
            for start in range(0, len(vectors), rows):
                part = slice(start, start + rows)
                partial = buffer[:len(vectors[part])]                                   # (rows, M), |x|^2 missing
                torch.addmm(self.norms, vectors[part], self.bank.T, alpha=-2, out=partial)
                if k == 1:      # NumPy's argmin is vectorised, torch's minimum with its place is not
                    indices[part, 0] = torch.from_numpy(partial.numpy().argmin(axis=1))
                else:
                    indices[part] = torch.topk(partial, k, dim=1, largest=False).indices
                apart = self.bank.index_select(0, indices[part].flatten()).view(-1, k, vectors.shape[1])
                apart.sub_(vectors[part, None])                                         # (rows, k, D)
                nearest[part] = torch.linalg.vecdot(apart, apart)
            return _ascending(nearest, indices)


class Auto(Torch):
    """By shape: FAISS for many queries, `Torch` for few. Distances that cancel in FAISS' product are written out."""

    def _nearest(self, vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        if vectors.numel() < MANY:
            return super()._nearest(vectors, k)
        with _faiss_threads(self.threads):
            nearest, indices = map(torch.from_numpy, faiss.knn(vectors.numpy(), self.bank.numpy(), k))
        close = nearest < CLOSE * self.norms[indices]
        if close.any():
            apart = self.bank[indices[close]] - vectors[close.nonzero()[:, 0]]
            nearest[close] = torch.linalg.vecdot(apart, apart)
            return _ascending(nearest, indices)
        return nearest, indices


class Pruned(Auto):
    """`Auto`, and whoever predicts a picture asks it for `bounds` first: measured with benchmarks/bench_picture.py."""


class Numpy(Search):
    """The same product in NumPy: what a bundle searches with on a device."""

    def _nearest(self, vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        with blas_threads(self.threads):
            squared, indices = nearest(vectors.numpy(), self.bank.numpy(), k)
        return torch.from_numpy(squared), torch.from_numpy(indices)


ENGINES = {"auto": Auto, "faiss": Faiss, "cdist": Cdist, "torch": Torch, "pruned": Pruned, "numpy": Numpy}


def _ascending(nearest: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the order of the distances (Q, k)."""
    if indices.shape[1] > 1:
        nearest, order = nearest.sort(dim=1, stable=True)
        indices = indices.gather(1, order)
    return nearest, indices


@contextmanager
def _faiss_threads(threads: int | None) -> Iterator[None]:
    """FAISS on so many threads, and on as many as before afterwards; None leaves it."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
