"""Counting layers, and the rates that explain measured times."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from thesis_lib.core import paths
from thesis_lib.evaluation import costs
from thesis_lib.evaluation.costs import Work
from thesis_lib.evaluation.thesis import NETWORKS, TIMED_NETWORKS
from thesis_lib.networks import backbones
from thesis_lib.report import tables


def test_a_convolution_and_a_linear_layer_by_hand():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                                nn.Flatten(), nn.Linear(8, 5))
    found = costs.count(network, 16)
    assert found.macs == 3 * 3 * 3 * 8 * 8 * 8 + 8 * 5
    assert found.bytes == 4 * (3 * 256 + 3 * 3 * 3 * 8 + 8 * 64) + 4 * (8 + 40 + 5)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "convnext_tiny"])
def test_multiplications_are_those_of_torchs_counter(name):
    network = backbones.load(name, (1, 2), "random")
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 64, 64))
    assert costs.cut(name, (1, 2), 64).macs == counter.get_total_flops() // 2


def test_the_networks_of_table_2_4_have_their_published_size():
    published = {"ResNet18": 1.814, "ResNet34": 3.664, "WideResNet50": 11.398}       # G, torchvision's documentation
    assert tuple(published) == TIMED_NETWORKS
    for label, giga in published.items():
        assert costs.whole(NETWORKS[label]).macs / 1e9 == pytest.approx(giga, abs=1e-3)


@pytest.mark.parametrize("unit", ["grouped", "bytes", "layers"])
def test_calibration_finds_the_rates_that_made_the_times(unit):
    true = costs.Rates(2e9, 5e8 if unit != "layers" else 1e3, unit)
    works = {"a": Work(10**9, 10**7, 10**8, 20), "b": Work(10**9, 10**9, 10**7, 60), "c": Work(5 * 10**9, 10**8, 1, 5)}
    known = {name: (work, true.ms(work)) for name, work in works.items()}
    found = costs.calibrate(known, unit)
    assert found.macs_per_s == pytest.approx(2e9, rel=1e-4)
    assert found.units_per_s == pytest.approx(true.units_per_s, rel=1e-4)
    assert costs.left_out(known, unit) == pytest.approx(dict.fromkeys(works, 1.0), rel=1e-3)
    assert costs.pairs_left_out(known | {"d": (works["a"] + works["b"], true.ms(works["a"] + works["b"]))}, unit) \
        == pytest.approx([1.0] * 6, rel=1e-3)


def test_calibration_is_the_least_squares_of_the_logarithms():
    """The slow way: SciPy looks for both rates at once, from many starts."""
    rng = np.random.default_rng(0)
    known = {str(number): (Work(int(macs), int(moved)), ms) for number, (macs, moved, ms) in enumerate(
        zip(10 ** rng.uniform(7, 10, 9), 10 ** rng.uniform(6, 9, 9), 10 ** rng.uniform(1, 3, 9), strict=True))}
    macs, moved, ms = (np.array(column) for column in zip(
        *((work.macs, work.bytes, ms) for work, ms in known.values()), strict=True))

    def off(rates):
        return np.log(1e3 * (macs / np.exp(rates[0]) + moved / np.exp(rates[1])) / ms)

    best = min(least_squares(off, [a, b]).cost for a in range(18, 27, 2) for b in range(16, 25, 2))
    found = costs.calibrate(known)
    assert np.square(off(np.log([found.macs_per_s, found.units_per_s]))).sum() / 2 == pytest.approx(best, rel=1e-6)


def test_the_unit_is_the_one_that_explains_networks_left_out():
    rng = np.random.default_rng(1)
    works = {str(number): Work(*map(int, 10 ** rng.uniform([9, 7, 6, 1], [10, 9, 8, 2]))) for number in range(8)}
    for unit in ("grouped", "bytes", "layers"):
        prices = {"grouped": 1e7, "bytes": 1e8, "layers": 1e2}
        true = costs.Rates(5e9, prices[unit], unit)
        known = {name: (work, true.ms(work)) for name, work in works.items()}
        assert costs.best_unit(known) == unit
        assert costs.left_out_with_unit(known) == pytest.approx(dict.fromkeys(works, 1.0), rel=1e-3)


def test_layers_with_groups_are_counted_apart():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False))
    found = costs.count(network, 4)
    assert (found.macs, found.grouped, found.layers) == (3 * 8 * 16 + 9 * 8 * 16, 9 * 8 * 16, 2)
    assert found.halves("grouped") == (3 * 8 * 16, 9 * 8 * 16) and found.halves(None) == (found.macs, 0)


def test_a_part_of_a_network_is_within_it():
    part, whole = (costs.cut("resnet18", levels, 64) for levels in ((2,), (3,)))
    assert part.within(whole) and not whole.within(part) and whole.within(whole)


def test_one_rate_is_the_geometric_mean():
    known = {"a": (Work(1000, 1), 1.0), "b": (Work(4000, 1), 1.0)}
    rates = costs.calibrate(known, None)
    assert rates.macs_per_s == pytest.approx(2e6) and np.isinf(rates.units_per_s)
    assert costs.left_out(known, None) == pytest.approx({"a": 0.25, "b": 4.0})


@pytest.mark.parametrize(("unit", "second"), [("bytes", []), ("grouped", [(Work(2, 2), 1.0), (Work(3, 2), 1.0)])])
def test_too_few_networks_are_refused(unit, second):
    known = {str(number): one for number, one in enumerate([(Work(1, 1, 1), 1.0), *second])}
    with pytest.raises(ValueError, match="1 measured network: 2 rates need as many"):
        costs.calibrate(known, unit)


def test_device_rows_are_read_where_they_are_put():
    assert tables.device_rows().empty
    paths.devices().mkdir(parents=True)
    row = {"kind": "time", "id": "1", "total_ms": 4.0, "stamp": {"cpu": "Raspberry Pi 4 Model B"}}
    (paths.devices() / "pi.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": "2"}) + "\n")
    assert tables.device_rows()["stamp.cpu"].tolist() == ["Raspberry Pi 4 Model B"] * 2
    (paths.devices() / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json: not a result row"):
        tables.device_rows()
