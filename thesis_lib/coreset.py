"""Choose the rows of the memory bank: greedy k-centre (farthest first) or random.

Letters: N patches of all training pictures, D embedding, M rows chosen. Source: Roth et al. 2022, Alg. 1;
thesis sec. 3.2.2. Never an N x N matrix: one distance per patch is kept, features are read block by block.
"""

import logging
import math

import numpy as np
import torch

from thesis_lib import memory
from thesis_lib.progress import track
from thesis_lib.search import Faiss

BLOCK = 65_536          # rows read at a time
METHODS = ("greedy", "random")
log = logging.getLogger("thesis_lib")


def size(bank: int | str, n: int) -> int:
    """Rows of a bank given as a number (1000) or a share ("1%") of n patches; ValueError names both numbers."""
    text = str(bank).strip()
    try:
        rows = int(n * float(text[:-1]) / 100) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        raise ValueError(f"bank={bank!r}: needs a number of rows such as 1000 or a share such as 1%") from None
    if not 1 <= rows <= n:
        raise ValueError(f"bank={bank!r}: is {rows} rows, needs 1 to {n}, the patches of the training pictures")
    return rows


def check_memory(n: int, dim: int, limit_gb: float | None) -> float:
    """Gigabytes that n patches of dim float32 need, with the copy and the distances of greedy; raises above the limit.

    limit_gb None means three quarters of this machine's memory.
    """
    return memory.check(n * (2 * dim + 2) * 4 / 1e9, limit_gb, f"{n} patches of dimension {dim}",
                        "use fewer pictures, a deeper level or a pooling stride, a smaller d")


def select(features: np.ndarray, rows: int, *, method: str = "greedy", seed: int = 0,
           projection: int | None = None) -> np.ndarray:
    """Indices (rows,) of the chosen rows of features (N, D) float32, in the order of choice.

    greedy: the first row is drawn from `seed`, each next one is the row farthest (L2) from all chosen so far.
    projection: distances are measured after a random linear map to that many dimensions (Johnson-Lindenstrauss).
    """
    if method not in METHODS:
        raise ValueError(f"coreset={method!r}: needs one of {', '.join(METHODS)}")
    n = len(features)
    if not 1 <= rows <= n:
        raise ValueError(f"{rows} rows asked of {n} patches")
    rng = np.random.default_rng(seed)
    if rows == n:
        return np.arange(n)
    if method == "random":
        return rng.choice(n, rows, replace=False)
    first = int(rng.integers(n))
    if projection and projection < features.shape[1]:
        features = _project(features, projection, rng)
    return _farthest_first(features, rows, first)


def radius(features: np.ndarray, bank: np.ndarray) -> float:
    """Largest distance of any row to its nearest bank row: what greedy k-centre keeps small."""
    search = Faiss().fit(torch.from_numpy(np.ascontiguousarray(bank)))
    return max(float(search.query(block)[0].max()) for _, block in _blocks(features))


def _farthest_first(features: np.ndarray, rows: int, first: int) -> np.ndarray:
    n = len(features)
    # Transposed, (D, b): the product then reads memory in order, which is over three times faster.
    blocks = [(start, block.T.contiguous()) for start, block in _blocks(features)]
    norms = torch.cat([block.square().sum(dim=0) for _, block in blocks]).numpy()       # (N,)
    nearest = np.full(n, np.inf, dtype=np.float32)                                      # squared, to the chosen
    chosen = np.empty(rows, dtype=np.int64)
    chosen[0] = first
    log.info("coreset: %d of %d patches", rows, n)
    for step in track(range(1, rows), rows - 1, "coreset"):
        last = int(chosen[step - 1])
        centre = torch.from_numpy(np.array(features[last]))
        for start, block in blocks:
            # What follows the product is short: waking torch's threads for it costs more than the work.
            part = slice(start, start + block.shape[1])
            squared = norms[part] - 2 * (centre @ block).numpy() + norms[last]
            np.minimum(nearest[part], squared, out=nearest[part])
        nearest[last] = -np.inf         # rounding must not choose a row twice
        chosen[step] = int(nearest.argmax())
    return chosen


def _project(features: np.ndarray, dim: int, rng: np.random.Generator) -> np.ndarray:
    matrix = torch.from_numpy(rng.standard_normal((features.shape[1], dim), dtype=np.float32) / math.sqrt(dim))
    return torch.cat([block @ matrix for _, block in _blocks(features)]).numpy()


def _blocks(features: np.ndarray):
    for start in range(0, len(features), BLOCK):
        yield start, torch.from_numpy(np.asarray(features[start:start + BLOCK]))
