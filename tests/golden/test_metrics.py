"""PRO against MVTec's own evaluation, AUROC against scikit-learn, on maps with many ties."""

import numpy as np
import pytest
from numpy.random import RandomState

from tests.golden.recipe import check, golden
from thesis_lib.evaluation import metrics

GOLDEN = golden("metrics")
# (picture, top, bottom, left, right), the ends excluded; the one of a single pixel touches the next at a corner.
BOXES = ((1, 4, 10, 6, 14), (1, 20, 24, 20, 30), (2, 0, 5, 0, 3), (2, 10, 30, 12, 16), (3, 15, 16, 15, 16),
         (3, 16, 20, 16, 19), (4, 8, 20, 8, 20), (4, 22, 23, 1, 31))


@pytest.fixture(scope="module")
def inputs():
    """Masks and maps (6, 32, 32)."""
    maps = RandomState(601).randint(0, 12, size=(6, 32, 32)).astype(np.float64)
    masks = np.zeros(maps.shape, dtype=bool)
    for picture, top, bottom, left, right in BOXES:
        masks[picture, top:bottom, left:right] = True
        maps[picture, top:bottom, left:right] += 4
    maps[4, 8:20, 8:12] -= 6
    masks[4, 14, 8:20] = False
    return masks, maps


def test_inputs(inputs):
    masks, maps = inputs
    check(masks, GOLDEN["masks"], rtol=0.0)
    check(maps, GOLDEN["maps"], rtol=0.0)
    assert (~masks).sum() == GOLDEN["nominal_pixels"]


@pytest.mark.parametrize("limit", GOLDEN["pro"])
def test_pro(inputs, limit):
    """MVTec keeps rates in float32: 3e-9 from the same rule in float64."""
    found = metrics.pro(*inputs, limit=float(limit))
    assert found == pytest.approx(GOLDEN["pro_rates_in_float64"][limit], rel=0, abs=1e-12)
    assert found == pytest.approx(GOLDEN["pro"][limit], rel=0, abs=1e-8)


def test_auroc(inputs):
    masks, maps = inputs
    assert metrics.pixel_auroc(masks, maps) == pytest.approx(GOLDEN["pixel_auroc"], rel=0, abs=1e-12)
    found = metrics.image_auroc(masks.any(axis=(1, 2)), maps.max(axis=(1, 2)))
    assert found == pytest.approx(GOLDEN["image_auroc_of_maxima"], rel=0, abs=1e-12)
    sixty = GOLDEN["sixty"]
    found = metrics.image_auroc(sixty["labels"], sixty["scores"])
    assert found == pytest.approx(sixty["image_auroc"], rel=0, abs=1e-12)
