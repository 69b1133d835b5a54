"""Patches that leave the picture must not make its rim bright: nominal pictures have their maxima anywhere."""

import pytest
import torch

from thesis_lib.data import normalise, synthetic
from thesis_lib.methods import EfficientAD, UninformedStudents
from thesis_lib.networks.pdn import RIM

SIDE, STRIDE = 128, 4
GRID = SIDE // STRIDE


@pytest.fixture(scope="module")
def pictures():
    """Nominal ones of the demo category `weave`: 10 to train on, 30 others."""
    drawn = [synthetic.render("weave", seed=0, index=index, size=SIDE)[0] for index in range(40)]
    images = normalise(torch.stack([torch.from_numpy(one) for one in drawn]).permute(0, 3, 1, 2) / 255)
    return images[:10], images[10:]


@pytest.fixture(scope="module")
def students(pictures):
    detector = UninformedStudents(
        weights="bundled", layers=(2,), patch_sizes=(17, 33), channels=8, source="nominal", teacher_steps=40,
        teacher_batch=32, teacher_rate=1e-3, students=2, epochs=4, rate=1e-3, stride=STRIDE, snapshots=1)
    return detector.fit(pictures[0].split(5))


def positions(maps):
    """(B, h, w) bool: where a map is highest; filled values repeat it, so there may be several places."""
    return maps == maps.flatten(1).amax(1)[:, None, None]


def outer(rim):
    """(grid, grid) bool: the outermost positions, and their share of the area."""
    inner = torch.zeros(GRID, GRID, dtype=torch.bool)
    inner[rim:GRID - rim, rim:GRID - rim] = True
    return ~inner, 1 - inner.double().mean().item()


@pytest.mark.parametrize("p", [17, 33])
def test_maxima_of_uninformed_students_are_not_at_the_rim(pictures, students, p):
    """With patches mirrored at the rim, half of the maxima lay on the outer 8 of 128 pixels. A filled value that
    repeats a maximum counts as one of the rim.
    """
    at_rim, area = outer(p // 2 // STRIDE)
    highest = positions(students.predict(pictures[1]).map)
    assert (highest & at_rim).any((1, 2)).double().mean() <= 1.5 * area


def test_efficientad_fills_its_rim_with_the_nearest_values(pictures):
    """So no maximum is added. The outermost ring of what the networks say is high in itself, as the autoencoder pads
    with zeros; that is the method's.
    """
    train, others = pictures
    prediction = EfficientAD(steps=8, penalty="none", rate=1e-3, snapshots=1).fit(train.split(5)).predict(others)
    inner = prediction.map[:, RIM:-RIM, RIM:-RIM]
    nearest = torch.arange(GRID).clamp(RIM, GRID - RIM - 1) - RIM
    assert torch.equal(prediction.map, inner[:, nearest][:, :, nearest])
    assert torch.equal(prediction.score, inner.flatten(1).amax(1))
