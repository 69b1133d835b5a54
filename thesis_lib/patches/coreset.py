"""Choose the rows of the memory bank, greedy k-centre (farthest first) or random: features in, row indices out.

Letters: N patches of all training pictures, D embedding, M rows chosen. Source: Roth et al. 2022, Alg. 1;
thesis sec. 3.2.2. Never an N x N matrix nor a copy of the features: one distance per patch is kept.
"""

import logging
import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.progress import track
from thesis_lib.patches.search import Faiss

BLOCK = 65_536          # rows read at a time
# Of the farthest-first search; no choice depends on them. Measured with benchmarks/bench_coreset.py.
SINK = 0.94             # the floor as a share of the largest squared distance
COMPETING = 4096        # rows at most that are kept up to date pick by pick
TILE = 1024             # rows that catch up at a time, and picks at a time that they catch up with
METHODS = ("greedy", "random")
log = logging.getLogger("thesis_lib")


def size(bank: int | str, n: int) -> int:
    """Rows of a bank given as a number (1000) or a share ("1%") of n patches; ValueError names both numbers."""
    text = str(bank).strip()
    try:
        rows = int(n * float(text[:-1]) / 100) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        raise ThesisError(f"bank={bank!r}: needs a number of rows such as 1000 or a share such as 1%") from None
    if not 1 <= rows <= n:
        raise ThesisError(f"bank={bank!r}: is {rows} rows, needs 1 to {n}, the patches of the training pictures")
    return rows


def check_memory(n: int, dim: int, limit_gb: float | None, projection: int | None = None) -> float:
    """Gigabytes that n patches of dim float32 need, with what greedy keeps of each; raises above the limit.

    projection adds the copy of so many dimensions; not counted is the workspace, about 0.1 GB at 128 dimensions.
    limit_gb None means three quarters of this machine's memory.
    """
    copy = projection if projection and projection < dim else 0
    notes = 6 * 8       # bytes of a patch: distance, picks seen, and four lists of indices while all catch up
    return memory.check(n * (4 * (dim + copy) + notes) / 1e9, limit_gb, f"{n} patches of dimension {dim}",
                        "use fewer pictures, a deeper level or a pooling stride, a smaller d")


def select(features: np.ndarray, rows: int, *, method: str = "greedy", seed: int = 0,
           projection: int | None = None) -> np.ndarray:
    """Indices (rows,) of the chosen rows of features (N, D) float32, in the order of choice.

    greedy: the first row is drawn from `seed`, each next one is the row farthest (L2, in float64) from all chosen so
    far, the lowest index where several are. No row is chosen twice.
    projection: distances are measured after a random linear map to that many dimensions (Johnson-Lindenstrauss).

    >>> patches = np.array([[0.0], [1.0], [7.0], [10.0]], dtype=np.float32)
    >>> select(patches, 3, seed=0)              # 10 by chance, 0 is farthest from it, 7 from both
    array([3, 0, 2])
    """
    if method not in METHODS:
        raise ThesisError(f"coreset={method!r}: needs one of {', '.join(METHODS)}")
    n = len(features)
    if not 1 <= rows <= n:
        raise ThesisError(f"{rows} rows asked of {n} patches")
    if rows == n:
        return np.arange(n)
    if method == "random":
        return np.random.default_rng(seed).choice(n, rows, replace=False)
    log.info("coreset: %d of %d patches", rows, n)
    order = islice(greedy(features, seed=seed, projection=projection), rows)
    return np.fromiter(track(order, rows, "coreset"), np.int64, count=rows)


def greedy(features: np.ndarray, *, seed: int, projection: int | None = None) -> Iterator[int]:
    """All rows of features in the order in which `select` chooses them."""
    rng = np.random.default_rng(seed)
    first = int(rng.integers(len(features)))
    if projection and projection < features.shape[1]:
        features = _project(features, projection, rng)
    return _farthest_first(np.asarray(features), first)


def radius(features: np.ndarray, bank: np.ndarray) -> float:
    """Largest distance of any row to its nearest bank row: what greedy k-centre keeps small."""
    search = Faiss().fit(torch.from_numpy(np.ascontiguousarray(bank)))
    return max(float(search.query(block)[0].max()) for _, block in _blocks(features))


def _farthest_first(features: np.ndarray, first: int) -> Iterator[int]:
    """Indices of greedy k-centre without end (N of them): the first given, each next one farthest from all before.

    Exact and lazy. A distance to the nearest chosen row only shrinks, so an old one is an upper bound: a row whose
    bound lies below `floor` cannot be next while another row's true distance is above it. So the picks are made among
    the few rows above the floor; when none is left there, the floor sinks, and only the rows that come to lie
    above it catch up with the picks they missed, all of them in one matrix product.
    """
    # 1. The distance of every row to the first one; from here on all bounds are finite.
    chosen = [first]
    nearest = np.full(len(features), np.inf)        # (N,) squared, to the nearest of the first `seen` chosen rows
    seen = np.zeros(len(features), dtype=np.int64)
    yield first
    _catch_up(np.arange(len(features)), features, chosen, nearest, seen)
    if not np.isfinite(nearest).all():
        raise ThesisError("features: needs finite numbers, there is NaN or infinity among them")
    nearest[first] = -1                             # below every distance: no row is chosen twice
    while floor := SINK * nearest.max():
        # 2. The floor sinks below the largest bound. Rows above it catch up, and stay if their true distance is, too.
        rows = np.flatnonzero(nearest > floor)
        _catch_up(rows, features, chosen, nearest, seen)
        rows = rows[nearest[rows] > floor]
        # 3. Where too many are left, the floor rises to the distance that COMPETING rows are above.
        if len(rows) > COMPETING:
            floor = np.partition(nearest[rows], -COMPETING)[-COMPETING]
            if not (nearest[rows] > floor).any():   # so many tie for the largest: then their lowest indices
                rows, floor = rows[nearest[rows] == floor][:COMPETING], np.nextafter(floor, 0)
            rows = rows[nearest[rows] > floor]
        # 4. Picks among these rows alone, each kept up to date with every pick. Once half of them have sunk to the
        # floor they leave; when none is above it, 2. again.
        while len(rows):
            vectors, distances = features[rows].astype(np.float64), nearest[rows]
            while 2 * np.count_nonzero(distances > floor) > len(rows):
                best = int(distances.argmax())      # the lowest index among ties
                chosen.append(int(rows[best]))
                yield chosen[-1]
                np.minimum(distances, _squared(vectors, vectors[best]), out=distances)
                distances[best] = -1
            nearest[rows], seen[rows] = distances, len(chosen)
            rows = rows[distances > floor]
    yield from np.flatnonzero(nearest == 0).tolist()        # nothing but copies of chosen rows is left


def _catch_up(rows: np.ndarray, features: np.ndarray, chosen: list[int], nearest: np.ndarray, seen: np.ndarray) -> None:
    """Bring `nearest` of these rows up to date with all chosen ones.

    The matrix product only says which chosen row is nearest, the distance is then written out: its rounding, some
    1e-15 of |x|^2 in float64, matters only where two chosen rows are equally near to within that.
    """
    # Sorted by the picks they have seen, the rows that lack a tile of picks are always the first ones.
    rows = rows[np.argsort(seen[rows], kind="stable")]
    for start in range(int(seen[rows].min()), len(chosen), TILE):
        stop = min(start + TILE, len(chosen))
        centres = features[chosen[start:stop]].astype(np.float64)
        norms = torch.from_numpy(_squared(centres, 0))          # |c|^2 of the chosen rows c
        behind = rows[seen[rows] < stop]
        for at in range(0, len(behind), TILE):
            part = behind[at:at + TILE]
            missed = max(int(seen[part[0]]) - start, 0)     # of the row that missed most: they are in this order
            vectors = features[part].astype(np.float64)
            # |c|^2 - 2xc: the distance of row x to c but for |x|^2, which does not decide which c is nearest.
            closest = torch.addmm(norms[missed:], torch.from_numpy(vectors), torch.from_numpy(centres[missed:]).T,
                                  alpha=-2).argmin(dim=1).numpy()
            nearest[part] = np.minimum(nearest[part], _squared(vectors, centres[missed:][closest]))
        seen[behind] = stop


def _squared(vectors: np.ndarray, others: np.ndarray | int) -> np.ndarray:
    """Squared distances (b,) of float64 rows, the difference written out: equal rows get equal ones, copies get 0."""
    difference = vectors - others
    return np.einsum("ij,ij->i", difference, difference)


def _project(features: np.ndarray, dim: int, rng: np.random.Generator) -> np.ndarray:
    """features (N, D) times a random matrix (D, dim) that keeps lengths on average."""
    matrix = torch.from_numpy(rng.standard_normal((features.shape[1], dim), dtype=np.float32) / math.sqrt(dim))
    return torch.cat([block @ matrix for _, block in _blocks(features)]).numpy()


def _blocks(features: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, BLOCK rows from there on), one block after the other."""
    for start in range(0, len(features), BLOCK):
        yield start, torch.from_numpy(np.asarray(features[start:start + BLOCK]))
