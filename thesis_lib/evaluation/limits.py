"""How near to the machine: what a stage must at least take, from its arithmetic and its bytes.

The floor of a stage is the larger of two times: its multiply-accumulates at the rate of a large matrix product in
float32, and the bytes that it must read and write at the rate of a large copy. Both rates are measured. It is no
bound for other arithmetic: integers (engine="int8") and Winograd's convolution can go below it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from thesis_lib.core.preprocess import Size, height_width
from thesis_lib.evaluation import costs
from thesis_lib.evaluation.thesis import STAGES
from thesis_lib.methods.patchcore import PatchCore

SIDE = 1024             # of the matrices whose product is timed
COPIED = 2**28          # bytes of the array that is copied: more than most caches hold
FLOAT = 4               # bytes


@dataclass(frozen=True)
class Machine:
    macs_per_s: float           # float32 multiply-accumulates of a matrix product
    bytes_per_s: float          # read and written by a copy
    threads: int                # of torch


def machine(seconds: float = 1.0) -> Machine:
    """Both rates on as many threads as torch is set to: the best of what fits into so many seconds each."""
    x, out = torch.rand(SIDE, SIDE), torch.empty(SIDE, SIDE)
    source = torch.zeros(COPIED // FLOAT)
    target = torch.zeros_like(source)
    return Machine(SIDE**3 / _best(lambda: torch.mm(x, x, out=out), seconds),
                   2 * COPIED / _best(lambda: target.copy_(source), seconds), torch.get_num_threads())


def network_macs(name: str, layers: tuple[int, ...], size: Size, tap: str = "output") -> int:
    """Multiply-accumulates of the network up to its deepest level, for one picture of this size."""
    return costs.cut(name, layers, size, tap).macs


def stage_work(detector: PatchCore, size: Size) -> Mapping[str, tuple[int, int]]:
    """Stage -> (multiply-accumulates, bytes that must be moved) for one picture; the detector is fitted.

    Bytes: each input is read once and each output written once; weights and memory bank are among the inputs.
    """
    image = torch.zeros(1, 3, *height_width(size))
    features = detector.stages["extraction"](image)
    patches = detector.stages["embedding"](features).vectors                          # (1, P, D)
    maps = sum(x.numel() for x in features.values())                                  # numbers of all feature maps
    (rows, dim), places = detector.bank_.shape, patches.shape[1]                      # M, D and P
    macs = {"extraction": network_macs(detector.backbone, detector.levels, size, detector.tap), "embedding": 0,
            "search": places * rows * dim, "score": 0}
    numbers = {"embedding": maps + patches.numel(), "search": patches.numel() + rows * dim + 2 * places,
               "score": places}
    moved = {stage: FLOAT * count for stage, count in numbers.items()}
    moved["extraction"] = detector.backbone_.nbytes + FLOAT * (image.numel() + maps)
    return {stage: (macs[stage], moved[stage]) for stage in STAGES}


def floor_ms(done: Mapping[str, tuple[int, int]], on: Machine) -> dict[str, float]:
    """Milliseconds per stage that `stage_work` takes at least in float32."""
    return {stage: 1e3 * max(macs / on.macs_per_s, moved / on.bytes_per_s) for stage, (macs, moved) in done.items()}


def exponent(sizes: ArrayLike, times: ArrayLike) -> float:
    """Slope of log(time) over log(size): 1 is linear, 2 quadratic. Least squares."""
    return float(np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(times, float)), 1)[0])


def _best(call: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest call of all that fit into so many seconds, after one that is not timed."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
