"""The box around the most unusual place of a map, in pixels of the picture that the map is of."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from thesis_lib.core.preprocess import Preprocess
from thesis_lib.core.unusual import region


def slow(heat, preprocess, size):
    """SciPy labels the places; whole pictures of coordinates go the way of the pixels."""
    peak = np.unravel_index(heat.argmax(), heat.shape)
    labels, _ = ndimage.label(heat >= (heat[peak] + np.median(heat[heat > -np.inf])) / 2)
    rows, columns = ndimage.find_objects(labels)[labels[peak] - 1]
    (h, w), (height, width) = heat.shape, preprocess.shape
    seen = (slice(rows.start * height // h, -(-rows.stop * height // h)),
            slice(columns.start * width // w, -(-columns.stop * width // w)))
    ends = []
    for values in np.meshgrid(*(np.arange(count, dtype=np.float32) for count in size)):
        whence = np.asarray(preprocess.geometry(Image.fromarray(values), "nearest"))[seen]
        ends.append((int(whence.min()), int(whence.max()) + 1))
    (left, right), (top, bottom) = ends
    return left, top, right - left, bottom - top


WAYS = [({"image_size": 64}, (128, 64), (64, 16, 32, 16)),
        ({"image_size": 64, "roi": (100, 200, 64, 64)}, (300, 300), (132, 216, 16, 16)),
        ({"image_size": 64, "resize": "pad"}, (128, 64), (64, 0, 32, 32)),
        ({"image_size": 64, "resize": "pad"}, (64, 128), (32, 32, 32, 32)),     # its 32 columns stand in the middle
        ({"image_size": 96, "crop": 64}, (96, 96), (48, 32, 16, 16)),
        ({"image_size": (64, 128)}, (64, 128), (32, 32, 16, 32))]


@pytest.mark.parametrize(("preprocess", "size", "expected"), WAYS)
def test_a_region_is_told_in_pixels_of_the_original(preprocess, size, expected):
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[1, 2], heat[3, 0] = 1, 0.4
    np.testing.assert_allclose(region(heat, Preprocess(**preprocess), size), expected, atol=1)


@pytest.mark.parametrize(("preprocess", "size", "_"), WAYS)
def test_it_is_that_of_the_slow_way(preprocess, size, _):
    rng, preprocess = np.random.default_rng(0), Preprocess(**preprocess)
    for count in (1, 4, 16, 31):
        heat = ndimage.gaussian_filter(rng.normal(size=(count, count)), 1).astype(np.float32)
        heat[:count // 4] = -np.inf             # nothing counts there
        assert region(heat, preprocess, size) == slow(heat, preprocess, size)
