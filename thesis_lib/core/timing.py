"""The thesis' timing protocol (sec. 3.4.1): a clock between the stages, warm-ups, repetitions, means of means.

In go named stages, callables that pass on what they make of their input, and batches of images; out come raw seconds.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError

Stage = Callable[[Any], Any]
SPREAD_LIMIT = 0.10     # interquartile range over median above which a measurement is flagged


@dataclass(frozen=True)
class Timing:
    """Raw seconds (n images, repeats, stages); everything else is derived from them."""

    stages: tuple[str, ...]
    seconds: np.ndarray
    first_call_s: float         # the very first pass, before any warm-up
    batch_size: int
    threads: int                # of the network while it ran
    peak_gb: float | None = None        # largest resident size of the process meanwhile, where the system tells it

    @property
    def stage_ms(self) -> dict[str, float]:
        """Milliseconds per stage: mean over the repeats of each image, then over the images."""
        return dict(zip(self.stages, self.seconds.mean(axis=1).mean(axis=0) * 1e3, strict=True))

    @property
    def total_ms(self) -> float:
        return sum(self.stage_ms.values())

    @property
    def spread(self) -> float:
        """Interquartile range of all single totals over their median."""
        low, median, high = np.percentile(self.seconds.sum(axis=2), [25, 50, 75])
        return float((high - low) / median)

    @property
    def images_per_s(self) -> float:
        return 1e3 * self.batch_size / self.total_ms

    def row(self) -> dict[str, Any]:
        """For a result row: raw times kept, so that another statistic can be made later."""
        return {"stages": list(self.stages), "stage_ms": self.stage_ms, "total_ms": self.total_ms,
                "spread": self.spread, "noisy": self.spread > SPREAD_LIMIT, "first_call_ms": self.first_call_s * 1e3,
                "batch_size": self.batch_size, "threads": self.threads, "images_per_s": self.images_per_s,
                "peak_memory_gb": self.peak_gb, "raw_s": np.round(self.seconds, 7).tolist()}


def protocol(stages: Mapping[str, Stage], images: Iterable[Any], *, warmup: int = 3, repeats: int = 5,
             threads: int) -> Timing:
    """Walk the stages over images, each a batch, usually of one. Reading and resizing is not timed.

    threads is what the caller has set; it is only noted.

    >>> pictures = np.zeros((7, 1, 32))         # seven batches of one picture
    >>> protocol({"square": np.square, "sum": np.sum}, pictures, repeats=5, threads=1).seconds.shape
    (7, 5, 2)
    """
    check(warmup, repeats)
    peak = memory.Peak()
    seconds: list[list[list[float]]] = []       # [image][repeat][stage]
    first: float | None = None
    for batch in images:
        if first is None:
            cold = _walk(stages.values(), batch)
            first, size = float(sum(cold)), len(batch)
        for _ in range(warmup):
            _walk(stages.values(), batch)
        seconds.append([_walk(stages.values(), batch) for _ in range(repeats)])
    if first is None:
        raise ThesisError("no image to measure")
    return Timing(tuple(stages), np.array(seconds), first, size, threads, peak.gb)


def check(warmup: int, repeats: int) -> None:
    """ThesisError for passes that cannot be."""
    if warmup < 0 or repeats < 1:
        raise ThesisError(f"warmup={warmup}, repeats={repeats}: needs warmup >= 0 and repeats >= 1")


def interleaved(calls: Mapping[str, Stage], x: Any, *, rounds: int = 20, warmup: int = 1,
                seed: int = 0) -> dict[str, np.ndarray]:
    """Seconds (rounds,) of each call on x, one after the other in a new order every round.

    Whatever slows the machine down for a while hits all of them, so that ratios within a round can be trusted where
    separate runs cannot. The warm-ups before each timed call drive out the caches and threads of the one before.
    """
    if rounds < 1 or warmup < 0:
        raise ThesisError(f"rounds={rounds}, warmup={warmup}: needs rounds >= 1 and warmup >= 0")
    rng, names = np.random.default_rng(seed), list(calls)
    seconds = {name: np.empty(rounds) for name in names}
    for number in range(rounds):
        for name in rng.permutation(names):
            for _ in range(warmup):
                calls[name](x)
            seconds[name][number] = _walk([calls[name]], x)[0]
    return seconds


def _walk(stages: Iterable[Stage], x: Any) -> list[float]:
    """Seconds per stage of one pass: one more time stamp than stages."""
    stamps = [time.perf_counter()]
    for stage in stages:
        x = stage(x)
        stamps.append(time.perf_counter())
    return np.diff(stamps).tolist()
