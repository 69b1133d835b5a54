"""A bundle of pictures as they are, rectangles and such that count in parts: it scores and locates as the library."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.device.test_run import DETECTOR, PADIM, QUICK, TRAINED, thesis
from thesis_lib import data
from thesis_lib.device import bundle, export
from thesis_lib.device.run import detect
from thesis_lib.evaluation import crossfit
from thesis_lib.networks import engines
from thesis_lib.networks.maps import Extracted

DETECTORS = {"patchcore": DETECTOR, "simplenet": TRAINED["simplenet"], "padim": PADIM}
DIAGONAL = replace(PADIM, covariance="diagonal", sigma=0.0)


def draw(folder, kinds, size, seed=0):
    """Noise of size (width, height), a white square in every picture of `hole`: a scanned category."""
    rng = np.random.default_rng(seed)
    for kind, count in kinds.items():
        (folder / "part" / kind).mkdir(parents=True)
        for index in range(count):
            values = rng.integers(90, 130, (size[1], size[0], 3), dtype=np.uint8)
            if kind == "test/hole":
                values[20:40, 30:50] = 255
            Image.fromarray(values).save(folder / "part" / kind / f"{index:03d}.png")
    return data.scan(folder, "part")


@pytest.fixture(scope="module")
def lying(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("lying"), {"train/good": 10, "test/good": 3, "test/hole": 3}, (150, 60))


def same_as_the_library(detector, category, preprocess, folder):
    """The opened bundle, after its scores and maps of the test pictures were compared with those of the library."""
    export.export(replace(detector), category, preprocess, folder, false_alarms=0.4)
    opened, files = bundle.Bundle.open(folder), [sample.path for sample in category.test]
    learned = [category.train[number] for number in crossfit.plan(detector, category.train).learned]
    for name, engine in {"float": "eager", "int8": "int8"}.items():
        library = replace(detector, engine=engine)
        network = library.network(library.levels, data.Pictures(category.train, preprocess))
        library = crossfit.fitted(library, network, Extracted(network, data.Pictures(learned, preprocess)))
        expected = library.predict(next(iter(data.Pictures(category.test, library.preprocess_))))
        found = [one for _, one in detect(opened, files, engine=name)]
        unit = opened.threshold(name) - opened.floor(name)
        scores = [one.score / unit for one in found]
        np.testing.assert_allclose(scores, expected.score / unit, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose([one.map / unit for one in found], expected.map / unit, rtol=1e-3, atol=2e-3)
    return opened


@pytest.mark.parametrize("name", DETECTORS)
def test_a_bundle_of_rectangles_scores_as_the_library(name, lying, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, "reduce_range", lambda: True)
    preprocess = data.Preprocess(image_size=(96, 64))
    opened = same_as_the_library(DETECTORS[name], lying, preprocess, tmp_path / "out")
    assert opened.preprocess == preprocess.decided(lying.train)
    file = opened.pictures[-1]
    assert thesis(capsys, "detect", tmp_path / "out", file, "--maps")[0] == 0
    assert Image.open(file.parent / "anomaly_maps" / f"{file.name}.png").size == (96, 64)
    assert thesis(capsys, "measure", tmp_path / "out", *QUICK, "--threads", 1)[0] == 0


@pytest.mark.parametrize("name", DETECTORS)
def test_a_bundle_of_letterboxed_pictures_scores_as_the_library(name, lying, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, "reduce_range", lambda: True)
    preprocess = data.Preprocess(image_size=96, resize="pad")
    opened = same_as_the_library(DETECTORS[name], lying, preprocess, tmp_path / "out")
    (_, found), = detect(opened, [lying.test[3].path])
    grid = 12 if name == "simplenet" else 24
    outside = [row for row in range(grid) if not 29 <= (row + 0.5) * 96 / grid < 67]       # 96 x 38 in the middle
    assert np.isneginf(found.map[outside]).all() and np.isneginf(found.map).sum() == grid * len(outside)
    shutil.copy(lying.test[3].path, tmp_path / "bad.png")
    assert thesis(capsys, "detect", tmp_path / "out", tmp_path / "bad.png", "--maps")[0] == 0
    grey = np.asarray(Image.open(tmp_path / "anomaly_maps/bad.png.png"))
    assert grey.shape == (96, 96) and not grey[:24].any() and not grey[72:].any() and grey[29:67].any()
    assert thesis(capsys, "measure", tmp_path / "out", *QUICK, "--threads", 1)[0] == 0
    # One that is too thin for the grid is named, and does not stop the others.
    Image.fromarray(np.zeros((1, 150), np.uint8)).save(tmp_path / "thin.png")
    code, printed, err = thesis(capsys, "detect", tmp_path / "out", tmp_path / "thin.png", tmp_path / "bad.png")
    assert (code, len(printed), len(err)) == (1, 1, 1) and "thin.png: no position of its map lies inside" in err[0]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_bundle_in_tiles_scores_as_the_library(name, lying, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, "reduce_range", lambda: True)
    preprocess = data.Preprocess(image_size=96, resize="pad")
    opened = same_as_the_library(replace(DETECTORS[name], tiles=(3, 2)), lying, preprocess, tmp_path / "out")
    assert opened.facts["tiles"] == [3, 2] and opened.facts["strides"] == [4]
    assert thesis(capsys, "measure", tmp_path / "out", *QUICK, "--threads", 1)[0] == 0


@pytest.mark.parametrize(("name", "roi"), [("patchcore", "mask"), ("simplenet", "mask"), ("padim", "mask"),
                                           ("diagonal", "mask"), ("patchcore", (20, 5, 90, 50)),
                                           ("padim", (20, 5, 90, 50))])
def test_a_bundle_of_a_region_scores_as_the_library(name, roi, lying, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "reduce_range", lambda: True)
    if roi == "mask":
        mask = np.zeros((60, 150), np.uint8)
        mask[5:55, 20:110], mask[30:40, 60:80] = 255, 0
        roi = tmp_path / "mask.png"
        Image.fromarray(mask).save(roi)
    preprocess = data.Preprocess(image_size=(96, 64), roi=roi)
    if preprocess.masked:
        roi.unlink()                                    # the bundle holds what it says
    opened = same_as_the_library(DETECTORS.get(name, DIAGONAL), lying, preprocess, tmp_path / "out")
    assert opened.preprocess.roi == preprocess.roi
    assert Image.open(opened.pictures[0]).size == (150, 60), "a region is in pixels of the original"


def test_efficientad_is_told_before_it_learns(lying, tmp_path):
    for preprocess, told in ((data.Preprocess(image_size=(96, 64)), "images of 96x64 pixels: the autoencoder needs"),
                             (data.Preprocess(image_size=96, resize="pad"), "resize=pad: efficientad takes whole")):
        with pytest.raises(ValueError, match=f"^{told}"):
            export.export(TRAINED["efficientad"], lying, preprocess, tmp_path / "out", false_alarms=0.4)
    assert not (tmp_path / "out").exists()
