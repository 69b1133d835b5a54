"""What does not fit into memory: a limit checked before the work, and a file for the features of a training set."""

import mmap
import tempfile
from collections.abc import Iterable

import numpy as np
import psutil
import torch


class MemoryLimitError(ValueError):
    """The work would not fit; the message gives the sizes and the ways out."""


def check(needed_gb: float, limit_gb: float | None, what: str, instead: str) -> float:
    """needed_gb, or MemoryLimitError when it is above the limit; None means 3/4 of this machine's memory."""
    limit = psutil.virtual_memory().total * 0.75 / 1e9 if limit_gb is None else limit_gb
    if needed_gb > limit:
        raise MemoryLimitError(f"{what} need {needed_gb:.2f} GB, the limit is {limit:.2f} GB; {instead}, or raise "
                               "memory_limit_gb")
    return needed_gb


def on_disk(batches: Iterable[torch.Tensor]) -> np.memmap:
    """The rows of all batches (b, ...) as one array (n, ...) float32 in an unnamed file, gone when it is let go of."""
    n, shape = 0, ()
    with tempfile.TemporaryFile() as file:
        for batch in batches:
            file.write(batch.contiguous().numpy().data)
            n, shape = n + len(batch), batch.shape[1:]
        if not n:
            raise ValueError("fit was given no pictures")
        file.flush()
        return np.memmap(file, dtype=np.float32, mode="r+", shape=(n, *shape))


def release(array: np.ndarray) -> None:
    """Drop from memory what was read of an array of `on_disk`; it stays in the file. Any other array is left alone."""
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
