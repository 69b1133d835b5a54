"""A network gives the same maps whatever runs it: exactly torch's in "fast", close to them in "int8"."""

import builtins
import importlib
import re

import onnxruntime
import pytest
import torch

from thesis_lib import data
from thesis_lib.core.preprocess import DataError
from thesis_lib.evaluation import scores
from thesis_lib.methods import PatchCore
from thesis_lib.networks import engines, quantize
from thesis_lib.report import tables

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(engine, name="resnet18", layers=(1, 2), images=None, **more):
    return engines.build(name, layers, "random", engine, [IMAGES] if images is None else images, **more)


def difference(one, other):
    return max(((one[level] - other[level]).abs().max() / other[level].abs().max()).item() for level in other)


@pytest.fixture(scope="module")
def int8():
    return build("int8")


@pytest.mark.parametrize(("name", "layers"), [
    ("resnet18", (1, 2, 3, 4)), ("resnet18", (3,)), ("wide_resnet50_2", (1, 2)), ("convnext_tiny", (1, 3)),
    ("pdn_small", (1,))])
@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (1, 3, 96, 64)])
def test_fast_equals_eager(name, layers, shape):
    """Of another batch and other sides than the one it was exported with."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    eager, fast = build("eager", name, layers), build("fast", name, layers)
    expected, features = eager(images), fast(images)
    assert list(features) == list(expected) == list(layers)
    assert difference(features, expected) < 1e-4
    for attribute in ("name", "layers", "channels", "strides", "weights"):
        assert getattr(fast, attribute) == getattr(eager, attribute)


@pytest.mark.parametrize(("name", "layers"), [("resnet18", (1, 2)), ("convnext_tiny", (1, 2)), ("pdn_small", (1,))])
def test_int8_is_close_to_eager_and_small(name, layers):
    eager, fast, int8 = (build(engine, name, layers) for engine in engines.ENGINES)
    assert 1e-4 < difference(int8(IMAGES), eager(IMAGES)) < 0.1
    assert len(int8.model) < 0.35 * len(fast.model)


@pytest.mark.parametrize("engine", ["fast", "int8"])
def test_batch_equals_singles_and_the_input_stays(engine):
    network, images = build(engine), IMAGES.clone()
    together, singles = network(images), [network(image[None]) for image in images]
    for level, maps in together.items():
        torch.testing.assert_close(maps, torch.cat([single[level] for single in singles]), atol=1e-5, rtol=1e-5)
    assert torch.equal(images, IMAGES)
    turned = images.mT                      # a view: its numbers do not lie in order
    assert not turned.is_contiguous() and torch.equal(network(turned)[1], network(turned.contiguous())[1])
    assert not torch.equal(network(turned)[1], together[1])


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64)])
def test_pictures_of_another_shape_are_refused_by_all(int8, shape):
    eager = build("eager")
    for network in (eager, build("fast"), int8, quantize.torch_int8(eager, [IMAGES], engine="qnnpack")):
        with pytest.raises(ValueError, match=re.escape(f"images of shape {shape}: needs (B, 3, H, W)")):
            network(torch.zeros(shape))


def test_threads_are_those_of_torch_when_it_is_called(monkeypatch):
    """Another number needs another session, the same number does not."""
    made, genuine = [], onnxruntime.InferenceSession

    def session(model, options, **more):
        made.append(options.intra_op_num_threads)
        return genuine(model, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    torch.set_num_threads(2)
    network = build("fast")
    network(IMAGES)
    torch.set_num_threads(1)
    features = [network(IMAGES), network(IMAGES)]
    assert made == [2, 1]
    assert torch.equal(features[0][1], features[1][1])


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_state_and_restore_give_the_same_network(engine):
    network = build(engine)
    state = engines.state(network)
    assert (list(state) == ["onnx"] and state["onnx"].dtype == torch.uint8) == (engine != "eager")
    again = engines.restore("resnet18", (1, 2), state, network.weights)
    assert type(again) is type(network) and again.weights == network.weights
    assert all(torch.equal(x, network(IMAGES)[level]) for level, x in again(IMAGES).items())


def test_calibration_takes_so_many_evenly_spaced_pictures_and_only_those(pad, small, monkeypatch, make_category):
    """From `Pictures` the others are not even read."""
    category = data.scan(make_category(train=9), "pad")
    taken = []
    monkeypatch.setattr(quantize, "qdq", lambda model, images, **more: taken.extend(images) or model)
    read, genuine = [], data.Preprocess.array
    monkeypatch.setattr(data.Preprocess, "array", lambda self, path: read.append(path.stem) or genuine(self, path))
    build("int8", images=data.Pictures(category.train, small), calibration=3)
    assert read == ["000", "004", "008"]
    from_pictures = torch.cat(taken)
    taken.clear()
    build("int8", images=list(data.Pictures(category.train, small, 4)), calibration=3)
    assert torch.equal(torch.cat(taken), from_pictures)


def test_the_same_pictures_give_the_same_network_other_ones_another(int8):
    assert build("int8").model == int8.model == build("int8", images=IMAGES.split(1)).model
    assert build("int8", calibration=1).model != int8.model
    assert build("int8", images=[IMAGES / 2]).model != int8.model


@pytest.mark.parametrize("engine", ["eager", "fast"])
def test_without_int8_no_picture_is_looked_at(engine):
    build(engine, images=iter([]))
    engines.build("resnet18", (1,), "random", engine)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"engine": "tpu"}, "engine='tpu': needs one of eager, fast, int8"),
    ({"engine": "int8", "calibration": 0}, "calibration=0: needs at least 1 picture"),
    ({"engine": "int8", "images": iter([IMAGES])}, "images: engine=int8 reads them once.* not an iterator"),
    ({"engine": "int8", "images": []}, "images: no pictures to calibrate"),
    ({"engine": "int8", "images": [IMAGES[:, :1]]}, "ONNX Runtime does not take the int8 network of resnet18"),
    ({"engine": "fast", "name": "resnet50"}, "backbone='resnet50'")])
def test_build_refuses(arguments, message):
    with pytest.raises(ValueError, match=message) as told:
        build(**arguments)
    assert "\n" not in str(told.value)


def test_int8_without_pictures_is_refused():
    with pytest.raises(ValueError, match="needs Pictures or a list of batches, not none"):
        engines.build("resnet18", (1,), "random", "int8")


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(monkeypatch, missing):
    genuine = importlib.import_module

    def absent(name, *more):
        if name == missing:
            raise ImportError(f"No module named '{name}'")
        return genuine(name, *more)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(engines.EngineError, match=rf"need the package {missing} \(pip install {missing}\)"):
        build("int8")
    build("eager")


def test_eager_imports_neither(monkeypatch):
    genuine = builtins.__import__

    def watched(name, *more):
        assert not name.startswith("onnx"), name
        return genuine(name, *more)

    monkeypatch.setattr(builtins, "__import__", watched)
    build("eager")(IMAGES)


def test_damaged_bytes_are_refused_in_one_line(int8):
    broken = {"onnx": engines.state(int8)["onnx"][:1000].clone()}
    with pytest.raises(ValueError, match="ONNX Runtime does not take the network of resnet18") as told:
        engines.restore("resnet18", (1, 2), broken, int8.weights)
    assert "\n" not in str(told.value)


def test_a_picture_that_cannot_be_read_stays_the_error_of_the_picture(pad, small):
    pad.train[0].path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=str(pad.train[0].path)):
        build("int8", images=data.Pictures(pad.train, small))


@pytest.mark.parametrize(("machine", "flags", "expected"), [
    ("x86_64", "avx2 avx512f", True), ("x86_64", "avx2 avx512_vnni", False), ("AMD64", "avx_vnni", False),
    ("AMD64", None, True), ("aarch64", "asimd", False), ("arm64", None, False)])
def test_weights_keep_to_seven_bits_only_where_sums_can_overflow(monkeypatch, tmp_path, machine, flags, expected):
    monkeypatch.setattr(engines.platform, "machine", lambda: machine)
    if flags:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert engines.reduce_range(str(tmp_path / "cpuinfo")) is expected


def test_a_row_says_what_its_int8_network_depends_on(pad, small, monkeypatch):
    stored = []
    for bits in (True, False):
        monkeypatch.setattr(engines, "reduce_range", lambda bits=bits: bits)
        detector = PatchCore(backbone="resnet18", layers=(1,), weights="random", bank=20, engine="int8", calibration=2)
        (row,) = scores.evaluate(detector, pad, small, seeds=1).to_dict("records")
        assert row["parameters.engine"] == "int8" and row["parameters.calibration"] == 2
        assert row["engine.reduce_range"] is bits
        stored.append(row)
    assert stored[0]["id"] != stored[1]["id"], "another network, another row"
    assert len(tables.all_rows()[lambda rows: rows["origin"] == "own"]) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("engine", engines.ENGINES)
def test_images_that_are_not_finite_are_refused(engine, value, int8):
    """ReLUs of ONNX Runtime and integers make finite maps of them."""
    network, images = int8 if engine == "int8" else build(engine), IMAGES.clone()
    images[1, 2, 5, 5] = value
    with pytest.raises(ValueError, match="images: number 1 of 3 holds NaN or infinity"):
        network(images)
