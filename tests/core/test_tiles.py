"""Maps that were put together from tiles are those of the whole picture, wherever a tile sees enough."""

import itertools

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from thesis_lib.core import tiles
from thesis_lib.core.errors import ThesisError


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("shape", [(128, 192), (128, 256), (101, 405), (256, 131)])
def test_maps_of_what_a_tile_sees_are_those_of_the_whole(shape, grid):
    """By an operation that sees 31 pixels to each side, on a fine and a coarse grid."""
    def run(image):
        seen.append(image.shape[-2:])
        smooth = uniform_filter(image, (1, 1, 63, 63), mode="constant")
        return smooth[..., ::4, ::4], image[..., ::32, ::32]

    seen = []
    image = np.random.default_rng(0).random((2, 3, *shape))
    whole = run(image)
    del seen[:]
    for found, expected in zip(tiles.stitched(run, image, grid, (4, 32), np.concatenate), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert len(seen) == grid[0] * grid[1]
    assert all(height <= shape[0] and width <= shape[1] and (height, width) != shape for height, width in seen)


@pytest.mark.parametrize("side", [96, 100, 256, 405, 1000])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_cover_a_side_once_and_overlap(side, count):
    found = tiles.parts(side, count)
    assert [pixel for first, last, _, _ in found for pixel in range(first, last)] == list(range(side))
    assert all(last - first >= 32 and first % 32 == begin % 32 == 0 for first, last, begin, _ in found)
    assert all(before[3] - after[2] == min(64, side - after[2]) for before, after in itertools.pairwise(found))


def test_pictures_too_small_are_told():
    tiles.check((64, 96), (3, 2))
    with pytest.raises(ThesisError, match=r"^tiles=4x2: of pictures of 96x64 pixels a tile would be less than 32"):
        tiles.check((64, 96), (4, 2))
