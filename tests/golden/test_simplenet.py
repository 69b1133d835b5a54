"""SimpleNet against DonaldRR/SimpleNet: five steps, and score and map by their weights.

Not compared: the embedding (see test_patchcore.py), the order of the pictures, and what the reference makes of scores
over the test set.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from tests.golden.recipe import check, golden
from thesis_lib.methods import SimpleNet, simplenet
from thesis_lib.patches.embedding import Patches

GOLDEN = golden("simplenet")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}
# Parameter -> its name in our networks.
NAMES = {"adaptor_weight": "adaptor.weight", "first_weight": "discriminator.0.weight",
         "norm_weight": "discriminator.1.weight", "norm_bias": "discriminator.1.bias",
         "last_weight": "discriminator.3.weight"}
STATISTICS = {"norm_running_mean": "discriminator.1.running_mean", "norm_running_var": "discriminator.1.running_var"}


@pytest.fixture(scope="module")
def inputs():
    rng = RandomState(101)
    drawn = {"adaptor_weight": 0.2 * rng.standard_normal((24, 24)),
             "first_weight": 0.25 * rng.standard_normal((32, 24)),
             "norm_weight": 1 + 0.1 * rng.standard_normal(32), "norm_bias": 0.1 * rng.standard_normal(32),
             "last_weight": 0.3 * rng.standard_normal((1, 32)), "features": rng.standard_normal((5, 128, 24)),
             "noise": 0.015 * rng.standard_normal((5, 128, 24)), "test": rng.standard_normal((64, 24))}
    drawn["test"][20] *= 3
    return drawn


@pytest.fixture
def detector(dtype, monkeypatch, inputs):
    """Trained for five steps: step k takes features and noise k."""
    genuine, noise = SimpleNet.architecture, iter(inputs["noise"])

    def architecture(self):
        networks = genuine(self)
        state = networks.state_dict()
        for name, ours in NAMES.items():
            state[ours].copy_(torch.from_numpy(inputs[name]))
        return networks

    monkeypatch.setattr(SimpleNet, "architecture", architecture)
    monkeypatch.setattr(simplenet, "pictures_of", lambda step, *given: np.array([step]))
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.from_numpy(next(noise) / 0.015).to(dtype))
    given = SimpleNet(hidden=32, epochs=1, passes=1, batch=1, snapshots=1, batch_norm="running")
    given.backbone_ = SimpleNamespace(weights={}, channels={2: 8, 3: 16})       # a patch has 24 numbers
    return given.learn(torch.from_numpy(inputs["features"]).to(dtype).numpy())


@pytest.fixture
def prediction(dtype, detector, inputs):
    patches = Patches(torch.from_numpy(inputs["test"])[None].to(dtype), (8, 8))
    return detector.stages["score"](detector.stages["search"](patches))


def test_inputs(inputs):
    for name, described in GOLDEN["inputs"].items():
        check(inputs[name], described, rtol=1e-9, atol=1e-12)


def test_five_steps(dtype, detector):
    for name in ("nominal", "pseudo"):
        np.testing.assert_allclose(detector.course_.losses[name], GOLDEN[name], TOLERANCE[dtype])
    learned = detector.networks_.state_dict()
    for name, ours in (NAMES | STATISTICS).items():
        check(learned[ours], GOLDEN["after"][name], 0.0, atol=TOLERANCE[dtype], of_sum=TOLERANCE[dtype])


def test_score_and_map(dtype, prediction):
    expected, tolerance = GOLDEN["test"], TOLERANCE[dtype]
    check(prediction.map[0], expected["patch_scores"], 0.0, atol=tolerance)
    check(prediction.full_map(64)[0], expected["smoothed_map"], 0.0, atol=tolerance)
    assert prediction.score.item() == pytest.approx(expected["image_score"], rel=0, abs=tolerance)


def test_biases_of_the_reference_change_no_loss_but_the_first_scores(dtype, detector, prediction):
    """It trains two biases in front of the batch norm, which takes them away again. After five steps the running mean
    has taken up 41 % of them, and its score of the picture is 0.083 above ours; this fades with training.
    """
    biased = GOLDEN["with_trained_biases"]
    for name, losses in (("nominal", biased["loss_true"]), ("pseudo", biased["loss_fake"])):
        np.testing.assert_allclose(detector.course_.losses[name], losses, TOLERANCE[dtype])
    assert biased["image_score"] - prediction.score.item() == pytest.approx(0.083, abs=5e-4)
