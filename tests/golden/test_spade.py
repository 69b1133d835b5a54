"""SPADE against byungjae89/SPADE-pytorch: nearest pictures, image scores, and the map of every level.

The library keeps its features as float32. Not compared: a gallery that is no multiple of 100, of which the reference
drops the rest (a fault), and more than one nearest patch.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from tests.golden.recipe import behind, check, golden, maps_of
from thesis_lib.methods import SPADE

GOLDEN = golden("spade")
SHAPES = {1: (6, 40, 40), 2: (12, 20, 20), 3: (24, 10, 10), 4: (40, 5, 5)}      # of the levels
LEVELS = (1, 2, 3)              # of the map


@pytest.fixture(scope="module")
def inputs():
    """Levels of the training pictures and of the test pictures."""
    rng = RandomState(501)
    train, test = ({level: rng.standard_normal((count, *shape)) for level, shape in SHAPES.items()}
                   for count in (8, 2))
    for values in test.values():
        q = values.shape[2] // 5
        values[1, :, q:2 * q, 3 * q:4 * q] += 1.5
    return train, test


@pytest.fixture(scope="module")
def fitted(inputs):
    """fitted(layers, distance) -> detector, and the levels of the test pictures."""
    train, test = ({level: torch.from_numpy(values).float() for level, values in features.items()}
                   for features in inputs)

    def fit(layers, distance="l2"):
        detector = SPADE(layers=layers, pooled=4, k=5, distance=distance)
        detector.backbone_ = SimpleNamespace(channels={level: shape[0] for level, shape in SHAPES.items()})
        return detector.learn(detector.gather(maps_of(train))), test

    return fit


def test_inputs(inputs):
    for name, features in zip(("train", "test"), inputs, strict=True):
        for level, values in features.items():
            check(values, GOLDEN["inputs"][f"{name}_{level}"], rtol=1e-9)


def test_nearest_pictures(fitted):
    detector, test = fitted((1,))
    described = detector.stages["embedding"](test)
    check(described.vectors, GOLDEN["pooled"]["test"], 0.0, atol=2e-6)
    nearest = detector.stages["search"](described)
    assert nearest.pictures.tolist() == GOLDEN["nearest_pictures"]
    np.testing.assert_allclose(nearest.distances, GOLDEN["nearest_distances"], 0.0, atol=2e-6)


@pytest.mark.parametrize(("distance", "name"), [("l2", "mean_of_distances"),
                                                ("l2_squared", "mean_of_squared_distances")])
def test_image_scores(fitted, distance, name):
    """The reference has plain distances, the paper squared ones."""
    np.testing.assert_allclose(behind(*fitted((1,), distance)).score, GOLDEN[name], 0.0, atol=2e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_map_of_a_level(fitted, level):
    """The reference adds 1e-6 to every difference of two numbers, which changes its map by up to 3.4e-6."""
    prediction = behind(*fitted((level,)))
    for number, heat in enumerate(prediction.map):
        theirs = GOLDEN["map_with_1e-6"][str(level)][number]
        check(heat, GOLDEN["map_plain"][str(level)][number], 0.0, atol=2e-6)
        check(heat, theirs, 0.0, atol=1e-5)
        upsampled = replace(prediction, sigma=0.0).full_map(224)[number]
        check(upsampled, GOLDEN["upsampled_map"][str(level)][number], 0.0, atol=1e-5)
        apart = heat.flatten()[theirs["positions"]].double().numpy() - theirs["at"]
        assert 5e-7 < np.abs(apart).max() < 4e-6


def test_the_map_of_all_levels(fitted):
    """The reference averages the maps of the levels; the library joins their channels as the paper does, and a
    distance of all is larger than a mean one, here 2.2 to 2.9 times.
    """
    maps = [behind(*fitted((level,))).full_map(224) for level in LEVELS]
    mean = sum(maps) / len(maps)
    for heat, described in zip(mean, GOLDEN["mean_of_levels_smoothed"], strict=True):
        check(heat, described, 0.0, atol=1e-5)
    ratio = behind(*fitted(LEVELS)).full_map(224) / mean
    assert ratio.min() > 2.2 and ratio.max() < 2.9
