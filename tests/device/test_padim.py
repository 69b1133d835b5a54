"""A bundle of PaDiM, which computes its distances and smooths its map in NumPy: it says what the library says."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from tests.device.test_run import INT8, PADIM, QUICK, SMALL, thesis
from thesis_lib import data
from thesis_lib.commands import main
from thesis_lib.device import bundle, drift, gaussians
from thesis_lib.device.run import detect, save_map
from thesis_lib.methods import padim
from thesis_lib.methods.base import blur
from thesis_lib.networks import engines
from thesis_lib.networks.maps import Extracted


@pytest.mark.parametrize("d", [1, 33, 100])
@pytest.mark.parametrize("covariance", padim.COVARIANCES)
def test_distances_are_those_of_torch(d, covariance):
    draw = torch.Generator().manual_seed(d)
    channels = torch.arange(0, 2 * d, 2)
    mean, vectors = torch.randn(50, d, generator=draw), torch.randn(1, 50, 2 * d, generator=draw)
    shapes = padim.panels(d) if covariance == "full" else [(d,)]
    factor = [torch.randn(50, *shape, generator=draw) for shape in shapes]
    expected = padim.distances(vectors[..., channels] - mean, factor)[0]
    found = gaussians.distances(vectors[0].numpy(), channels.numpy(), mean.numpy(), [one.numpy() for one in factor])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(24, 16), (3, 2), (1, 1)])
def test_a_map_is_smoothed_as_scipy_does_it(shape, sigma):
    """Also maps that are smaller than the Gaussian, and such that do not count everywhere."""
    heat = np.random.default_rng(0).normal(5, 1, shape).astype("f4")
    whole = gaussian_filter(heat, sigma) if sigma else heat
    np.testing.assert_allclose(gaussians.smoothed(heat, sigma), whole, rtol=1e-6)
    heat[shape[0] // 2:] = -np.inf
    expected = blur(torch.from_numpy(heat)[None], sigma)[0]
    np.testing.assert_allclose(gaussians.smoothed(heat, sigma), expected, rtol=1e-5)
    assert np.isneginf(gaussians.smoothed(heat, sigma)).any() == expected.isneginf().any().item()


@pytest.fixture(scope="module", params=padim.COVARIANCES)
def exported(request, category, tmp_path_factory):
    """(covariance, its bundle as the command wrote it); not to be changed."""
    out = tmp_path_factory.mktemp("padim") / "bundle"
    options = {"weights": "random", "layers": 1, "channels": 40, "calibration": 4, "image-size": 64,
               "false-alarms": "10%", "covariance": request.param}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    where = ("--data", str(category.train[0].path.parents[3]), "--category", "pad")
    assert main.main(["export", "padim", *where, *words, "--out", str(out)]) == 0
    return request.param, out


def test_scores_maps_and_stages_are_those_of_the_library(exported, category, monkeypatch):
    monkeypatch.setattr(engines, "reduce_range", lambda: True)
    covariance, folder = exported
    opened = bundle.Bundle.open(folder)
    for name, engine in {"float": "eager", "int8": "int8"}.items():
        library = replace(PADIM, engine=engine, covariance=covariance).fit(data.Pictures(category.train, SMALL))
        expected = library.predict(next(iter(data.Pictures(category.test, SMALL))))
        found = [one for _, one in detect(opened, [one.path for one in category.test], engine=name)]
        np.testing.assert_allclose([one.score for one in found], expected.score, rtol=1e-4)
        np.testing.assert_allclose([one.map for one in found], expected.map, rtol=1e-3)
        assert list(opened.stages(name, 1)) == list(library.stages)
        assert opened.parity(name, 1).difference < 1e-4
    assert min(one.score for one in found[3:]) > 1.5 * max(one.score for one in found[:3])
    assert all(one.score < one.map.max() for one in found), "the score is the maximum of the smoothed map"
    assert len(opened.facts["near"]) and drift.MAP in opened.bands("float")


def test_threshold_is_a_score_of_pictures_that_no_gaussian_saw(exported, category):
    """By hand: the network again for each picture, as ten are fewer than the folds."""
    covariance, folder = exported
    scores = []
    for sample in category.train:
        held = [sample]
        detector = replace(PADIM, covariance=covariance)
        rest = data.Pictures([one for one in category.train if one is not sample], SMALL)
        detector.backbone_ = detector.network((1,), rest)
        detector.learn(detector.gather_nominal(Extracted(detector.backbone_, rest)))
        scores += detector.predict(next(iter(data.Pictures(held, SMALL)))).score.tolist()
    opened = bundle.Bundle.open(folder)
    assert opened.threshold("float") == pytest.approx(max(scores), rel=1e-5) and opened.floor("float") == 0
    assert opened.threshold("int8") != opened.threshold("float")


def test_it_is_measured_and_detects_like_the_others(exported, category, capsys, tmp_path):
    covariance, folder = exported
    code, printed, _ = thesis(capsys, "measure", folder, *QUICK, "--engine", "int8", "--out", tmp_path / "row.json")
    assert code == 0 and any("extraction" in line and "search" in line for line in printed)
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["engine"] == INT8 and row["parameters"].get("covariance", "full") == covariance
    code, printed, _ = thesis(capsys, "detect", folder, category.test[-1].path, "--json")
    (x, y, w, h), told = json.loads(printed[0])["region"], json.loads(printed[0])
    assert told["verdict"] == "anomalous"
    assert x < 50 and x + w > 30 and y < 40 and y + h > 20, "the square is at 30 to 50, 20 to 40"


def test_what_is_brighter_than_the_middle_is_above_the_threshold(exported, category, tmp_path):
    """The map is smoothed before its maximum is the score, so its picture is, too."""
    opened = bundle.Bundle.open(exported[1])
    for number in (0, 3):
        file = shutil.copy(category.test[number].path, tmp_path / f"{number}.png")
        (_, found), = detect(opened, [file])
        for threshold, brighter in ((found.score * 0.99, True), (found.score * 1.01, False)):
            grey = np.asarray(Image.open(save_map(found, threshold, (16, 16), file, sigma=opened.sigma)))
            assert (grey.max() > 128) == brighter


def test_what_a_device_holds_of_each_position(exported):
    covariance, folder = exported
    bytes_of = (folder / "float/gaussians.npz").stat().st_size
    numbers = 40 if covariance == "diagonal" else 32 * 32 + 8 * 40
    assert bytes_of == pytest.approx(4 * 256 * (40 + numbers), rel=0.03), "mean and factor"
