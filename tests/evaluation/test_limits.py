"""Counted work equals what is counted by hand; rates and floors are what they say."""

import numpy as np
import pytest
import torch

from thesis_lib.evaluation import limits
from thesis_lib.methods import PatchCore

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_network_is_counted_as_by_hand():
    """ResNet-18: 7x7 convolution to half the side, four 3x3 ones at a quarter; level 2 halves and doubles."""
    stem, level_1 = 32**2 * 64 * 7 * 7 * 3, 4 * 16**2 * 64 * 9 * 64
    level_2 = 8**2 * (128 * 9 * 64 + 3 * 128 * 9 * 128 + 128 * 64)
    assert limits.network_macs("resnet18", (1,), 64) == stem + level_1
    assert limits.network_macs("resnet18", (1, 2), 64) == limits.network_macs("resnet18", (2,), 64) \
        == stem + level_1 + level_2
    assert limits.network_macs("resnet18", (2,), 128) == 4 * (stem + level_1 + level_2)
    assert limits.network_macs("resnet18", (2,), (64, 128)) == 2 * (stem + level_1 + level_2)


@pytest.mark.parametrize("engine", ["eager", "fast"])
def test_work_of_every_stage(engine):
    detector = PatchCore(layers=(1, 2), weights="random", bank=20, engine=engine).fit([IMAGES])
    work = limits.stage_work(detector, 64)
    assert list(work) == ["extraction", "embedding", "search", "score"]
    places, dim, maps = 16 * 16, 64 + 128, 16 * 16 * 64 + 8 * 8 * 128
    assert work["extraction"][0] == limits.network_macs("resnet18", (2,), 64)
    assert work["extraction"][1] == detector.backbone_.nbytes + 4 * (3 * 64 * 64 + maps)
    assert work["embedding"] == (0, 4 * (maps + places * dim))
    assert work["search"] == (places * 20 * dim, 4 * (places * dim + 20 * dim + 2 * places))
    assert work["score"] == (0, 4 * places)


def test_work_on_a_rectangle():
    detector = PatchCore(layers=(1,), weights="random", bank=20).fit([torch.zeros(1, 3, 64, 128)])
    work = limits.stage_work(detector, (64, 128))
    assert work["search"][0] == 16 * 32 * 20 * 64
    assert work["extraction"][0] == 2 * limits.network_macs("resnet18", (1,), 64)


def test_floor_is_the_larger_of_both_times():
    machine = limits.Machine(macs_per_s=1e9, bytes_per_s=1e6, threads=1)
    assert limits.floor_ms({"a": (2_000_000, 10), "b": (0, 3000), "c": (5_000_000, 8000)}, machine) == pytest.approx(
        {"a": 2.0, "b": 3.0, "c": 8.0})


def test_machine_is_measured_on_the_threads_that_are_set(monkeypatch):
    """Rates of a clock that says each product and each copy took half a second."""
    monkeypatch.setattr(limits, "COPIED", 2**20)
    torch.set_num_threads(1)
    real = limits.machine(seconds=0.05)
    assert real.threads == 1 and np.isfinite([real.macs_per_s, real.bytes_per_s]).all()
    ticks = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(ticks))
    assert limits.machine(seconds=2) == limits.Machine(2 * limits.SIDE**3, 4 * 2**20, 1)


def test_exponent_of_a_power():
    sizes = np.array([10, 30, 90])
    assert limits.exponent(sizes, 0.1 * sizes**1.5) == pytest.approx(1.5)
    assert limits.exponent(sizes, [4, 4, 4]) == pytest.approx(0)
