"""Learning from added pictures equals a fit on all, bit for bit; they have no part in the threshold; each is told."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from thesis_lib import data
from thesis_lib.commands import main
from thesis_lib.core import files
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Sample, pictures_in
from thesis_lib.data import synthetic
from thesis_lib.device.bundle import Bundle
from thesis_lib.evaluation import additions, crossfit
from thesis_lib.evaluation.additions import relearn
from thesis_lib.methods import SPADE, EfficientAD, PaDiM, PatchCore, SimpleNet
from thesis_lib.networks.maps import Extracted, Stored

pytestmark = pytest.mark.usefixtures("networks_built_once")
DETECTORS = {
    "patchcore": PatchCore(weights="random", layers=(1, 2), bank=30, scaling="normalise_weight"),
    "padim": PaDiM(weights="random", layers=(1, 2), embedding="avg_k3_s2_p1", channels=8),
    "spade": SPADE(weights="random", layers=(1,), k=3)}
SIMPLENET = SimpleNet(weights="random", layers=(1,), embedding="avg_k3_s2_p1", hidden=16, epochs=1, passes=2, batch=4,
                      snapshots=1)


@pytest.fixture
def category(make_category):
    return data.scan(make_category(train=12, good=4, bad=3), "pad")


@pytest.fixture
def flagged(tmp_path):
    """Three good parts of another kind of noise, with a grey stripe at x 16 to 32, y 40 to 48."""
    rng, folder = np.random.default_rng(5), tmp_path / "flagged"
    folder.mkdir()
    for index in range(3):
        values = rng.integers(90, 130, (64, 64, 3), dtype=np.uint8)
        values[40:48, 16:32] = 170 + 10 * index
        Image.fromarray(values).save(folder / f"{index}.png")
    return pictures_in(folder)


def sample_of(picture):
    return Sample(picture, "train", "good")


# ---- the same as a fit on all

@pytest.mark.parametrize("name", DETECTORS)
def test_what_is_learned_is_that_of_a_fit_on_all_pictures_bit_for_bit(category, small, flagged, name):
    """Twelve pictures are three batches of four, so that those of a fit on all fifteen are the same ones."""
    ours, theirs = replace(DETECTORS[name]), replace(DETECTORS[name])
    relearn(ours, category, flagged, small, false_alarms=0.1, batch_size=4)
    theirs.fit(data.Pictures([*category.train, *map(sample_of, flagged)], small, 4))
    states = ours.state(), theirs.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    for batch in data.Pictures(category.test, small, 4):
        assert torch.equal(ours.predict(batch).score, theirs.predict(batch).score)
    plain = replace(DETECTORS[name]).fit(data.Pictures(category.train, small, 4))
    assert any(value.shape != states[0][key].shape or not torch.equal(value, states[0][key])
               for key, value in plain.state().items()), "the added ones change nothing"


@pytest.mark.parametrize("name", DETECTORS)
def test_the_threshold_is_of_the_training_pictures_by_detectors_that_learned_the_added_ones(category, small, flagged,
                                                                                            name):
    """The slow way: a fit for each fold, on the other pictures and all added ones."""
    detector = DETECTORS[name]
    result = relearn(replace(detector), category, flagged, small, false_alarms=0.1, batch_size=4)
    for promised, added in ((result.before, []), (result.after, [*map(sample_of, flagged)])):
        scores = []
        for fold in crossfit.plan(detector, category.train).folds:
            others = [one for number, one in enumerate(category.train) if number not in fold]
            by_hand = replace(detector).fit(data.Pictures([*others, *added], small, 4))
            held = data.Pictures([category.train[number] for number in fold], small, 4)
            scores += crossfit.scores_of(map(by_hand.predict, held)).tolist()
        assert promised.n == len(scores) == 12
        assert promised.threshold == pytest.approx(sorted(scores)[promised.rank - 1], rel=1e-5)
    # SPADE compares with the nearest pictures, none of which was added.
    assert name == "spade" or result.before.threshold != result.after.threshold
    assert result.before.found.of == result.after.found.of == 3


def test_the_network_sees_the_added_pictures_alone_where_the_others_are_kept(category, small, flagged, counted,
                                                                             monkeypatch):
    pictures, read = counted
    detector = DETECTORS["padim"]
    images = data.Pictures(category.train, small, 4)
    network = detector.network(detector.levels, images)
    list(Stored(Extracted(network, images)).batches(detector.levels))           # an earlier evaluation
    monkeypatch.setattr(additions, "Pictures", pictures)
    relearn(replace(detector), replace(category, test=()), flagged, small, false_alarms=0.1, batch_size=4)
    assert read == [] or sum(read) == 3


def test_a_detector_that_is_trained_learns_them_and_keeps_none_of_them_back(category, small, flagged):
    result = relearn(replace(SIMPLENET), category, flagged, small, false_alarms=0.5)
    assert result.before.n == result.after.n == 3 and result.before.threshold != result.after.threshold


# ---- what is told of each, and what is refused

def test_each_is_told_by_the_detector_without_them_with_its_region_and_hash(category, small, flagged):
    result = relearn(replace(DETECTORS["patchcore"]), category, flagged, small, false_alarms=0.1, batch_size=4)
    plain = replace(DETECTORS["patchcore"]).fit(data.Pictures(category.train, small, 4))
    scores = plain.predict(next(iter(data.Pictures([*map(sample_of, flagged)], small)))).score.tolist()
    assert [one.path for one in result.added] == [flagged[number] for number in np.argsort(scores)[::-1]]
    assert sorted(one.score for one in result.added) == pytest.approx(sorted(scores), rel=1e-5)
    for one in result.added:
        assert one.sha256 == files.digest(one.path.read_bytes()) and one.sha256 in str(one)
        x, y, w, h = one.region
        assert x < 24 < x + w and y < 44 < y + h and w * h < 64 * 64 / 4


def test_copies_and_detectors_that_would_count_them_are_refused(category, small, flagged, tmp_path):
    def refused(pictures, told, detector=DETECTORS["patchcore"]):
        with pytest.raises(ThesisError, match=told) as error:
            relearn(replace(detector), category, pictures, small, false_alarms=0.5)
        assert "\n" not in str(error.value)

    for source, told in ((category.test[0].path, "copy of the test picture .*000.png, and what is learned cannot be"),
                         (category.train[3].path, "copy of the train picture .*003.png, and it is learned already"),
                         (flagged[1], "copy of the added picture .*1.png, and it would be learned twice")):
        refused([*flagged, shutil.copy(source, tmp_path / "renamed.png")], f"renamed.png: is a {told}")
    refused([], "no pictures given")
    with Image.open(category.test[0].path) as image:
        image.convert("RGB").save(tmp_path / "anew.jpg", quality=98, subsampling=0)   # it is noise
        image.save(tmp_path / "other.webp", lossless=True)
    for name in ("anew.jpg", "other.webp"):
        refused([*flagged, tmp_path / name], f"{name}: looks like the test picture .*000.png, saved anew, and what is")
    refused([tmp_path / "absent.png"], "absent.png: not readable")
    refused(flagged, "efficientad draws the pictures for its threshold itself",
            EfficientAD(weights="random", steps=2, snapshots=1, penalty="none", held_out=0.3))


# ---- on the command line

def test_export_adds_tells_and_records_and_one_can_be_taken_out(make_category, flagged, capsys, tmp_path):
    root = make_category(train=12, good=4, bad=3)

    def export(out, *more):
        code = main.main(["export", "patchcore", "--data", str(root), "--category", "pad", "--weights", "random",
                          "--layers", "1", "--image-size", "64", "--bank", "30", "--calibration", "4",
                          "--false-alarms", "10%", "--out", str(tmp_path / out), *map(str, more)])
        return code, capsys.readouterr()

    code, told = export("all", "--add", flagged[0].parent)
    facts = Bundle.open(tmp_path / "all").facts
    assert code == 0 and "learned, but not counted: 3 added pictures; by the detector without them:" in told.out
    assert {one["sha256"] for one in facts["added"]} == {files.digest_of(picture) for picture in flagged}
    assert [one["score"] for one in facts["added"]] == sorted((one["score"] for one in facts["added"]), reverse=True)
    for one in facts["added"]:
        region = ",".join(map(str, one["region"]))
        assert f"{one['score']:.4f}  most unusual at {region}  {one['name']}  sha256 {one['sha256']}" in told.out
    assert "  before: threshold " in told.out and "  after: threshold " in told.out
    assert facts["without_added"]["defective_found"][1] == 3
    assert facts["threshold"]["n"] == facts["threshold"]["of"] == 12
    assert {one["n"] for one in facts["engines"]["float"]["bands"].values()} == {12}
    # What it says without them is what a bundle without them says.
    plain = export("plain")
    before = Bundle.open(tmp_path / "plain").facts
    assert plain[0] == 0 and before["added"] == [] and "added" not in plain[1].out
    assert facts["without_added"]["threshold"] == pytest.approx(before["engines"]["float"]["threshold"], rel=1e-6)
    assert facts["engines"]["float"]["subject"]["data"] != before["engines"]["float"]["subject"]["data"]
    # Taken out: its file goes, and the rest is learned anew.
    flagged[1].unlink()
    assert export("less", "--add", flagged[0].parent)[0] == 0
    assert len(Bundle.open(tmp_path / "less").facts["added"]) == 2
    shutil.copy(root / "pad/test/good/000.png", flagged[1])
    code, told = export("copy", "--add", flagged[0].parent)
    assert code == 2 and f"{flagged[1]}: is a copy of the test picture" in told.err
    assert not (tmp_path / "copy").exists()


def test_half_of_the_false_alarms_teaches_the_other_half(tmp_path):
    """Parts of the demo category in the light of another day: half of the flagged ones is added."""
    root = tmp_path / "demo"
    synthetic.write(root, categories=["weave"], train=24, good=2, defective=18, size=64)
    category, folder = data.scan(root, "weave"), tmp_path / "today"
    folder.mkdir()
    for index in range(24):
        pixels, _ = synthetic.render("weave", seed=9, index=index, size=64)
        pixels = np.clip(pixels * 1.3, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    preprocess = data.Preprocess(image_size=64)
    detector = PatchCore(weights="bundled", layers=(1,), bank=500)
    before = crossfit.promise(detector, category, preprocess, false_alarms=0.05)
    today = pictures_in(folder)

    def flagged(threshold, pictures):
        images = data.Pictures([*map(sample_of, pictures)], preprocess)
        scores = crossfit.scores_of(map(detector.predict, images))
        return [picture for picture, score in zip(pictures, scores, strict=True) if score > threshold]

    alarms = flagged(before.threshold, today)
    assert len(alarms) >= 8, "the light of today raises false alarms"
    added, held_back = alarms[::2], alarms[1::2]
    result = relearn(detector, category, added, preprocess, false_alarms=0.05)
    left = flagged(result.after.threshold, held_back)
    print(json.dumps({"added": len(added), "held back": len(held_back), "still flagged": len(left)}))
    print(f"recall before {result.before.found.count} of {result.before.found.of}, after {result.after.found.count}")
    assert len(left) < len(held_back)
    assert result.before.found == before.found
