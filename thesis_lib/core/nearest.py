"""Exact nearest neighbours in NumPy: what a device without FAISS and torch searches with."""

import numpy as np

from thesis_lib.core.errors import ThesisError

BLOCK = 4_000_000       # numbers held at a time, 16 MB


def nearest(vectors: np.ndarray, bank: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """vectors (Q, D), bank (M, D) float32 -> squared distances (Q, k) float32 ascending, rows of the bank (Q, k).

    One matrix product, |m|^2 - 2 xm, picks the rows; their distances are then written out, since that form cancels
    where they are small. Raises ThesisError for NaN and infinity, which argmin and partition would hide.
    """
    for name, values in ("vectors", vectors), ("bank", bank):
        check_finite(name, values)
    norms = np.einsum("md,md->m", bank, bank)                                   # |m|^2, (M,)
    step = max(1, BLOCK // max(len(bank), k * bank.shape[1]))                   # q, queries at a time
    squared = np.empty((len(vectors), k), dtype=np.float32)
    rows = np.empty((len(vectors), k), dtype=np.int64)
    for start in range(0, len(vectors), step):
        x = vectors[start:start + step]
        partial = norms - 2 * (x @ bank.T)                                      # |x - m|^2 without |x|^2, (q, M)
        # Rows of the bank, (q, k), in no order yet.
        picked = partial.argmin(1)[:, None] if k == 1 else np.argpartition(partial, k - 1, axis=1)[:, :k]
        exact = np.square(x[:, None] - bank[picked]).sum(axis=2)                # (q, k)
        order = exact.argsort(axis=1, kind="stable")
        squared[start:start + step] = np.take_along_axis(exact, order, axis=1)
        rows[start:start + step] = np.take_along_axis(picked, order, axis=1)
    return squared, rows


def check_finite(name: str, values: np.ndarray) -> None:
    """ThesisError that names the first row of values (n, ...) with NaN or infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(values.sum()):               # NaN and infinity reach the sum, and it costs little
            return
    values = np.atleast_1d(values)
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise ThesisError(f"{name}: number {bad[0]} of {len(values)} holds NaN or infinity")
