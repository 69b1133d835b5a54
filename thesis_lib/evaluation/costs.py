"""Run time on a device that is not at hand: layers counted, two rates calibrated on times that were measured there.

A layer takes its multiply-accumulates at one rate and the bytes that it reads and writes at another, one after the
other; a network is the sum of its layers. Rows that were measured on a device replace what is predicted for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import nn

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Size, height_width
from thesis_lib.networks import backbones
from thesis_lib.networks.weightfiles import torchvision

FLOAT = 4               # bytes


@dataclass(frozen=True)
class Work:
    """What one picture costs: multiply-accumulates, and bytes read and written by the single layers."""

    macs: int
    bytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.macs + other.macs, self.bytes + other.bytes)


@dataclass(frozen=True)
class Rates:
    macs_per_s: float
    bytes_per_s: float

    def ms(self, work: Work) -> float:
        return 1e3 * (work.macs / self.macs_per_s + work.bytes / self.bytes_per_s)


def count(network: nn.Module, size: Size) -> Work:
    """Of all convolutions and linear layers of a network on one picture of this size; nothing is computed."""
    works = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = cast(nn.Conv2d | nn.Linear, module).weight
        kernel = weight.numel() // weight.shape[0]                          # multiplications for one output number
        moved = inputs[0].numel() + weight.numel() + output.numel()
        works.append(Work(kernel * output.numel(), FLOAT * moved))

    hooks = [module.register_forward_hook(note) for module in network.modules()
             if isinstance(module, (nn.Conv2d, nn.Linear))]
    try:
        with torch.no_grad():
            network(torch.empty(1, 3, *height_width(size), device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(works[1:], works[0])


def whole(name: str, size: Size = 224) -> Work:
    """A whole torchvision network, as Table 2.4 of the thesis times it."""
    with torch.device("meta"):
        return count(torchvision().models.get_model(name, weights=None).eval(), size)


def cut(name: str, layers: Sequence[int], size: Size, tap: str = "output") -> Work:
    """A backbone up to its deepest level."""
    with torch.device("meta"):
        return count(backbones.load(name, tuple(layers), "random", tap=tap), size)


def search(positions: int, rows: int, dim: int) -> Work:
    """Every patch against every row of the memory bank."""
    return Work(positions * rows * dim, FLOAT * (positions * dim + rows * dim + 2 * positions))


def calibrate(known: Mapping[str, tuple[Work, float]], with_bytes: bool = True) -> Rates:
    """The rates that explain measured milliseconds best, by their logarithms; without bytes they cost nothing.

    Seconds of a network = macs / (macs per s) + bytes / (bytes per s). The sum of the squares of log(predicted /
    measured) over all networks becomes smallest, so that a small network counts as much as a large one.
    """
    if len(known) < 1 + with_bytes:
        raise ThesisError(f"{len(known)} measured network: {1 + with_bytes} rates need as many")
    works, times = zip(*known.values(), strict=True)
    macs, moved = (np.array([getattr(work, name) for work in works], float) for name in ("macs", "bytes"))
    seconds = np.array(times) / 1e3
    if not with_bytes:                      # then the smallest is known: the mean of the logarithms
        return Rates(float(np.exp(np.log(macs / seconds).mean())), np.inf)

    def log_ratios(log_rates: np.ndarray) -> np.ndarray:
        return np.log((macs / np.exp(log_rates[0]) + moved / np.exp(log_rates[1])) / seconds)

    # Begin where either half of the time would go to each of both.
    start = np.log([2 * (macs / seconds).mean(), 2 * (moved / seconds).mean()])
    macs_per_s, bytes_per_s = np.exp(least_squares(log_ratios, start).x)
    return Rates(macs_per_s, bytes_per_s)


def left_out(known: Mapping[str, tuple[Work, float]], with_bytes: bool = True) -> dict[str, float]:
    """For each network predicted / measured, calibrated on the others alone."""
    ratios = {}
    for name, (work, ms) in known.items():
        others = {other: known[other] for other in known if other != name}
        ratios[name] = calibrate(others, with_bytes).ms(work) / ms
    return ratios
