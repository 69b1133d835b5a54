"""Published times on a Raspberry Pi, and the models of the engines."""

import re

import numpy as np
import pytest

from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import costs, engines
from thesis_lib.evaluation.costs import Work
from thesis_lib.evaluation.thesis import NETWORKS, network_times

PUBLISHED = engines.published()


def test_every_time_says_where_it_comes_from():
    assert len(PUBLISHED) > 100 and not PUBLISHED.duplicated(["series", "network"]).any()
    for column in ("engine", "precision", "board", "source"):
        assert PUBLISHED[column].str.len().min() > 3
    assert set(PUBLISHED["precision"]) == {"float32", "int8"}
    assert set(PUBLISHED["board"]) == {"Raspberry Pi 4B", "Raspberry Pi 5"}
    assert (PUBLISHED["ms"] > 0).all() and set(PUBLISHED["ghz"].dropna()) <= {1.5, 1.8, 2.4}


@pytest.mark.parametrize(("series", "ms"), [
    ("ncnn", 123), ("ncnn int8", 84), ("ncnn 1.5 GHz", 176), ("ncnn int8 1.5 GHz", 98), ("pytorch int8", 100),
    ("pytorch thesis", 820), ("ncnn Pi 5", 20), ("executorch int8 Pi 5", 9), ("onnxruntime", 275)])
def test_resnet_18_by_each_engine(series, ms):
    found = PUBLISHED[(PUBLISHED["series"] == series) & (PUBLISHED["network"] == "resnet18")]["ms"]
    assert found.round().tolist() == [ms]


def test_the_thesis_times_are_those_of_its_table():
    told = PUBLISHED[PUBLISHED["series"] == "pytorch thesis"].set_index("network")["ms"]
    expected = network_times()["raspberry_pi_4b_ms"].rename(NETWORKS.get)
    assert told.to_dict() == expected.to_dict()


@pytest.mark.parametrize("name", sorted(
    name for name, told in engines._published()["networks"].items() if told.get("definition") == "torchvision"))
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_costs_are_those_of_the_definition(name):
    """Of timm's, which is no package of this project, the copies of torchvision's networks are counted alike."""
    told = engines._published()["networks"][name]
    assert engines.work_of(name) == costs.whole(name, told["size"])


@pytest.mark.parametrize("series", ["ncnn", "ncnn int8", "onnxruntime", "pytorch", "pytorch int8"])
def test_models_rest_on_five_networks_and_tell_their_error(series):
    found = engines.model(series)
    assert len(found.ratios) >= engines.FEWEST and set(found.ratios) == set(engines.known(series))
    low, high = found.span(100.0)
    assert low < 100 < high and found.pair > 1
    # A network that was left out lies within what its own prediction spans: that is how the span is made.
    for name, (_, ms) in engines.known(series).items():
        low, high = found.span(ms * found.ratios[name])
        assert low <= ms * (1 + 1e-12) and ms <= high * (1 + 1e-12)


def test_onnx_runtime_is_told_within_a_fifth():
    ratios = np.array(list(engines.model("onnxruntime").ratios.values()))
    assert len(ratios) == 13 and 0.8 < ratios.min() < 0.9 and 1.1 < ratios.max() < 1.2


def test_too_few_and_unknown_series_are_refused():
    with pytest.raises(ThesisError, match="'pytorch thesis': 3 networks, a model needs 5"):
        engines.model("pytorch thesis")
    with pytest.raises(ThesisError, match=re.escape("series 'tflite' of published times; there are ncnn, ")):
        engines.known("tflite")
    assert engines.work_of("mobilenet") is None and isinstance(engines.work_of("resnet18"), Work)


def test_ranked_where_the_ratio_excludes_one_or_one_is_a_part():
    ms = {"a": 100.0, "b": 120.0, "c": 300.0}
    assert engines.surely_faster(ms, [], 1.5) == {"a": [], "b": [], "c": ["a", "b"]}
    assert engines.surely_faster(ms, [("a", "b")], 4.0) == {"a": [], "b": ["a"], "c": []}
