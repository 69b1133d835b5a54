"""The affine map equals torch's bit for bit; quantised networks stay close and say what they do."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.ao.quantization import observer

from thesis_lib.networks import backbones, engines, quantize

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def numbers(seed=0, shape=(6, 500), spread=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread + 1


def torch_qparams(x, axis, signed, symmetric, bits=8):
    kind = observer.MinMaxObserver if axis is None else observer.PerChannelMinMaxObserver
    schemes = [[torch.per_tensor_affine, torch.per_tensor_symmetric],
               [torch.per_channel_affine, torch.per_channel_symmetric]]
    low, high = (-2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2 ** bits - 1)
    more = {} if axis is None else {"ch_axis": axis}
    watch = kind(dtype=torch.qint8 if signed else torch.quint8, qscheme=schemes[axis is not None][symmetric],
                 **({} if bits == 8 else {"quant_min": low, "quant_max": high}), **more)
    watch(x)
    return watch.calculate_qparams()


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize(("signed", "symmetric", "bits"), [
    (False, False, 8), (True, False, 8), (True, True, 8), (False, True, 8), (False, False, 4), (True, True, 4)])
def test_step_and_zero_point_are_those_of_torch(axis, signed, symmetric, bits):
    for seed in range(20):
        x = numbers(seed, spread=10.0 ** (seed % 5 - 2))
        ours = quantize.affine(x.numpy(), axis=axis, signed=signed, symmetric=symmetric, bits=bits)
        scale, zero = torch_qparams(x, axis, signed, symmetric, bits)
        shape = ours.scale.shape
        assert np.array_equal(ours.scale, scale.numpy().reshape(shape))
        assert np.array_equal(ours.zero_point, zero.numpy().reshape(shape))


@pytest.mark.parametrize("seed", range(10))
def test_round_trip_is_that_of_torch_bit_for_bit(seed):
    """Ties included: quarters with a step of one half."""
    x = torch.cat([numbers(seed).ravel(), torch.arange(-300, 300) / 4])
    learned = quantize.affine(x.numpy())
    for ours in (learned, quantize.Affine(np.float32(0.5), np.int64(17 + seed), 0, 255)):
        theirs = torch.fake_quantize_per_tensor_affine(x, float(ours.scale), int(ours.zero_point), ours.low, ours.high)
        assert np.array_equal(ours.dequantize(ours.quantize(x.numpy())), theirs.numpy())


@pytest.mark.parametrize("axis", [0, 1])
def test_round_trip_per_channel_is_that_of_torch_bit_for_bit(axis):
    x = numbers(shape=(8, 4, 3, 3))
    ours = quantize.affine(x.numpy(), signed=True, symmetric=True, axis=axis)
    scale, zero = torch.from_numpy(ours.scale), torch.from_numpy(ours.zero_point).int()
    theirs = torch.fake_quantize_per_channel_affine(x, scale, zero, axis, -128, 127)
    assert np.array_equal(ours.dequantize(ours.quantize(x.numpy())), theirs.numpy())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_integers_are_those_of_quantised_tensors_and_of_onnx_away_from_ties():
    """At a tie these two round x/S + Z together, torch's fake_quantize and we x/S alone."""
    x = numbers()
    ours = quantize.affine(x.numpy())
    steps = x.numpy() / ours.scale
    clear = np.abs(steps - np.floor(steps) - 0.5) > 1e-3
    assert clear.mean() > 0.99
    theirs = torch.quantize_per_tensor(x, float(ours.scale), int(ours.zero_point), torch.quint8).int_repr().numpy()
    node = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    fixed = [onnx.numpy_helper.from_array(ours.scale.reshape(()), "s"),
             onnx.numpy_helper.from_array(ours.zero_point.astype(np.uint8).reshape(()), "z")]
    graph = onnx.helper.make_graph([node], "map", [onnx.helper.make_tensor_value_info("x", 1, x.shape)],
                                   [onnx.helper.make_tensor_value_info("q", 2, x.shape)], fixed)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (runtime,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    mine = ours.quantize(x.numpy())
    assert np.array_equal(mine[clear], theirs[clear])
    assert np.array_equal(mine[clear], runtime[clear])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8, 12])
def test_the_error_is_at_most_half_a_step_and_gets_there(bits, symmetric):
    """Not S / 2^n / 2 as the thesis' text has it."""
    x = np.linspace(-1.3, 4.1, 100_001, dtype=np.float32)
    ours = quantize.affine(x, bits=bits, symmetric=symmetric, signed=symmetric)
    low, high = ours.range
    inside = (x >= low) & (x <= high)
    error = np.abs(ours.dequantize(ours.quantize(x)) - x)[inside].max()
    assert inside.mean() > 0.7
    assert error <= ours.scale / 2 * 1.001
    assert error > 0.98 * ours.scale / 2 > ours.scale / 2 / 2 ** bits


def test_the_map_by_hand():
    """Range -1..4.1 in steps of 0.02: -1 is 0, 0 is 50, 4.1 is 255; beyond it is clipped."""
    ours = quantize.affine(np.float32([-1.0, 4.1]))
    assert ours.scale == pytest.approx(0.02) and ours.zero_point == 50
    assert ours.quantize(np.float32([-1, 0, 0.029, 0.031, 4.1, 9, -9])).tolist() == [0, 50, 51, 52, 255, 255, 0]
    assert ours.dequantize(np.array([0, 50, 255])).tolist() == pytest.approx([-1, 0, 4.1], abs=1e-6)


@pytest.mark.parametrize("x", [[2.0, 3.0], [-5.0, -4.0], [0.0, 0.0], [-1e-9, 1e-9]])
def test_zero_is_kept_exactly(x):
    ours = quantize.affine(np.float32(x))
    assert ours.dequantize(ours.quantize(np.float32([0.0]))) == 0
    assert ours.low <= ours.zero_point <= ours.high


def test_quantiles_give_up_outliers_for_a_finer_step():
    x = np.append(numbers(shape=(10_000,)).numpy(), 1e4).astype(np.float32)
    whole, cut = quantize.affine(x), quantize.affine(x, quantile=0.001)
    assert cut.scale < whole.scale / 100
    assert cut.range[1] < 1e3 < 0.99e4 < whole.range[1]

    def error(one):
        return np.abs(one.dequantize(one.quantize(x)) - x)

    assert np.median(error(cut)) < np.median(error(whole)) / 50
    assert error(cut)[-1] > 9e3 > error(whole)[-1]


def test_a_step_per_channel_is_never_coarser_and_better_where_channels_differ():
    w = numbers(shape=(8, 16)).numpy() * np.float32(10.0) ** np.arange(-4, 4)[:, None]
    one, each = (quantize.affine(w, signed=True, symmetric=True, axis=axis) for axis in (None, 0))
    assert (each.scale <= one.scale).all() and each.scale.max() == one.scale
    lost = [np.abs(m.dequantize(m.quantize(w)) - w).max(axis=1) / np.abs(w).max(axis=1) for m in (one, each)]
    assert (lost[1] < 0.005).all() and lost[0].max() == 1, "one step for all rounds the smallest channel to nothing"


@pytest.mark.parametrize(("arguments", "message"), [
    ({"x": []}, "x: needs finite"), ({"x": [1, np.nan]}, "x: needs finite"), ({"bits": 1}, "bits=1: needs 2 to 16"),
    ({"bits": 17}, "bits=17"), ({"quantile": 0.5}, "quantile=0.5"), ({"quantile": -0.1}, r"quantile=-0\.1")])
def test_affine_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize.affine(**{"x": np.ones(3), **arguments})


@pytest.fixture(scope="module")
def float_network():
    return backbones.load("resnet18", (1, 2), "bundled")


def difference(one, other):
    return max(((one[level] - other[level]).norm() / other[level].norm()).item() for level in other)


@pytest.mark.parametrize("engine", quantize.torch_engines())
def test_torch_int8_is_close_fused_small_and_leaves_the_float_network_alone(float_network, engine):
    before = float_network(IMAGES)
    int8 = quantize.torch_int8(float_network, IMAGES.split(2), engine=engine)
    features = int8(IMAGES)
    assert {level: x.shape for level, x in features.items()} == {level: x.shape for level, x in before.items()}
    assert 0 < difference(features, before) < 0.1
    assert (int8.name, int8.layers, int8.channels, int8.strides, int8.weights) == (
        float_network.name, float_network.layers, float_network.channels, float_network.strides, float_network.weights)
    assert int8.blocks == ["ConvReLU2d", *["ConvReLU2d", "Conv2d"] * 3, "Conv2d", "ConvReLU2d", "Conv2d"]
    count = sum(p.numel() for key, p in float_network.named_parameters() if p.ndim == 4)
    assert count < int8.nbytes < 1.05 * count + 5000
    after = float_network(IMAGES)
    assert all(torch.equal(before[level], after[level]) for level in before)


def test_torch_has_a_kernel_for_integers_here():
    """The tests above run once for each of them, and would not run at all without any."""
    assert "qnnpack" in quantize.torch_engines()


def test_torch_int8_options_have_an_effect(float_network):
    engine = quantize.torch_engines()[-1]
    outputs = [quantize.torch_int8(float_network, IMAGES.split(2), engine=engine, **options)(IMAGES)[2] for options in (
        {}, {"activations": "minmax"}, {"per_channel": False}, {"per_channel": True})]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[2], outputs[3])


def test_torch_engine_is_put_back(float_network):
    before = torch.backends.quantized.engine
    other = next(name for name in quantize.torch_engines() if name != before)
    quantize.torch_int8(float_network, [IMAGES], engine=other)(IMAGES)
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize(("arguments", "message"), [
    ({"engine": "tpu"}, "engine='tpu': this build of torch has .*qnnpack"), ({"images": []}, "images: none"),
    ({"activations": "mean"}, "activations='mean': needs default or minmax")])
def test_torch_int8_refuses(float_network, arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize.torch_int8(float_network, **{"images": [IMAGES], "engine": "qnnpack", **arguments})


def scales_and_weights(model):
    graph = onnx.load_from_string(model).graph
    fixed = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    return [(fixed[node.input[1]], fixed[node.input[0]]) for node in graph.node
            if node.op_type == "DequantizeLinear" and fixed.get(node.input[0], np.zeros(0)).ndim == 4]


def test_qdq_quantises_weights_as_the_map_says(float_network):
    """ONNX Runtime keeps to -127..127: its step is max|w| / 127 per output channel, / 64 with reduce_range."""
    plain = engines.export(float_network)
    for options, steps in ({}, 127), ({"reduce_range": True}, 64), ({"per_channel": False}, 127):
        found = scales_and_weights(quantize.qdq(plain, [IMAGES], **options))
        assert len(found) == 10
        for scale, weights in found:
            assert weights.dtype == np.int8
            assert scale.shape == (() if options.get("per_channel") is False else (len(weights),))
            assert np.abs(weights.astype(int)).max() == steps


def test_qdq_takes_its_ranges_from_the_images(float_network):
    plain = engines.export(float_network)
    quiet, loud = (engines.Exported("resnet18", (1, 2), {}, quantize.qdq(plain, [factor * IMAGES]))
                   for factor in (0.1, 1))
    expected = float_network(IMAGES)
    assert difference(loud(IMAGES), expected) < 0.05 < 0.3 < difference(quiet(IMAGES), expected), "clipped"
