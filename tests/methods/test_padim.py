"""PaDiM against float64 written out, and what its parameters and its limits do. The battery is in test_detectors.py."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from thesis_lib import data
from thesis_lib.core.memory import MemoryLimitError
from thesis_lib.evaluation import metrics, scores
from thesis_lib.methods import PaDiM, padim

pytestmark = pytest.mark.usefixtures("networks_built_once")


def make(**parameters):
    return PaDiM(**{"layers": (1, 2, 3), "weights": "random", "channels": None, **parameters})


def oracle(collected, patches, channels, eps):
    """(B, P) by numpy's covariance and an inverse, in float64, position by position."""
    columns = []
    for position in range(collected.shape[1]):
        nominal = np.asarray(collected[:, position][:, channels], dtype=np.float64)
        covariance = np.cov(nominal, rowvar=False).reshape(len(channels), len(channels))
        inverse = np.linalg.inv(covariance + eps * np.eye(len(channels)))
        away = patches[:, position][:, channels].double().numpy() - nominal.mean(axis=0)
        columns.append(np.sqrt(np.einsum("bi,ij,bj->b", away, inverse, away)))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("parameters", [{}, {"channels": 100}, {"channels": 33, "eps": 1.0}, {"channels": 1}])
def test_equals_the_formula_in_float64(pad, small, parameters):
    """Thesis sec. 2.7.1; also the AUROC, which must agree to 1e-3."""
    detector = make(embedding="avg_k3_s2_p1", sigma=0.0, **parameters)        # 8x8 positions: the oracle is slow
    collected = detector.collect(data.Pictures(pad.train, small))
    detector.learn(collected)
    test = next(iter(data.Pictures(pad.test, small)))
    patches = detector.stages["embedding"](detector.stages["extraction"](test)).vectors
    channels = detector.channels_.numpy()
    assert len(channels) == (detector.channels or 448)
    exact = oracle(collected, patches, channels, detector.eps)
    prediction = detector.predict(test)
    np.testing.assert_allclose(prediction.map.flatten(1), exact, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(prediction.score, exact.max(axis=1), rtol=1e-3)
    by_hand = metrics.image_auroc(pad.labels, exact.max(axis=1))
    assert metrics.image_auroc(pad.labels, prediction.score.double().numpy()) == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.5])
def test_score_is_the_maximum_of_the_smoothed_map(pad, small, sigma):
    prediction = make(channels=20, sigma=sigma).fit(data.Pictures(pad.train, small)).predict(
        next(iter(data.Pictures(pad.test, small))))
    smooth = [gaussian_filter(heat.numpy(), sigma).max() for heat in prediction.map]
    np.testing.assert_allclose(prediction.score, smooth, rtol=1e-5)


def test_one_channel_by_hand():
    """1, 3 and 5: mean 3, variance 4, with eps = 5 that is 9; 9 lies 6 away from the mean, two deviations of 3."""
    mean, inverse = padim.gaussians(torch.tensor([[[1.0], [3.0], [5.0]]]).double(), 5.0)
    assert mean.item() == 3
    assert inverse.item() == pytest.approx(1 / 3)
    assert padim.distances(torch.tensor([[[6.0]]]), [inverse.float()]).item() == pytest.approx(2)


@pytest.mark.parametrize("d", [1, 31, 32, 33, 100, 448])
def test_panels_hold_the_whole_lower_triangle_and_are_counted(d):
    square = torch.randn(2, d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d)).tril()
    factor = [square[:, columns - rows:columns, :columns].float() for rows, columns in padim.panels(d)]
    y = torch.randn(3, 2, d, generator=torch.Generator().manual_seed(0))
    whole = torch.einsum("pij,bpj->bpi", square, y.double()).norm(dim=2)
    torch.testing.assert_close(padim.distances(y, factor).double(), whole, rtol=1e-5, atol=1e-5)
    stored = sum(panel.numel() for panel in factor) + 2 * d
    assert padim.factor_gb(2, d) == pytest.approx(4e-9 * stored)
    if d == 448:
        assert padim.factor_gb(4096, d) == pytest.approx(1.77, abs=0.01), "less than 4096 squares of 448: 3.29 GB"


@pytest.mark.parametrize("channels", [None, 20, 1])
def test_a_diagonal_covariance_takes_every_channel_alone(pad, small, channels, tmp_path):
    detector = make(embedding="avg_k3_s2_p1", covariance="diagonal", channels=channels, eps=0.1, sigma=0.0)
    nominal = detector.collect(data.Pictures(pad.train, small))
    detector.learn(nominal)
    test = next(iter(data.Pictures(pad.test, small)))
    kept = detector.channels_.numpy()
    y = detector.stages["embedding"](detector.stages["extraction"](test)).vectors.double().numpy()[..., kept]
    x = nominal[..., kept].astype("f8")
    exact = np.sqrt((np.square(y - x.mean(axis=0)) / (x.var(axis=0, ddof=1) + 0.1)).sum(axis=2))
    found = detector.predict(test)
    np.testing.assert_allclose(found.map.flatten(1), exact, rtol=1e-5)
    full = make(embedding="avg_k3_s2_p1", channels=channels, eps=0.1, sigma=0.0).fit(data.Pictures(pad.train, small))
    assert torch.allclose(found.map, full.predict(test).map, rtol=1e-5) == (channels == 1)
    loaded = PaDiM.load(detector.save(tmp_path / "diagonal.safetensors"))
    assert torch.equal(loaded.predict(test).score, found.score)
    d = len(kept)
    assert padim.factor_gb(64, d, "diagonal") == pytest.approx(4e-9 * 64 * 2 * d)
    assert sum(one.numel() for one in detector.factor_) == 64 * d


def test_a_diagonal_covariance_counts_what_is_there():
    """Two of four vectors, one and none: as of these alone, and 0."""
    vectors = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors[0, 2:] = vectors[1, 1:] = vectors[2] = torch.nan
    mean, inverse = padim.gaussians(vectors, 0.1, "diagonal")
    there = vectors[0, :2]
    torch.testing.assert_close(mean[0], there.mean(0))
    torch.testing.assert_close(inverse[0], 1 / (there.var(0) + 0.1).sqrt())
    assert not mean[1:].any() and not inverse[1:].any()


def test_a_parameter_that_came_later_changes_no_configuration():
    assert "covariance" not in make().deciding() and make(covariance="diagonal").deciding()["covariance"] == "diagonal"


def test_blocks_of_positions_change_nothing(pad, small, monkeypatch):
    pictures = data.Pictures(pad.train, small)
    whole = make(channels=20).fit(pictures)
    for reading, computing in ((1e-9, 16), (0.25, 1), (0.25, 7), (0.25, 10**6)):       # the first reads one position
        monkeypatch.setattr(padim, "WORKSPACE", reading)
        monkeypatch.setattr(padim, "CACHED", computing)
        other = make(channels=20).fit(pictures)
        for one, panel in zip(whole.factor_, other.factor_, strict=True):
            torch.testing.assert_close(one, panel, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(whole.mean_, other.mean_)


def test_channels_are_drawn_by_the_seed_and_saved(pad, small, tmp_path):
    pictures = data.Pictures(pad.train, small)
    drawn = {seed: make(channels=40, seed=seed).fit(pictures) for seed in (0, 1)}
    for detector in drawn.values():
        assert len(set(detector.channels_.tolist())) == 40 and set(detector.channels_.tolist()) <= set(range(448))
    assert not torch.equal(drawn[0].channels_, drawn[1].channels_)
    loaded = PaDiM.load(drawn[1].save(tmp_path / "padim.safetensors"))
    assert torch.equal(loaded.channels_, drawn[1].channels_)
    assert torch.equal(make(embedding="adaptive_2").fit(pictures).channels_, torch.arange(448))


def test_all_channels_are_evaluated_once_drawn_ones_per_seed(pad, small):
    pooled = {"embedding": "adaptive_2"}
    detectors = {"all": make(**pooled), "drawn": make(channels=30, **pooled)}
    rows = scores.evaluate_many(detectors, pad, small, seeds=[4, 2])
    assert rows["all"]["seed"].tolist() == [4]
    assert rows["drawn"]["seed"].tolist() == [4, 2]
    assert rows["drawn"]["scores"][0] != rows["drawn"]["scores"][1]


def test_a_pooled_embedding_has_fewer_positions(pad, small):
    detector = make(channels=10, embedding="avg_k3_s2_p1").fit(data.Pictures(pad.train, small))
    assert detector.predict(next(iter(data.Pictures(pad.test, small)))).map.shape == (6, 8, 8)


@pytest.mark.parametrize(("parameters", "message"), [
    ({"backbone": "resnet50"}, "backbone='resnet50'"), ({"layers": (0,)}, "layers=0"), ({"channels": 0}, "channels=0"),
    ({"embedding": "avg"}, "embedding='avg'"), ({"join": "no"}, "join='no'"), ({"eps": 0.0}, "eps=0.0.*above 0"),
    ({"eps": float("nan")}, "eps=nan"),
    ({"covariance": "none"}, "covariance='none': needs one of full, diagonal"), ({"sigma": -1.0}, "sigma=-1.0")])
def test_wrong_values_are_refused_at_once(parameters, message):
    with pytest.raises(ValueError, match=message):
        make(**parameters)


def test_more_channels_than_there_are(pad, small):
    with pytest.raises(ValueError, match="channels=65: layers 1 have 64"):
        make(layers=(1,), channels=65).fit(data.Pictures(pad.train, small))


def test_one_picture_has_no_covariance(pad, small):
    with pytest.raises(ValueError, match="1 training picture: a covariance needs at least 2"):
        make(channels=5).fit(data.Pictures(pad.train[:1], small))


def test_pictures_of_another_size_are_refused(pad, small):
    detector = make(channels=5).fit(data.Pictures(pad.train, small))
    with pytest.raises(ValueError, match="images of 32x32 pixels: this padim was fitted on 64x64"):
        detector.predict(torch.zeros(1, 3, 32, 32))


def test_too_much_memory_is_refused_after_one_batch(pad, small, counted):
    """256 positions of 448 channels: 0.11 GB of factors, and 0.25 GB to work in."""
    Counted, read = counted
    with pytest.raises(MemoryLimitError, match=r"256 positions and 448 channels need 0\.36 GB, the limit is 0\.35 GB; "
                                               "use fewer channels, a pooling stride"):
        make(memory_limit_gb=0.35).fit(Counted(pad.train, small, batch_size=1))
    assert len(read) <= 2           # the next one is read meanwhile
    collected = make(channels=5, memory_limit_gb=0.35).collect(data.Pictures(pad.train, small))
    with pytest.raises(MemoryLimitError, match="448 channels"):
        make(memory_limit_gb=0.35).learn(collected)
