"""What a picture costs before the first stage of the thesis: reading its file, decoding it, resizing it.

Files go in, milliseconds come out. They stand beside the thesis' stages and are no part of their total.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from thesis_lib.core.preprocess import Preprocess, read_rgb

STEPS = "reading", "decoding", "resizing"


def opening(files: Sequence[Path], preprocess: Preprocess, repeats: int) -> dict[str, float]:
    """Milliseconds of each step, the mean over the repeats and the files.

    Reading is from the disk where the system lets go of a file that it keeps in memory (Linux), decoding from memory.
    Resizing is `Preprocess.geometry`, with the cut-out of a rectangle of interest.
    """
    seconds = []
    for file in files:
        preprocess.array(file)                  # refuses what cannot be read, and warms up
        for _ in range(repeats):
            forget(file)
            start = time.perf_counter()
            file.read_bytes()
            read = time.perf_counter()
            image = read_rgb(file, preprocess.levels)
            decoded = time.perf_counter()
            preprocess.geometry(image, preprocess.interpolation)
            seconds.append(np.diff([start, read, decoded, time.perf_counter()]))
    return dict(zip(STEPS, (np.mean(seconds, axis=0) * 1e3).tolist(), strict=True))


def forget(file: Path) -> None:
    """Ask the system to drop its copy of a file in memory, so that the next reading is from the disk."""
    with suppress(OSError, AttributeError):     # macOS has no such call
        opened = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(opened)
