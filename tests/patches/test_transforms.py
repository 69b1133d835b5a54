"""Activations against their formulas, scalings against plain NumPy, and the taps they need."""

import math

import numpy as np
import pytest
import torch

from thesis_lib.methods import PatchCore
from thesis_lib.networks import backbones
from thesis_lib.patches import transforms

VECTORS = (np.random.default_rng(0).normal(3, [0.1, 1, 5, 2], (5000, 4)) ** [1, 2, 1, 3]).astype(np.float32)


@pytest.mark.parametrize(("name", "formula"), [
    ("identity", lambda x: x), ("relu", lambda x: max(x, 0)), ("leaky_relu", lambda x: x if x > 0 else 0.2 * x),
    ("sigmoid", lambda x: 1 / (1 + math.exp(-x)))])
def test_activation_of_single_numbers(name, formula):
    values = [-3.0, -0.5, 0.0, 0.25, 4.0]
    found = transforms.ACTIVATIONS[name](torch.tensor(values).reshape(1, 5, 1, 1))
    assert found.flatten().tolist() == pytest.approx([formula(value) for value in values], rel=1e-6)


def test_softmin_is_over_the_channels_of_one_position():
    x = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = (-x).exp() / (-x).exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(transforms.ACTIVATIONS["softmin"](x), expected)


def by_hand(kind, x, base):
    x = x.astype(np.float64)
    scaled = (x - x.mean(axis=0)) / (x.std(axis=0) + 0.05 * x.std(axis=0).mean())
    if kind == "normalise":
        return scaled
    entropy = []
    for channel in scaled.T:            # after N; the bins are relative, so before it they are the same
        share = np.histogram(channel, bins=100)[0] / len(channel)
        entropy.append(-sum(p * math.log(p, base) for p in share if p > 0))
    return scaled * len(entropy) * np.exp(entropy) / np.exp(entropy).sum()


@pytest.mark.parametrize("base", [2.0, math.e])
@pytest.mark.parametrize("kind", ["normalise", "normalise_weight"])
@pytest.mark.parametrize("block", [700, 10**6])
def test_scaling_equals_plain_numpy(monkeypatch, kind, base, block):
    monkeypatch.setattr(transforms, "BLOCK", block)
    scaling = transforms.fit(kind, VECTORS, base)
    expected = by_hand(kind, VECTORS, base)
    np.testing.assert_allclose(scaling(torch.from_numpy(VECTORS)), expected, rtol=2e-3, atol=2e-4)
    copy = VECTORS.copy()
    assert scaling.in_place(copy) is copy
    np.testing.assert_allclose(copy, expected, rtol=2e-3, atol=2e-4)


def test_base_matters_inside_the_exponential():
    two, e = (transforms.weights(transforms.entropies(VECTORS, base)) for base in (2.0, math.e))
    assert two.mean() == pytest.approx(1) == e.mean()
    assert np.ptp(two) > 1.2 * np.ptp(e)


def test_a_channel_of_one_value_says_nothing_and_does_not_break():
    vectors = VECTORS.copy()
    vectors[:, 1] = 7
    assert transforms.entropies(vectors, 2.0)[1] == 0
    assert torch.isfinite(transforms.fit("normalise_weight", vectors)(torch.from_numpy(vectors))).all()
    with pytest.raises(ValueError, match="scaling=normalise: no channel of the 9 training vectors varies"):
        transforms.fit("normalise", np.ones((9, 3), dtype=np.float32))


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2"])
def test_relu_of_the_preactivation_is_the_output(name):
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = backbones.load(name, (1, 3), "random", tap="preactivation")(images)
    after = backbones.load(name, (1, 3), "random")(images)
    for level in (1, 3):
        assert before[level].min() < 0
        assert torch.equal(before[level].relu(), after[level])


def test_branch_is_what_convnext_adds_before_its_scale():
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tapped = backbones.load("convnext_tiny", (1, 2), "random", tap="branch")
    seen = {}
    for level, blocks in ((1, tapped.levels["1"][-1]), (2, tapped.levels["2"][-1])):
        blocks[-1].register_forward_hook(lambda block, x, y, level=level: seen.update({level: (block, x[0], y)}))
    output, branch = backbones.Backbone("convnext_tiny", tapped.levels, (1, 2), {})(images), tapped(images)
    for level, (block, x, y) in seen.items():
        torch.testing.assert_close(x + block.layer_scale * branch[level], y)
        assert torch.equal(y, output[level])


@pytest.mark.parametrize(("name", "tap"), [("resnet18", "branch"), ("convnext_tiny", "preactivation"),
                                           ("resnet18", "relu")])
def test_a_tap_that_the_network_does_not_have_is_refused(name, tap):
    with pytest.raises(ValueError, match=f"tap='{tap}': {name} has output and "):
        backbones.load(name, (1,), "random", tap=tap)


def test_cut_shares_the_modules_and_ends_earlier():
    full = backbones.load("resnet18", (1, 2, 3), "random", tap="preactivation")
    images = torch.randn(1, 3, 64, 64)
    part = full.cut((2,))
    assert list(part.levels) == ["1", "2"]
    assert (part.layers, part.tap, part.weights, part.training) == ((2,), "preactivation", full.weights, False)
    assert part.levels["2"] is full.levels["2"]
    assert torch.equal(part(images)[2], full(images)[2])


@pytest.mark.parametrize(("parameters", "message"), [
    ({"activation": "tanh"}, "activation='tanh'.*identity, relu"), ({"scaling": "N"}, "scaling='N'.*normalise"),
    ({"entropy_base": 1.0}, "entropy_base=1.0"), ({"tap": "branch"}, "tap='branch'")])
def test_patchcore_refuses(parameters, message):
    with pytest.raises(ValueError, match=message):
        PatchCore(**parameters)


@pytest.mark.parametrize("scaling", ["normalise", "normalise_weight"])
def test_scaled_detector_is_saved_whole(tmp_path, scaling):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    detector = PatchCore(weights="random", layers=(1,), bank=20, tap="preactivation", activation="sigmoid",
                         scaling=scaling).fit([images])
    loaded = PatchCore.load(detector.save(tmp_path / "scaled.safetensors"))
    assert torch.equal(loaded.predict(images).score, detector.predict(images).score)
    patches = detector.stages["embedding"](detector.stages["extraction"](images)).vectors.flatten(0, 1)
    assert patches.mean(dim=0).abs().max() < 1e-4, "training vectors, normalised"
