"""How the golden inputs are made, and how an array is held against its description.

A description has the shape, sum and sum of squares of an array, its extremes, and some of its values in C order: all
of them in `values`, the first ones in `first`, or in `at` those at `positions`.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from torch import nn

from thesis_lib.data import normalise


def golden(name: str) -> dict:
    return json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))


@contextmanager
def float64() -> Iterator[None]:
    """All in float64, as the references ran; the library's own roundings to float32 are left out."""
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda self: self)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def picture(seed: int, contrast: float = 1.0) -> torch.Tensor:
    """Noise (3, 256, 256) around grey, normalised."""
    return normalise(torch.from_numpy(0.5 + contrast * (RandomState(seed).random_sample((3, 256, 256)) - 0.5)))


def fill(network: nn.Module, seed: int) -> nn.Module:
    """Uniform weights for all convolutions, in the order of the data flow; n inputs of an output decide their size."""
    rng = RandomState(seed)
    for layer in convolutions(network):
        n = math.prod(layer.weight.shape[1:])
        for parameter, largest in ((layer.weight, math.sqrt(6 / n)), (layer.bias, math.sqrt(1 / n))):
            parameter.data = torch.from_numpy((2 * rng.random_sample(parameter.shape) - 1) * largest)
    return network


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def maps_of(features: dict[int, torch.Tensor]) -> SimpleNamespace:
    """Feature maps of all training pictures, in the form in which `gather` takes them."""
    return SimpleNamespace(keeps=False, samples=(), batches=lambda levels: iter([{i: features[i] for i in levels}]))


def behind(detector, features):
    """What the stages behind the network make of its maps: the last one's Prediction."""
    _, *later = detector.stages.values()
    for stage in later:
        features = stage(features)
    return features


def check(found, described: dict, rtol: float, atol: float = 0.0, of_sum: float = 0.0) -> None:
    """Single values within rtol and atol; sums relatively within the larger of both, or within of_sum."""
    array = torch.as_tensor(found).detach().double().numpy()
    flat = array.ravel()
    single = {"min": flat.min(), "max": flat.max(), "values": flat, "first": flat[:len(described.get("first", ()))],
              "at": flat[described.get("positions", [])]}
    summed = {"sum": flat.sum(), "sum_squares": np.square(flat).sum()}
    assert list(array.shape) == described["shape"]
    for name in described.keys() & single.keys():
        np.testing.assert_allclose(single[name], described[name], rtol, atol, err_msg=name)
    for name in described.keys() & summed.keys():
        np.testing.assert_allclose(summed[name], described[name], max(rtol, atol), of_sum, err_msg=name)


def check_layers(network: nn.Module, described: list[dict], gradient: bool = False, **tolerance: float) -> None:
    """Weights and biases of all convolutions, or their gradients."""
    for layer, facts in zip(convolutions(network), described, strict=True):
        for name, values in facts.items():
            parameter = getattr(layer, name)
            check(parameter.grad if gradient else parameter, values, **tolerance)
