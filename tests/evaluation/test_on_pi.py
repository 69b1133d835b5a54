"""Predictions for a Raspberry Pi: by the times that others published with an engine."""

import pytest

from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import costs, engines, on_pi
from thesis_lib.methods.efficientad import EfficientAD
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.methods.uninformed_students import UninformedStudents

SIZE = (256, 256)


def core(**given):
    return PatchCore(**({"backbone": "resnet18", "layers": (2,), "bank": "1000", "weights": "random"} | given))


def test_the_bundle_is_predicted_by_its_own_engine():
    found, model = on_pi.predict(core(), SIZE, 100), engines.model("onnxruntime")
    whole = costs.cut("resnet18", (2,), SIZE) + costs.search(32 * 32, 1000, 128)
    assert found.ms == pytest.approx(model.rates.ms(whole)) and found.calibrated and not found.extrapolated
    assert (found.low, found.high) == pytest.approx(model.span(found.ms))


def test_int8_of_an_engine_without_published_times_lies_between_others():
    here, *others = (on_pi.predict(core(), SIZE, 100, engine, "int8") for engine in ("onnxruntime", "ncnn", "pytorch"))
    assert not here.calibrated and all(other.calibrated for other in others)
    assert here.low == min(other.low for other in others) and here.high == max(other.high for other in others)
    assert min(other.ms for other in others) < here.ms < max(other.ms for other in others)
    for other in others:                    # the search stays in float32
        assert other.ms > on_pi.predict(core(bank="10"), SIZE, 100, "ncnn", "int8").ms


def test_what_was_never_timed_is_an_extrapolation():
    assert on_pi.predict(EfficientAD(backbone="pdn_small"), SIZE, 100).extrapolated
    assert on_pi.predict(core(backbone="convnext_tiny"), SIZE, 100).extrapolated
    assert on_pi.predict(core(backbone="pdn_small", layers=(1,)), SIZE, 100).extrapolated
    assert not on_pi.predict(core(backbone="wide_resnet50_2"), SIZE, 100).extrapolated
    assert on_pi.predict(UninformedStudents(), SIZE, 100) is None


def test_a_shallower_configuration_is_a_part_of_a_deeper_one():
    shallow, deep, wide = (on_pi.work(core(layers=layers), SIZE, 100) for layers in ((2,), (2, 3), (1,)))
    assert shallow.within(deep) and not deep.within(shallow)
    assert not wide.within(shallow)         # level 1 has four times the places to search


def test_an_unknown_engine_is_refused():
    with pytest.raises(ThesisError, match="engine=tflite, precision=int8: there are onnxruntime float32, "):
        on_pi.predict(core(), SIZE, 100, "tflite", "int8")
