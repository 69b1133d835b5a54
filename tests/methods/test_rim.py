"""Patches that leave the picture must not make its rim bright: nominal pictures have their maxima anywhere."""

import pytest
import torch

from thesis_lib.data import normalise, synthetic
from thesis_lib.methods import EfficientAD, UninformedStudents

SIDE, STRIDE = 128, 4
DETECTORS = {
    "uninformed_students": (UninformedStudents(
        weights="bundled", layers=(2,), patch_sizes=(17, 33), channels=8, source="nominal", teacher_steps=40,
        teacher_batch=32, teacher_rate=1e-3, students=2, epochs=4, rate=1e-3, stride=STRIDE, snapshots=1), (17, 33)),
    "efficientad": (EfficientAD(steps=8, penalty="none", rate=1e-3, snapshots=1), (33,))}


@pytest.fixture(scope="module")
def pictures():
    """Nominal ones of the demo category `weave`: 10 to train on, 30 others."""
    drawn = [synthetic.render("weave", seed=0, index=index, size=SIDE)[0] for index in range(40)]
    images = normalise(torch.stack([torch.from_numpy(one) for one in drawn]).permute(0, 3, 1, 2) / 255)
    return images[:10], images[10:]


@pytest.mark.parametrize("name", DETECTORS)
def test_maxima_of_nominal_maps_are_not_at_the_rim(pictures, name):
    """With patches mirrored at the rim, half of the maxima of Uninformed Students lay on the outer 8 of 128 pixels."""
    train, others = pictures
    detector, sizes = DETECTORS[name]
    prediction = detector.fit(train.split(5)).predict(others)
    highest = prediction.map == prediction.map.flatten(1).amax(1)[:, None, None]
    grid = SIDE // STRIDE
    for p in sizes:
        rim = p // 2 // STRIDE
        within = highest[:, rim:grid - rim, rim:grid - rim].sum((1, 2))
        # Filled values repeat a maximum: one that reaches into the rim counts as one of the rim.
        at_rim = (within < highest.sum((1, 2))).double().mean().item()
        area = 1 - (1 - 2 * rim / grid) ** 2
        assert at_rim <= 1.5 * area, (p, at_rim, area)
