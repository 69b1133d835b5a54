"""How many processors this process may use, and on how many NumPy's products run."""

import os
from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def usable_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blas_threads(threads: int | None) -> AbstractContextManager:
    """NumPy's matrix products on so many threads, and on as many as before afterwards; None leaves them."""
    return _libraries().limit(limits=threads, user_api="blas")


@cache
def _libraries() -> ThreadpoolController:
    """Looking for the libraries takes longer than a search."""
    return ThreadpoolController()
