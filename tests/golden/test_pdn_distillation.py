"""The distillation of a PDN against nelson1425/EfficientAD in float64: the target, and three steps towards it.

Not compared: the teacher's network, the library's schedule, its first weights, and the pictures it gives the teacher.
"""

import itertools

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from tests.golden.recipe import check, check_layers, convolutions, fill, golden, picture
from thesis_lib.networks.pdn import CHANNELS, PDN
from thesis_lib.patches.embedding import Original
from thesis_lib.training import distillation
from thesis_lib.training.distillation import PatchTarget

pytestmark = pytest.mark.usefixtures("exact")
GOLDEN = golden("pdn_distillation")
CLOSE = {"rtol": 1e-10, "atol": 1e-12, "of_sum": 1e-9}
LEVELS = {2: (512, 64, 64), 3: (1024, 32, 32)}
BATCHES = ((4, 5), (6, 7), (8, 9))


def marked(*numbers):
    """Stand-ins for pictures of the teacher (B, 3, 1, 1): all that they hold is their number."""
    return torch.tensor(numbers, dtype=torch.float64)[:, None, None, None].expand(-1, 3, 1, 1)


def teacher(images):
    """The made-up levels of the pictures with these numbers."""
    described = []
    for number in images[:, 0, 0, 0].round().int().tolist():
        rng = RandomState(1000 + number)
        described.append({level: torch.from_numpy(rng.random_sample(shape)) for level, shape in LEVELS.items()})
    return {level: torch.stack([levels[level] for levels in described]) for level in LEVELS}


def test_inputs():
    check_layers(convolutions(fill(PDN("pdn_small", padding=True), 5))[-1], [GOLDEN["inputs"]["pdn"]], **CLOSE)
    for level, maps in teacher(marked(4)).items():
        check(maps[0], GOLDEN["inputs"]["picture_4"][f"level_{level}"], **CLOSE)


@torch.no_grad()
def test_the_padded_network_of_the_first_weights():
    network = fill(PDN("pdn_small", padding=True), 5)
    check(network(picture(2004)[None])[0], GOLDEN["first_prediction"], **CLOSE)


def test_target():
    check(PatchTarget(teacher)(marked(4))[0], GOLDEN["target"], **CLOSE)


def test_384_numbers_both_times_are_another_target():
    """original_d384 is not the reference's target: in the root mean square 0.0192 apart, and 0.0251 at the places that
    are compared. The target itself has a deviation of 0.0644.
    """
    vectors, grid, _ = Original(CHANNELS)(teacher(marked(4)))
    other = vectors[0].T.unflatten(1, grid)
    check(other, GOLDEN["target_by_original_d384"], **CLOSE)
    apart = other.flatten()[GOLDEN["target"]["positions"]].numpy() - GOLDEN["target"]["at"]
    assert np.sqrt(np.square(apart).mean()) == pytest.approx(0.0251, abs=1e-4)


@pytest.mark.slow
def test_statistics_and_three_steps(monkeypatch, tmp_path):
    target = PatchTarget(teacher).standardise([marked(0, 1), marked(2, 3)])
    for name, described in GOLDEN["statistics"].items():
        check(getattr(target, name).flatten(), described, **CLOSE)
    check(target(marked(4))[0], GOLDEN["normalised_target"], **CLOSE)

    class Source:
        identity = "pictures from 2004 on"

        def __getitem__(self, number):
            return torch.stack([picture(2000 + k) for k in BATCHES[number]])

    schedules, steps = torch.optim.lr_scheduler, itertools.count()
    monkeypatch.setattr(schedules, "CosineAnnealingLR", lambda adam, steps: schedules.ConstantLR(adam, factor=1.0))
    monkeypatch.setattr(distillation, "greyed", lambda images: images)
    network = fill(PDN("pdn_small", padding=True), 5)

    def losses(images):
        return {"distance": (network(images) - target(marked(*BATCHES[next(steps)]))).square().mean()}

    def distil(**options):
        return distillation.distil(network, losses, Source(), steps=3, rate=1e-4, decay=1e-5, seed=0,
                                   checkpoint=tmp_path / "c", subject={}, **options)

    distil(limit=1)
    check_layers(network, GOLDEN["gradient_of_step_1"], gradient=True, **CLOSE)
    check_layers(network, GOLDEN["after_step_1"], **CLOSE)
    course = distil()
    np.testing.assert_allclose(course.losses["distance"], GOLDEN["losses"], rtol=1e-10)
    check_layers(network, GOLDEN["after_step_3"], **CLOSE)
