"""Real pictures and trained weights, where ../shared (or THESIS_SHARED) has them."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.bench_coreset import plain_loop
from thesis_lib import data
from thesis_lib.core import paths
from thesis_lib.evaluation import scores
from thesis_lib.methods import PatchCore
from thesis_lib.methods.registry import METHODS
from thesis_lib.networks import backbones
from thesis_lib.networks.torch_setup import has_bfloat16, torch_threads
from thesis_lib.patches import coreset
from thesis_lib.training import descent

SHARED = Path(os.environ.get("THESIS_SHARED") or Path(__file__).resolve().parents[2] / "shared")
PDN_SMALL = SHARED / "weights" / "pdn_small_imagenet.safetensors"
RESNET18 = SHARED / "weights" / "resnet18_imagenet_layers123.safetensors"

pytestmark = [pytest.mark.shared, pytest.mark.skipif(not RESNET18.is_file(), reason="../shared is not there")]


@pytest.fixture(scope="module")
def screw():
    return data.scan(SHARED / "data" / "mvtec_ad", "screw")


@pytest.mark.parametrize(("root", "name", "train", "good", "bad"), [
    ("data/mvtec_ad", "screw", 320, 41, 119), ("data", "elpv_mono", 300, 80, 120)])
def test_categories_are_counted(root, name, train, good, bad):
    category = data.scan(SHARED / root, name)
    labels = category.labels
    assert (len(category.train), (labels == 0).sum(), labels.sum()) == (train, good, bad)
    assert not category.has_masks


def test_verify_compares_screw_with_the_thesis():
    root = SHARED / "data" / "mvtec_ad"
    report = data.verify(root).set_index("category")
    counts = ["train", "test_good", "test_defective", "masks", "bits", "levels", "ignored", "problems", "notes"]
    assert report.loc["screw", counts].tolist() == [320, 41, 119, 0, "8", "256", 0, "", ""]
    there = data.categories(root)
    assert (report.loc[there, "problems"] == "").all(), "whole categories agree with Table 2.1"
    assert (report["problems"].drop(there) == "not on disk").all()


def test_trained_weights_load_up_to_the_level_they_hold(screw):
    backbone = backbones.load("resnet18", (1, 2, 3), str(RESNET18))
    features = backbone(data.load_image(screw.train[0].path, data.Preprocess())[None])
    assert all(torch.isfinite(x).all() and x.std() > 0.1 for x in features.values())
    with pytest.raises(backbones.WeightsError, match=r"holds no layer4\.0\.conv1\.weight"):
        backbones.load("resnet18", (4,), str(RESNET18))
    with pytest.raises(backbones.WeightsError, match=r"holds no layer1\.2\.conv1\.weight"):
        backbones.load("resnet34", (2,), str(RESNET18))


def test_the_published_pdn_loads_and_expects_imagenet_normalisation(screw):
    """Its targets had mean 0 and deviation 1 per channel on photographs: with the right pictures it stays near."""
    image = data.load_image(screw.train[0].path, data.Preprocess())[None]
    backbone = backbones.load("pdn_small", None, str(PDN_SMALL))
    right, plain = (backbone(x)[1] for x in (image, data.denormalise(image)))
    assert right.shape == (1, 384, 56, 56) and right.isfinite().all() and 0.3 < right.std() < 1.5
    assert right.mean().abs() < plain.mean().abs()


def test_coreset_of_real_patches_is_farthest_first(screw):
    """8 pictures, 8192 patches of 128 numbers, against the plain loop in float64."""
    patches = np.asarray(PatchCore(layers=(2,), weights=str(RESNET18)).collect(
        data.Pictures(screw.subset(8).train, data.Preprocess())))
    chosen, exact = coreset.select(patches, 1000), torch.from_numpy(patches).double()
    assert chosen.tolist() == plain_loop(exact, exact.square().sum(dim=1), 1000, int(chosen[0]))


@pytest.mark.slow
def test_trained_features_tell_screws_apart_and_random_ones_do_not(screw):
    """80 test pictures, stride 2. Measured: 0.88 and 0.92 trained; 0.10 to 0.32 random, bank 300."""
    subset, aurocs = screw.subset(test=80), {}
    for weights in (str(RESNET18), "random"):
        detector = PatchCore(layers=(2,), embedding="avg_k3_s2_p1", weights=weights)
        aurocs[weights] = scores.evaluate(detector, subset, data.Preprocess(), seeds=1)["image_auroc"][0]
    assert aurocs[str(RESNET18)] > 0.8
    assert aurocs["random"] < 0.5


@pytest.mark.slow
def test_bundled_weights_tell_photovoltaic_cells_apart():
    """80 training and 80 test pictures, a bank of 300 rows."""
    cells = data.scan(SHARED / "data", "elpv_mono").subset(80, 80)
    detector = PatchCore(layers=(2,), weights="bundled", bank=300)
    assert scores.evaluate(detector, cells, data.Preprocess(), seeds=1)["image_auroc"][0] > 0.8


FIT = """
import resource, sys
from thesis_lib import data
from thesis_lib.methods import PatchCore
root, weights = sys.argv[1:]
train = data.Pictures(data.scan(root, "screw").train, data.Preprocess())
detector = PatchCore(layers=(2, 3), bank=50, weights=weights).fit(train)
assert detector.bank_.shape == (50, 384) and len(train.samples) == 320
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_fit_on_all_screws_stays_small():
    """327680 patches of 384 numbers, 0.5 GB, on disk: the bank is small here since memory is the question."""
    done = subprocess.run([sys.executable, "-c", FIT, str(SHARED / "data" / "mvtec_ad"), str(RESNET18)],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"peak (\d+)", done.stdout)[1]) * 1024 < 2.5e9


# Rows that keep their first losses. The teachers of Uninformed Students take too long to be distilled here.
TRAINED = [row for row in map(json.loads, (paths.published() / "methods.jsonl").read_text().splitlines())
           if row.get("training", {}).get("first_losses") and row["method"] != "uninformed_students"]


@pytest.mark.slow
@pytest.mark.parametrize("row", TRAINED, ids=lambda row: f"{row['method']}-{row['category']}-{row['id']}")
def test_the_first_steps_of_a_published_training_give_its_losses(row, monkeypatch):
    """To 1e-3 on any processor with the units that the row was trained with."""
    parameters = {name: tuple(value) if isinstance(value, list) else value for name, value in row["parameters"].items()}
    if parameters["precision"] == "bfloat16" and not has_bfloat16("cpu"):
        pytest.skip("this processor has no bf16 units: 50 steps would take many minutes")
    source = row["weights"]["source"]
    weights = source if source == "random" else str(SHARED / "weights" / source)
    detector = METHODS[row["method"]](**parameters, weights=weights, seed=row["seed"])
    monkeypatch.setattr(descent, "descend", functools.partial(descent.descend, limit=50))
    category = data.scan(SHARED / "data" / ("" if row["category"] == "elpv_mono" else "mvtec_ad"), row["category"])
    with torch_threads(1):
        course = detector.train(detector.collect(data.Pictures(category.train, data.Preprocess(**row["preprocess"]))))
    assert course.step == 50
    for loss, values in course.losses.items():
        np.testing.assert_allclose(values, row["training"]["first_losses"][loss], 1e-3, err_msg=loss)
