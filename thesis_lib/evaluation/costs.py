"""Run time on a device that is not at hand: layers counted, two rates calibrated on times that were measured there.

A network takes its multiply-accumulates at one rate and the units of a second kind at another: multiply-accumulates in
layers with groups, bytes that the layers read and write, or the layers themselves. Which kind explains an engine best
is decided by networks that are left out. Rows that were measured on a device replace what is predicted for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import cast

import numpy as np
import torch
from torch import nn

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Size, height_width
from thesis_lib.networks import backbones
from thesis_lib.networks.weightfiles import torchvision

FLOAT = 4               # bytes
UNITS = ("grouped", "bytes", "layers", None)    # of the second rate; None: there is one rate


@dataclass(frozen=True)
class Work:
    """What one picture costs: multiply-accumulates, bytes read and written by the single layers, and of the former
    those in layers with groups; layers are convolutions and products of matrices.
    """

    macs: int
    bytes: int
    grouped: int = 0
    layers: int = 1

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def within(self, other: "Work") -> bool:
        """Whether nothing is more than in the other; of a part of a network it is."""
        return all(getattr(self, field.name) <= getattr(other, field.name) for field in fields(self))

    def halves(self, unit: str | None) -> tuple[int, int]:
        """What the first and what the second rate applies to."""
        return self.macs - self.grouped * (unit == "grouped"), getattr(self, unit) if unit else 0


@dataclass(frozen=True)
class Rates:
    """Per second: multiply-accumulates, without those in layers with groups where these are the unit; and units."""

    macs_per_s: float
    units_per_s: float
    unit: str | None

    def ms(self, work: Work) -> float:
        macs, units = work.halves(self.unit)
        return 1e3 * (macs / self.macs_per_s + units / self.units_per_s)


def count(network: nn.Module, size: Size) -> Work:
    """Of all convolutions and linear layers of a network on one picture of this size; nothing is computed."""
    works = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = cast(nn.Conv2d | nn.Linear, module).weight
        macs = weight.numel() // weight.shape[0] * output.numel()           # of the kernel, for each output number
        moved = inputs[0].numel() + weight.numel() + output.numel()
        works.append(Work(macs, FLOAT * moved, macs if getattr(module, "groups", 1) > 1 else 0))

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
    with torch.device("cpu" if name.startswith("regnet") else "meta"):       # a regnet computes its own widths
        return count(torchvision().models.get_model(name, weights=None).eval().to("meta"), size)


def cut(name: str, layers: Sequence[int], size: Size, tap: str = "output") -> Work:
    """A backbone up to its deepest level."""
    with torch.device("meta"):
        return count(backbones.load(name, tuple(layers), "random", tap=tap), size)


def search(positions: int, rows: int, dim: int) -> Work:
    """Every patch against every row of the memory bank."""
    return Work(positions * rows * dim, FLOAT * (positions * dim + rows * dim + 2 * positions))


def calibrate(known: Mapping[str, tuple[Work, float]], unit: str | None = "bytes") -> Rates:
    """The rates that explain measured milliseconds best, by their logarithms.

    Seconds of a network = macs / (macs per s) + units / (units per s). The sum of the squares of log(predicted /
    measured) over all networks becomes smallest, so that a small network counts as much as a large one. ThesisError
    where fewer networks than rates have something to tell.
    """
    halves = [work.halves(unit) for work, _ in known.values()]
    told = min([len(known)] + [sum(half > 0 for half in column) for column in zip(*halves, strict=True)] * bool(unit))
    if told < 1 + bool(unit):
        raise ThesisError(f"{told} measured network: {1 + bool(unit)} rates need as many")
    macs, units = np.array(halves, float).T
    seconds = np.array([ms for _, ms in known.values()]) / 1e3

    def logs(prices: np.ndarray) -> np.ndarray:
        return np.log((macs + np.exp(prices)[:, None] * units) / seconds)

    if unit is None:                        # then the smallest is known: the mean of the logarithms
        return Rates(float(np.exp(np.log(macs / seconds).mean())), np.inf, None)
    # What a unit costs in multiply-accumulates is all there is to look for: the rate follows from it as a mean. First
    # on a wide grid, as there may be more than one hollow, then on finer ones around the best.
    price = float(np.log(macs.sum() / units.sum()))
    for step in (0.1, 5e-3, 2.5e-4, 1.25e-5):
        grid = price + step * np.arange(-120 if step == 0.1 else -25, 121 if step == 0.1 else 26)
        price = float(grid[logs(grid).var(axis=1).argmin()])
    macs_per_s = float(np.exp(logs(np.array([price])).mean()))
    return Rates(macs_per_s, macs_per_s * float(np.exp(-price)), unit)


def best_unit(known: Mapping[str, tuple[Work, float]]) -> str | None:
    """The unit with which networks that are left out are predicted best."""
    errors = {}
    for unit in UNITS:
        try:
            errors[unit] = float(np.square(np.log(list(left_out(known, unit).values()))).mean())
        except ThesisError:                 # too few networks have such units
            continue
    return min(errors, key=errors.__getitem__)


def left_out(known: Mapping[str, tuple[Work, float]], unit: str | None = "bytes") -> dict[str, float]:
    """For each network predicted / measured, calibrated on the others alone."""
    return {name: calibrate(_without(known, name), unit).ms(work) / ms for name, (work, ms) in known.items()}


def left_out_with_unit(known: Mapping[str, tuple[Work, float]]) -> dict[str, float]:
    """The same, where the unit, too, is chosen by the others alone: the error of the choice is in it."""
    ratios = {}
    for name, (work, ms) in known.items():
        others = _without(known, name)
        ratios[name] = calibrate(others, best_unit(others)).ms(work) / ms
    return ratios


def pairs_left_out(known: Mapping[str, tuple[Work, float]], unit: str | None) -> list[float]:
    """For each two networks predicted / measured of the ratio of their times, calibrated on the others alone."""
    ratios = []
    for one, other in combinations(known, 2):
        rates = calibrate(_without(known, one, other), unit)
        off = [rates.ms(known[name][0]) / known[name][1] for name in (one, other)]
        ratios.append(off[0] / off[1])
    return ratios


def _without(known: Mapping[str, tuple[Work, float]], *names: str) -> dict[str, tuple[Work, float]]:
    return {name: value for name, value in known.items() if name not in names}
