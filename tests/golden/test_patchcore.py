"""PatchCore against amazon-science/patchcore-inspection: embeddings, distances, maps, the order of the coreset, and the
re-weighted score.

Not compared: the approximate coreset with ten starts, patches of 5 x 5, the scaling and averaging of an ensemble.
"""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from tests.golden.recipe import behind, check, golden, maps_of
from thesis_lib.methods import PatchCore
from thesis_lib.patches import coreset, embedding, scoring, search
from thesis_lib.patches.embedding import Original, Patches

GOLDEN = golden("patchcore")
EMBEDDINGS = ("original_d1024", "original_d384", "original_d1536", "original_d100")


@pytest.fixture(scope="module")
def inputs():
    """Levels of the training pictures and of the test pictures."""
    rng = RandomState(201)
    train, test = ({2: rng.standard_normal((count, 128, 8, 8)), 3: rng.standard_normal((count, 256, 4, 4))}
                   for count in (6, 3))
    test[2][1, :, 2:4, 4:6] *= 2
    test[3][2, :, 1, 2] += 1
    return train, test


def levels(features, dtype=torch.float32):
    return {level: torch.from_numpy(values).to(dtype) for level, values in features.items()}


def test_inputs(inputs):
    for name, features in zip(("train", "test"), inputs, strict=True):
        check(features[2], GOLDEN["inputs"][f"{name}_fine"], rtol=1e-9)
        check(features[3], GOLDEN["inputs"][f"{name}_coarse"], rtol=1e-9)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embedding(dtype, inputs, name):
    for split, features in zip(("train", "test"), inputs, strict=True):
        vectors = embedding.parse(name)(levels(features, dtype)).vectors
        check(vectors.flatten(0, 1), GOLDEN["embeddings"][name][split], 0.0, 1e-6 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("engine", search.ENGINES)
def test_distances_scores_and_maps_with_the_whole_bank(inputs, name, engine):
    """The reference's distances are squared ones."""
    expected = GOLDEN["embeddings"][name]
    detector = PatchCore(layers=(2, 3), embedding=name, bank="100%", distance="l2_squared", search=engine)
    train, test = map(levels, inputs)
    prediction = behind(detector.learn(detector.gather(maps_of(train))), test)
    check(prediction.map, expected["patch_scores"], rtol=2e-6)
    np.testing.assert_allclose(prediction.score, expected["image_scores"], rtol=2e-6)
    for number, described in enumerate(expected["interpolated_map"]):
        check(replace(prediction, sigma=0.0).full_map(64)[number], described, rtol=2e-6)
        check(prediction.full_map(64)[number], expected["smoothed_map"][number], rtol=2e-6)
    _, rows = detector.search_.query(detector.stages["embedding"](test).vectors.flatten(0, 1))
    check(rows.view(3, 8, 8), expected["nearest_row"], rtol=0.0)


def test_the_two_widths_of_the_ensembles(inputs):
    for split, features in zip(("train", "test"), inputs, strict=True):
        vectors = Original(384, 1024)(levels(features, torch.float64)).vectors
        check(vectors.flatten(0, 1), GOLDEN["embeddings"]["1024_then_384"][split], 0.0, atol=1e-10)


def test_original_d384_is_not_the_embedding_of_the_ensembles(inputs):
    """The reference's commands for these pool each level to 1024 numbers, original_d384 to 384: sums of the vectors are
    14 to 19 % apart, their squares 10 %, scores of pictures 3 to 12 %.
    """
    theirs = GOLDEN["embeddings"]["1024_then_384"]
    detector = PatchCore(layers=(2, 3), embedding="original_d384", bank="100%", distance="l2_squared")
    train, test = map(levels, inputs)
    collected = detector.gather(maps_of(train))
    prediction = behind(detector.learn(collected), test)
    vectors = detector.stages["embedding"](test).vectors
    for split, ours in (("train", torch.from_numpy(collected)), ("test", vectors)):
        assert 0.135 < ours.sum().item() / theirs[split]["sum"] - 1 < 0.195
        assert 0.09 < ours.square().sum().item() / theirs[split]["sum_squares"] - 1 < 0.11
    apart = prediction.score.numpy() / theirs["image_scores"] - 1
    assert apart.min() > 0.03 and apart.max() < 0.125


@pytest.mark.parametrize("first", [164, 17])
def test_order_and_radius_of_the_coreset(monkeypatch, first):
    """From 164, the reference's own start of its exact sampler, and from 17."""
    vectors = RandomState(202).standard_normal((300, 32))
    check(vectors, GOLDEN["coreset"]["vectors"], rtol=1e-9)
    vectors, expected = vectors.astype(np.float32), GOLDEN["coreset"][f"from_{first}"]
    monkeypatch.setattr(np.random, "default_rng", lambda seed: SimpleNamespace(integers=lambda n: first))
    order = list(islice(coreset.greedy(vectors, seed=0), len(expected["order"])))
    assert order == expected["order"]
    radius = coreset.radius(vectors, vectors[order[:20]])
    assert radius == pytest.approx(expected["cover_radius_of_20"], rel=2e-6)


@pytest.mark.parametrize("b", [3, 9])
@pytest.mark.parametrize("rows", [40, 500])
def test_reweighted_score(rows, b):
    rng, expected = RandomState(203), GOLDEN["reweighted"]
    drawn = {"bank40": rng.standard_normal((40, 16)), "bank500": rng.standard_normal((500, 16)),
             "pictures": 1.3 * rng.standard_normal((4, 25, 16))}
    for name, values in drawn.items():
        check(values, expected["inputs"][name], rtol=1e-9)
    finder = search.Torch().fit(torch.from_numpy(drawn[f"bank{rows}"]))
    patches = Patches(torch.from_numpy(drawn["pictures"]).float(), (5, 5))
    distances, nearest = finder.query(patches.vectors.flatten(0, 1))
    neighbours = scoring.Neighbours(distances.view(4, 25, 1), nearest.view(4, 25, 1), patches)
    scores = scoring.RULES["reweighted"].score(neighbours, finder, b)
    for number, parts in enumerate(expected[f"bank{rows}_b{b}"]):
        distance, patch = neighbours.distances[number, :, 0].max(dim=0)
        row = neighbours.indices[number, patch, 0]
        assert (patch.item(), row.item()) == (parts["patch"], parts["nearest_row"])
        assert finder.query(finder.bank[row, None], b)[1][0].tolist() == parts["neighbours"]
        found = distance.item(), scores[number].item(), (scores[number] / distance).item()
        np.testing.assert_allclose(found, [parts["distance"], parts["score"], parts["weight"]], 0.0, atol=1e-6)


def test_averaged_embedding(dtype, inputs):
    """That of anomalib: averages of 3 x 3 positions, deeper levels brought to the grid bilinearly."""
    embed = embedding.parse("avg_k3_s1_p1", "interpolate")
    for split, features in zip(("train", "test"), inputs, strict=True):
        vectors, grid, _ = embed(levels(features, dtype))
        check(vectors.mT.unflatten(2, grid), GOLDEN["averaged"][split], 0.0, 1e-6 if dtype == torch.float32 else 1e-10)
