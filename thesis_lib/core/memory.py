"""What does not fit into memory: a limit checked before the work, and a file for the features of a training set.

Sizes go in, an error with the ways out comes before anything is computed; batches go in, an array on disk comes out.
"""

import mmap
import os
import re
import sys
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import psutil

from thesis_lib.core import files
from thesis_lib.core.errors import ThesisError

if TYPE_CHECKING:       # a device has no torch
    import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")       # of Linux, see `Peak`
GROUPS = Path("/sys/fs/cgroup")         # where Linux keeps the limits of a group of processes
SHARE = 0.75                            # of the memory, that a piece of work may take where nobody says how much


class MemoryLimitError(ThesisError):
    """The work would not fit; the message gives the sizes and the ways out."""


def usable_bytes() -> int:
    """Memory of this machine, or of this process' control group where that has less: a SLURM job, a container."""
    return min([psutil.virtual_memory().total, *_group_limits()])


def check(needed_gb: float, limit_gb: float | None, what: str, instead: str) -> float:
    """needed_gb, or MemoryLimitError when it is above the limit; None means 3/4 of the usable memory."""
    limit = usable_bytes() * SHARE / 1e9 if limit_gb is None else limit_gb
    if needed_gb > limit:
        raise MemoryLimitError(f"{what} need {needed_gb:.2f} GB, the limit is {limit:.2f} GB; {instead}, or raise "
                               "memory_limit_gb")
    return needed_gb


class Peak:
    """Largest resident size of this process from here on, `gb`: what it held already counts, what it has let go of
    before does not. None where the system keeps one peak for the whole life of a process (macOS).

    Linux forgets its peak when asked to. Those that are still watched, and the batch that started this process (file
    THESIS_PEAKS), keep what would be forgotten.
    """

    _watched: ClassVar["weakref.WeakSet[Peak]"] = weakref.WeakSet()

    def __init__(self) -> None:
        self._before, self._told = 0.0, False
        try:
            highest = _high_water_gb()
            for other in Peak._watched:
                other._before = max(other._before, highest)
            if file := os.environ.get("THESIS_PEAKS"):
                with open(file, "a", encoding="utf-8") as log:
                    log.write(f"{highest}\n")
            FORGET.write_text("5")
        except OSError:                 # not Linux, or a sandbox that lacks these files
            return
        self._told = True
        Peak._watched.add(self)

    @property
    def gb(self) -> float | None:
        return max(self._before, _high_water_gb()) if self._told else None


def largest_child_gb(peaks: Path) -> float:
    """Of the processes that this one has waited for, the largest resident size; `peaks` is their THESIS_PEAKS.

    That of a process that was started from here is at least our own when it was.
    """
    import resource  # Windows has none

    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    noted = peaks.read_text(encoding="utf-8").split() if peaks.is_file() else []
    return max([largest, *map(float, noted)])           # ru_maxrss is in bytes on macOS, in KiB on Linux


def on_disk(batches: "Iterable[torch.Tensor]") -> np.memmap:
    """The rows of all batches (b, ...) as one array (n, ...) float32 in an unnamed file, gone when it is let go of."""
    n = 0
    shape: tuple[int, ...] = ()         # of one row
    with files.unnamed() as file:
        for batch in batches:
            file.write(batch.contiguous().numpy().data)
            n, shape = n + len(batch), batch.shape[1:]
        if not n:
            raise ThesisError("fit was given no pictures")
        file.flush()
        return np.memmap(file, dtype=np.float32, mode="r+", shape=(n, *shape))


def release(array: np.ndarray) -> None:
    """Drop from memory what was read of an array of `on_disk`; it stays in the file. Any other array is left alone."""
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _high_water_gb() -> float:
    """Largest resident size since it was last forgotten; OSError where the system does not say."""
    match = re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"{STATUS}: has no VmHWM")
    return int(match[1]) * 1024 / 1e9


def _group_limits(listing: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Limits in bytes of the control groups that this process is in, its own and those above; version 1 and 2."""
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base, name = (GROUPS / "memory", "memory.limit_in_bytes") if controllers else (GROUPS, "memory.max")
        folder = base / path.strip("/")
        # Inside a container the path is that of the host and not there: its own group then lies at the top.
        for group in [folder, *folder.parents]:
            if group == base or base in group.parents:
                try:
                    yield int((group / name).read_text())
                except (OSError, ValueError):           # no such file, or "max"
                    continue
