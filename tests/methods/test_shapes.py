"""Pictures as they are: rectangles, through every method and on the way to a row; what is square only says so."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.spatial.distance import cdist

from tests.methods.test_detectors import make
from thesis_lib import data
from thesis_lib.core.errors import ThesisError
from thesis_lib.data.pictures import load_image
from thesis_lib.evaluation import metrics, scores, stage_times
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.methods import METHODS
from thesis_lib.networks import backbones
from thesis_lib.report import figures, panels

pytestmark = pytest.mark.usefixtures("networks_built_once")

WIDE = data.Preprocess(image_size=(96, 64))         # width x height
FREE = [name for name in METHODS if name != "efficientad"]


@pytest.fixture
def lying(tmp_path):
    """4 training and 3 + 3 test pictures of 150 x 60 pixels: noise, and a white bar that is its mask."""
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 4), ("test/good", 3), ("test/hole", 3)):
        folder = tmp_path / "lying/part" / kind
        folder.mkdir(parents=True)
        for index in range(count):
            values = rng.integers(90, 130, (60, 150, 3), dtype=np.uint8)
            if kind == "test/hole":
                mask = np.zeros((60, 150), dtype=np.uint8)
                mask[20:40, 100:140] = 255
                values[mask > 0] = 255
                masks = tmp_path / "lying/part/ground_truth/hole"
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(masks / f"{index:03d}_mask.png")
            Image.fromarray(values).save(folder / f"{index:03d}.png")
    return data.scan(tmp_path / "lying", "part")


@pytest.mark.parametrize("name", FREE)
def test_a_rectangle_goes_the_whole_way_to_a_row(name, lying):
    detector = make(name)
    row = scores.evaluate(detector, lying, WIDE, seeds=1).iloc[0]
    assert row["preprocess.image_size"] == [96, 64] and row["image_auroc"] == 1 and row["pixel_auroc"] > 0.5
    assert detector.image_size_ == WIDE.shape == (64, 96)
    prediction = detector.predict(load_image(lying.test[3].path, detector.preprocess_)[None])
    full = prediction.full_map(WIDE.shape)[0].numpy()
    assert full.shape == (64, 96)
    y, x = np.unravel_index(full.argmax(), full.shape)
    assert 15 <= y < 50 and 55 <= x < 96                # the bar lies in rows 21 to 43, columns 64 to 90
    again = scores.evaluate(make(name), lying, WIDE, seeds=1).iloc[0]
    assert again["id"] == row["id"], "its stored row is found again"
    assert stage_times.measure_time(detector, lying, WIDE, pictures=1, warmup=0, repeats=1)["total_ms"] > 0


def test_a_rectangle_equals_a_plain_restatement(lying):
    """PatchCore with all rows: resize, network, pooling, distances in float64, upsampling, without any of its code."""
    def patches(sample):
        image = np.asarray(Image.open(sample.path).resize((96, 64), Image.Resampling.BILINEAR), np.float64) / 255
        image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        features = network(torch.from_numpy(image.transpose(2, 0, 1)[None]).float())[1]
        return F.avg_pool2d(features, 3, 1, 1)[0].flatten(1).T.double().numpy()             # (16 * 24, 64)

    network = backbones.load("resnet18", (1,), "random")
    bank = np.concatenate([patches(sample) for sample in lying.train])
    nearest = np.stack([cdist(patches(sample), bank).min(axis=1).reshape(16, 24) for sample in lying.test])
    row = scores.evaluate(make("patchcore", bank="100%"), lying, WIDE, seeds=1).iloc[0]
    np.testing.assert_allclose(row["scores"], nearest.max(axis=(1, 2)), rtol=1e-4)
    full = F.interpolate(torch.from_numpy(nearest)[:, None], (64, 96), mode="bilinear")[:, 0].numpy()
    masks = np.stack([WIDE.mask(sample) for sample in lying.test])
    assert masks.shape == (6, 64, 96)
    smooth = np.stack([metrics_blur(heat) for heat in full])
    assert row["pixel_auroc"] == pytest.approx(metrics.pixel_auroc(masks, smooth), abs=1e-4)


def metrics_blur(heat):
    from scipy.ndimage import gaussian_filter
    return gaussian_filter(heat, 4.0)


@pytest.mark.parametrize("name", ["patchcore", "simplenet"])
def test_kept_maps_and_a_saved_detector_know_the_rectangle(name, lying, tmp_path):
    pair = {"one": make(name), "other": make(name, **{"bank": 30} if name == "patchcore" else {"hidden": 8})}
    scores.evaluate_many(pair, lying, WIDE, seeds=1)            # two of a network: the second reads kept maps
    loaded = METHODS[name].load(pair["other"].save(tmp_path / "wide.safetensors"))
    assert loaded.preprocess_ == WIDE.decided(lying.train) and loaded.image_size_ == (64, 96)
    image = load_image(lying.test[3].path, loaded.preprocess_)[None]
    assert torch.equal(loaded.predict(image).score, pair["other"].predict(image).score)


def test_efficientad_stays_square_and_says_so_before_a_picture_is_read(lying, counted, monkeypatch):
    kind, read = counted
    monkeypatch.setattr(scores, "Pictures", kind)
    for call in (lambda: make("efficientad").fit(kind(lying.train, WIDE)),
                 lambda: scores.evaluate(make("efficientad"), lying, WIDE)):
        with pytest.raises(ThesisError, match=r"^images of 96x64 pixels: the autoencoder needs squares of 64, 96, "):
            call()
    assert read == []


def test_width_and_height_are_not_mixed_up_in_an_identity():
    ids = {size: Configuration.of(make("patchcore"), data.Preprocess(image_size=size)).id
           for size in (64, (64, 64), (96, 64), (64, 96))}
    assert ids[64] == ids[64, 64] and len(set(ids.values())) == 3
    row = {"id": "1", "method": "patchcore", "weights": {}, "parameters": {},
           "preprocess": {"image_size": [96, 64], "interpolation": "bilinear"}}         # as JSON has it
    assert Configuration.from_row(row).preprocess == data.Preprocess(image_size=(96, 64))


def test_figures_and_crops_show_rectangles(lying):
    detector = make("patchcore")
    view = panels.view_of(detector, lying, WIDE)
    drawn = view.figure(3)
    pictures = {name: axis.get_images()[0].get_array().shape for name, axis in
                zip(("picture", "map"), drawn.axes, strict=False)}
    assert pictures["picture"][:2] == pictures["map"][:2] == (64, 96)
    crop, *_ = view.nearest(3)
    assert crop.shape == (24, 24, 3) and (crop == 255).any(), "cut out of where the white bar is"
    assert figures.pictures(lying.test[:2], WIDE).axes[0].get_images()[0].get_array().shape == (64, 96, 3)
