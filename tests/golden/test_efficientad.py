"""EfficientAD-S against nelson1425/EfficientAD in float64: five steps, and what their weights say of two pictures.

Not compared: EfficientAD-M, sides other than 256, augmentation, how pictures are read, training without a penalty.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import nn

from tests.golden.recipe import check, check_layers, convolutions, fill, golden, picture
from thesis_lib.methods import EfficientAD, efficientad
from thesis_lib.methods.efficientad import TaughtPictures
from thesis_lib.methods.trained import standard
from thesis_lib.networks import autoencoder, backbones
from thesis_lib.networks.pdn import CHANNELS, PDN, RIM

pytestmark = pytest.mark.usefixtures("exact")
GOLDEN = golden("efficientad")
CLOSE = {"rtol": 1e-10, "atol": 1e-12, "of_sum": 1e-9}
HELD, TRAINED = (400, 401, 402), (100, 101, 102)        # seeds of pictures
DROPPED = ((64, 4, 4), (64, 9, 9), (64, 16, 16), (64, 33, 33), (64, 64, 64), (64, 128, 128))    # maps, in their order


@pytest.fixture(scope="module")
def teacher(exact):
    return fill(backbones.load("pdn_small", (1,), "random"), 1)


@pytest.fixture(scope="module")
def taught(teacher):
    """The pictures trained on, and what the teacher says of them."""
    return described(teacher, TRAINED)


def described(teacher, seeds):
    images = torch.stack([picture(seed) for seed in seeds])
    return TaughtPictures(images.numpy(), torch.cat([teacher(image[None])[1] for image in images]).numpy())


@pytest.fixture
def train(monkeypatch, teacher):
    """train(collected, steps) -> detector, and the networks as its training has left them.

    Given are the first weights, the pictures of every step and their order; nothing is dropped out.
    """
    genuine, built, changed = EfficientAD.architecture, [], itertools.count(200)

    def architecture(self):
        networks = genuine(self)
        for name, seed in (("student", 2), ("autoencoder", 3)):
            fill(networks[name], seed)
        for layer in networks.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        built.append(networks)
        return networks

    class Penalty:
        identity = "pictures from 300 on"

        def __getitem__(self, step):
            return picture(300 + step)[None]

    monkeypatch.setattr(EfficientAD, "architecture", architecture)
    monkeypatch.setattr(efficientad, "augmented", lambda image: picture(next(changed))[None])
    monkeypatch.setattr(efficientad.sources, "parse", lambda *given: Penalty())
    monkeypatch.setattr(efficientad.distillation, "greyed", lambda images, share: images)
    monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.arange(count))     # as listed; first held out

    def trained(collected, steps):
        share = 1 - len(TRAINED) / len(collected.images)
        detector = EfficientAD(weights="random", steps=steps, snapshots=1, held_out=share)
        detector.backbone_, detector.side_, detector.image_size_ = teacher, 256, (256, 256)
        return detector.learn(collected), built[0]

    return trained


def test_inputs(teacher):
    last = {"teacher": teacher, "student": fill(PDN("pdn_small", 2 * CHANNELS), 2),
            "autoencoder": fill(autoencoder.build(256, CHANNELS), 3)}
    for name, network in last.items():
        check_layers(convolutions(network)[-1], [GOLDEN["inputs"][name]], **CLOSE)
    for seed, image in GOLDEN["inputs"]["pictures"].items():
        check(picture(int(seed)), image, **CLOSE)
    check(picture(501, 0.9), GOLDEN["inputs"]["low_contrast"], **CLOSE)


@torch.no_grad()
def test_networks_of_the_first_weights(taught):
    expected, image = GOLDEN["first_weights"], picture(100)[None]
    check(taught.described[0], expected["teacher"], **CLOSE)
    check(fill(PDN("pdn_small", 2 * CHANNELS), 2)(image)[0], expected["student"], **CLOSE)
    check(fill(PDN("pdn_small", padding=True), 1)(image)[0], expected["padded_teacher"], **CLOSE)
    check(fill(autoencoder.build(256, CHANNELS), 3).eval()(picture(200)[None])[0], expected["autoencoder"], **CLOSE)


def test_autoencoder_with_given_dropout(monkeypatch, teacher, taught):
    """Its output, both losses that it learns from, and their gradient."""
    rng, expected = RandomState(4), GOLDEN["dropout"]
    masks = [torch.from_numpy(rng.random_sample(shape) >= 0.2) for shape in DROPPED]
    assert [int(mask.sum()) for mask in masks] == expected["kept"]
    left = iter(masks)
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x * next(left) / (1 - self.p))
    network, image = fill(autoencoder.build(256, CHANNELS), 3).train(), picture(200)[None]
    constants = standard(taught.described, range(3))
    with torch.no_grad():
        target = (teacher(image)[1] - constants["mean"]) / constants["std"]
        other = fill(PDN("pdn_small", 2 * CHANNELS), 2)(image)[:, CHANNELS:]
    output = network(image)
    losses = (target - output).square().mean(), (output - other).square().mean()
    sum(losses).backward()
    check(output[0], expected["output"], **CLOSE)
    np.testing.assert_allclose([loss.item() for loss in losses],
                               [expected["autoencoder"], expected["student_autoencoder"]], rtol=1e-10)
    check_layers(network, expected["gradient"], gradient=True, **CLOSE)


def test_the_first_step(train, taught):
    """Statistics of the teacher, losses, gradients, and the weights behind the step; picture 100 is held out, too."""
    detector, networks = train(TaughtPictures(*(part[[0, 0, 1, 2]] for part in taught)), steps=1)
    for name, statistic in GOLDEN["teacher_statistics"].items():
        check(detector.constants_[name].flatten(), statistic, **CLOSE)
    for name, losses in GOLDEN["losses"].items():
        np.testing.assert_allclose(detector.course_.losses[name], losses[:1], rtol=1e-10, err_msg=name)
    for name, network in networks.items():
        check_layers(network, GOLDEN["gradient_of_step_1"][name], gradient=True, **CLOSE)
        check_layers(network, GOLDEN["after_step_1"][name], **CLOSE)


def test_the_rate_falls_before_the_last_of_five_steps():
    networks = nn.ModuleDict({"student": nn.Conv2d(1, 1, 1)})
    (adam,), (schedule,) = EfficientAD(weights="random").optimizers(networks, 5)
    rates = []
    for _ in range(5):
        rates.append(adam.param_groups[0]["lr"])
        adam.step()
        schedule.step()
    np.testing.assert_allclose(rates, GOLDEN["rates"], rtol=1e-10)


@pytest.mark.slow
def test_five_steps_and_what_they_say_of_two_pictures(train, teacher):
    """The reference's score is the maximum of the map with its rim of zeros, at the size of the picture that was given;
    ours is that of the map itself. 0.0588 and 0.0637 against 0.0699 for `noise`; for `low_contrast` the zeros win: 0
    against -0.0081. The library's rim has the nearest values, so zeros are put in before the maps are compared.
    """
    detector, networks = train(described(teacher, HELD + TRAINED), steps=5)
    for name, losses in GOLDEN["losses"].items():
        np.testing.assert_allclose(detector.course_.losses[name], losses, rtol=1e-10, err_msg=name)
    for name, network in networks.items():
        check_layers(network, GOLDEN["after_step_5"][name], **CLOSE)
    np.testing.assert_allclose(detector.constants_["quantiles"], GOLDEN["quantiles"], rtol=1e-10)
    for name, image in (("noise", picture(500)), ("low_contrast", picture(501, 0.9))):
        expected = GOLDEN["evaluated"][name]
        for kind, heat in detector.maps(detector.stages["extraction"](image[None])).items():
            check(heat[0], expected[kind], **CLOSE)
        prediction = detector.predict(image[None])
        np.testing.assert_allclose(prediction.score, expected["score_before_padding"], rtol=1e-10)
        theirs = replace(prediction, located=F.pad(prediction.map[:, RIM:-RIM, RIM:-RIM], [RIM] * 4))
        resized = F.interpolate(theirs.map[None], (200, 300), mode="bilinear")[0, 0]
        check(theirs.full_map(256)[0], expected["padded_and_resized"]["256 x 256"], **CLOSE)
        check(resized, expected["padded_and_resized"]["300 wide, 200 high"], **CLOSE)
