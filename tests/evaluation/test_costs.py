"""Counting layers, and the rates that explain measured times."""

import json

import numpy as np
import pytest
import torch
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


def test_calibration_finds_the_rates_that_made_the_times():
    true = costs.Rates(2e9, 5e8)
    works = {"a": Work(10**9, 10**7), "b": Work(10**9, 10**9), "c": Work(5 * 10**9, 10**8)}
    known = {name: (work, true.ms(work)) for name, work in works.items()}
    found = costs.calibrate(known)
    assert found.macs_per_s == pytest.approx(2e9, rel=1e-4) and found.bytes_per_s == pytest.approx(5e8, rel=1e-4)
    assert costs.left_out(known) == pytest.approx(dict.fromkeys(works, 1.0), rel=1e-3)


def test_one_rate_is_the_geometric_mean():
    known = {"a": (Work(1000, 1), 1.0), "b": (Work(4000, 1), 1.0)}
    rates = costs.calibrate(known, with_bytes=False)
    assert rates.macs_per_s == pytest.approx(2e6) and np.isinf(rates.bytes_per_s)
    assert costs.left_out(known, with_bytes=False) == pytest.approx({"a": 0.25, "b": 4.0})


def test_too_few_networks_are_refused():
    with pytest.raises(ValueError, match="1 measured network: 2 rates need as many"):
        costs.calibrate({"a": (Work(1, 1), 1.0)})


def test_device_rows_are_read_where_they_are_put():
    assert tables.device_rows().empty
    paths.devices().mkdir(parents=True)
    row = {"kind": "time", "id": "1", "total_ms": 4.0, "stamp": {"cpu": "Raspberry Pi 4 Model B"}}
    (paths.devices() / "pi.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": "2"}) + "\n")
    assert tables.device_rows()["stamp.cpu"].tolist() == ["Raspberry Pi 4 Model B"] * 2
    (paths.devices() / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json: not a result row"):
        tables.device_rows()
