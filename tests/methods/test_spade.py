"""SPADE against loops written out, and what its parameters and its limits do. The battery is in test_detectors.py."""

import numpy as np
import pytest
import torch

from thesis_lib import data
from thesis_lib.evaluation import scores
from thesis_lib.methods import SPADE

pytestmark = pytest.mark.usefixtures("networks_built_once")


def make(**parameters):
    return SPADE(**{"layers": (1, 2), "weights": "random", "k": 2, **parameters})


def patches_of(detector, images):
    """(B, P, D) float64: level 2 repeated onto the grid of level 1, without the library's embedding."""
    one, two = detector.backbone_(images)[1].double(), detector.backbone_(images)[2].double()
    joined = torch.cat([one, two.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)], dim=1)
    return joined.flatten(2).transpose(1, 2).numpy()


def pooled_of(detector, images, level=2):
    return detector.backbone_(images)[level].double().mean(dim=(2, 3)).numpy()


@pytest.fixture
def batches(pad, small):
    return [next(iter(data.Pictures(samples, small))) for samples in (pad.train, pad.test)]


@pytest.mark.parametrize("parameters", [{}, {"k": 1}, {"k": 3, "kappa": 4}, {"kappa": 300}, {"search": "cdist"},
                                        {"distance": "l2", "kappa": 3}, {"search": "faiss", "kappa": 2}])
def test_both_stages_equal_loops(batches, parameters):
    """Image: mean over the K nearest pooled vectors. Pixel: mean over the kappa nearest of all positions of those K."""
    train, test = batches
    detector = make(**parameters).fit([train])
    power = {"l2": 1, "l2_squared": 2}[detector.distance]
    nominal, galleries = pooled_of(detector, train), patches_of(detector, train)
    prediction = detector.predict(test)
    for number, (vector, patches) in enumerate(zip(pooled_of(detector, test), patches_of(detector, test), strict=True)):
        away = np.array([np.linalg.norm(vector - other) ** power for other in nominal])
        nearest = np.argsort(away)[:detector.k]
        assert prediction.score[number] == pytest.approx(away[nearest].mean(), rel=1e-3)
        gallery = np.concatenate([galleries[picture] for picture in nearest])
        for position in range(0, len(patches), 17):
            found = np.sort(np.linalg.norm(patches[position] - gallery, axis=1) ** power)[:detector.kappa]
            assert prediction.map[number].flatten()[position] == pytest.approx(found.mean(), rel=1e-3, abs=1e-3)


def test_the_gallery_is_all_positions_of_the_nearest_pictures_and_no_more(batches):
    """A test picture whose best patches lie elsewhere in its neighbours, or in pictures that are not retrieved."""
    train, test = batches
    detector = make(k=2).fit([train])
    found = detector.stages["search"](detector.stages["embedding"](detector.stages["extraction"](test)))
    heat = detector.predict(test).map.flatten(1).numpy()
    tests, galleries = patches_of(detector, test), patches_of(detector, train)
    chosen = galleries[found.pictures.numpy()]                                      # (B, K, P, D)
    same_place = (np.linalg.norm(tests[:, None] - chosen, axis=3) ** 2).min(axis=1)
    everywhere = [[(np.linalg.norm(patch - galleries, axis=2) ** 2).min() for patch in patches] for patches in tests]
    assert (heat <= same_place + 1e-3).all() and (heat < 0.9 * same_place).any()
    assert (heat >= np.array(everywhere) - 1e-3).all() and (heat > 1.1 * np.array(everywhere)).any()


def test_pooled_level_is_recorded_and_used(batches):
    train, test = batches
    assert make().parameters()["pooled"] == 2 == make(pooled=2).pooled
    detector = make(pooled=3).fit([train])
    assert tuple(detector.backbone_.channels) == (1, 2, 3) and detector.search_.bank.shape == (4, 256)
    away = np.linalg.norm(pooled_of(detector, test, 3)[:, None] - pooled_of(detector, train, 3), axis=2) ** 2
    np.testing.assert_allclose(detector.predict(test).score, np.sort(away)[:, :2].mean(axis=1), rtol=1e-4)
    assert detector.predict(test).map.shape == (6, 16, 16), "level 3 does not enter the pixel stage"


def test_a_training_picture_is_its_own_nearest(batches):
    prediction = make(k=1).fit([batches[0]]).predict(batches[0])
    assert prediction.score.max() < 1e-4 and prediction.map.max() < 1e-2


def test_the_map_waits_until_it_is_asked_for(batches, monkeypatch):
    detector, calls, genuine = make().fit([batches[0]]), [], SPADE.locate
    monkeypatch.setattr(SPADE, "locate", lambda *arguments: calls.append(1) or genuine(*arguments))
    prediction = detector.predict(batches[1])
    assert not calls
    assert prediction.map is prediction.map and len(calls) == 1


@pytest.mark.parametrize("masks", [True, False])
def test_evaluation_makes_one_row_and_maps_only_where_masks_are(make_category, small, masks, monkeypatch):
    calls, genuine = [], SPADE.locate
    monkeypatch.setattr(SPADE, "locate", lambda *arguments: calls.append(1) or genuine(*arguments))
    rows = scores.evaluate(make(), data.scan(make_category(masks=masks), "pad"), small, seeds=5)
    assert rows["seed"].tolist() == [0]
    assert bool(calls) == masks == (rows["pixel_auroc"][0] is not None)


def test_cost_of_retrieval_is_all_pictures_of_the_pixel_stage_k(batches, monkeypatch):
    """Thesis sec. 2.6.2 says that the pixel stage grows with the training set; it grows with K."""
    train, test = batches
    fitted, genuine = [], SPADE._engine
    monkeypatch.setattr(SPADE, "_engine", lambda detector: fitted.append(1) or genuine(detector))
    for pictures in (train, torch.cat([train, test])):
        detector = make(k=3).fit([pictures])
        fitted.clear()
        detector.predict(test[:2]).map      # noqa: B018
        assert len(fitted) == 2 * 3 and len(detector.search_.bank) == len(pictures)


@pytest.mark.parametrize(("parameters", "message"), [
    ({"backbone": "resnet50"}, "backbone='resnet50'"), ({"layers": (5,)}, "layers=5"), ({"pooled": 5}, "layers=5"),
    ({"k": 0}, "k=0"), ({"kappa": 0}, "kappa=0"), ({"search_threads": 0}, "search_threads=0"),
    ({"distance": "l1"}, "distance='l1'.*l2"), ({"search": "annoy"}, "search='annoy'.*faiss, cdist, torch"),
    ({"embedding": "avg"}, "embedding='avg'"), ({"join": "no"}, "join='no'")])
def test_wrong_values_are_refused_at_once(parameters, message):
    with pytest.raises(ValueError, match=message):
        make(**parameters)


def test_more_neighbours_than_pictures_or_patches(batches):
    with pytest.raises(ValueError, match="k=5: needs 1 to 4, the training pictures"):
        make(k=5).fit([batches[0]])
    with pytest.raises(ValueError, match="kappa=513: the gallery of k=2 pictures has 512 patches"):
        make(kappa=513).fit([batches[0]]).predict(batches[1]).map      # noqa: B018
