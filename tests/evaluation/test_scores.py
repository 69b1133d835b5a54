"""Rows per seed equal a fit by hand, are measured once, and know which pictures they stand on."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from thesis_lib import data
from thesis_lib.core import paths, timing
from thesis_lib.core.errors import NotFittedError, ThesisError
from thesis_lib.core.preprocess import DataError
from thesis_lib.data.pictures import load_image
from thesis_lib.evaluation import metrics, scores, stage_times
from thesis_lib.methods import SPADE, EfficientAD, PaDiM, PatchCore
from thesis_lib.patches import scoring, search

pytestmark = pytest.mark.usefixtures("networks_built_once")


def patchcore(**parameters):
    return PatchCore(**{"weights": "random", "layers": (1,), "bank": 20, **parameters})


def stored(kind="auroc"):
    return sorted(paths.results().glob(f"{kind}-*.json"))


def noting(seen, name, method):
    def spy(self, argument):
        seen.append(name)
        return method(self, argument)
    return spy


@pytest.fixture
def calls(monkeypatch):
    """Names of PatchCore's methods in the order they ran."""
    seen = []
    for name in ("gather", "learn"):
        monkeypatch.setattr(PatchCore, name, noting(seen, name, getattr(PatchCore, name)))
    return seen


def test_rows_equal_a_fit_by_hand(pad, small):
    rows = scores.evaluate(patchcore(), pad, small, seeds=[3, 0], batch_size=4)
    assert rows["seed"].tolist() == [3, 0]
    images = torch.stack([load_image(sample.path, small) for sample in pad.test])
    masks = np.stack([small.mask(sample) for sample in pad.test])
    for _, row in rows.iterrows():
        by_hand = patchcore(seed=row["seed"]).fit(data.Pictures(pad.train, small)).predict(images)
        np.testing.assert_allclose(row["scores"], by_hand.score, atol=1e-5)
        maps = by_hand.full_map(64).numpy()
        low, high = metrics.auroc_interval(pad.labels, by_hand.score)
        expected = {"image_auroc": metrics.image_auroc(pad.labels, by_hand.score), "image_auroc_low": low,
                    "image_auroc_high": high, "pixel_auroc": metrics.pixel_auroc(masks, maps),
                    "pro": metrics.pro(masks, maps)}
        assert row[list(expected)].to_dict() == pytest.approx(expected, abs=1e-4)
    assert rows["scores"][0] != rows["scores"][1]
    assert min(rows["pixel_auroc"]) > 0.9


def test_pixels_count_in_the_map_that_the_method_makes(pad, small):
    """That of EfficientAD is not smoothed; a Gaussian would change both numbers."""
    detector = EfficientAD(weights="random", steps=1, snapshots=1, penalty="none")
    row = scores.evaluate(detector, pad, small, seeds=1).iloc[0]
    prediction = detector.predict(torch.stack([load_image(sample.path, small) for sample in pad.test]))
    masks = np.stack([small.mask(sample) for sample in pad.test])
    bilinear, blurred = (dataclasses.replace(prediction, sigma=sigma).full_map(64).numpy() for sigma in (0.0, 4.0))
    for name, metric in (("pixel_auroc", metrics.pixel_auroc), ("pro", metrics.pro)):
        assert row[name] == pytest.approx(metric(masks, bilinear), abs=1e-4)
        assert abs(metric(masks, blurred) - row[name]) > 1e-3


def test_rows_say_what_was_measured(pad, small):
    row = scores.evaluate(patchcore(bank="2%"), pad, small, seeds=1).iloc[0]
    facts = {"method": "patchcore", "category": "pad", "seed": 0, "weights.source": "random", "n_train": 4,
             "n_test_good": 3, "n_test_defective": 3, "parameters.bank": "2%", "parameters.layers": [1],
             "preprocess.image_size": 64, "data": pad.fingerprint, "labels": [0, 0, 0, 1, 1, 1]}
    assert row[list(facts)].to_dict() == facts
    assert row["names"] == [f"{kind}/00{number}.png" for kind in ("good", "hole") for number in range(3)]
    assert row["fit_s"] > 0
    assert "parameters.seed" not in row
    assert "parameters.search_threads" not in row


def test_features_are_extracted_once_for_all_seeds(pad, small, calls, monkeypatch):
    read, genuine = [], data.Preprocess.array
    monkeypatch.setattr(data.Preprocess, "array", lambda self, path: read.append(path) or genuine(self, path))
    scores.evaluate(patchcore(), pad, small, seeds=3)
    assert calls == ["gather", "learn", "learn", "learn"]
    assert sorted(read) == sorted(sample.path for sample in pad.train + pad.test)


def test_shared_stages_run_once_per_batch(pad, small, monkeypatch):
    asked = []
    genuine = search.Torch._nearest
    monkeypatch.setattr(search.Torch, "_nearest", lambda self, vectors, k: asked.append(len(vectors))
                        or genuine(self, vectors, k))
    embedded, embed = [], PatchCore.stages.fget

    def stages(self):
        mapping = embed(self)
        return {**mapping, "embedding": lambda x: embedded.append(1) or mapping["embedding"](x)}

    monkeypatch.setattr(PatchCore, "stages", property(stages))
    scores.evaluate(patchcore(), pad, small, seeds=3, batch_size=2)
    assert len(embedded) == 3
    assert asked == [2 * 256] * 9


def test_rules_share_a_search_and_nothing_else(pad, small, monkeypatch):
    """Maximum and weighted rule ask for one neighbour of every patch, the author's for nine. Those with cdist search at
    the same time, in other threads."""
    rules = {"max": {}, "three": {"score": "reweighted", "neighbours": 3}, "nine": {"score": "reweighted"},
             "author": {"score": "author_cdist"}, "larger": {"bank": 30}, "faiss": {"search": "faiss"},
             "cdist": {"search": "cdist"}, "nine of cdist": {"search": "cdist", "score": "author_cdist"}}
    alone = {name: scores.evaluate(patchcore(**rule), pad, small, seeds=2) for name, rule in rules.items()}
    asked = []
    for engine in (search.Auto, search.Faiss):
        def noted(self, vectors, k, genuine=engine._nearest):
            asked.append((type(self).__name__, len(self.bank), k, len(vectors)))
            return genuine(self, vectors, k)
        monkeypatch.setattr(engine, "_nearest", noted)
    many = scores.evaluate_many({name: patchcore(**rule) for name, rule in rules.items()}, pad, small, seeds=2,
                                    force=True)
    of_patches = [engine for *engine, count in asked if count == 6 * 256]
    assert sorted(of_patches) == sorted([["Auto", 20, 1], ["Auto", 20, 9], ["Auto", 30, 1], ["Faiss", 20, 1]] * 2)
    for name, rows in many.items():
        facts = ["scores", "image_auroc", "pixel_auroc", "pro"]
        assert rows[facts].to_dict() == alone[name][facts].to_dict()
    assert len({str(list(rows["scores"])) for rows in many.values()}) >= 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems keep one peak for all of a process")
def test_a_row_tells_its_own_memory_or_none(pad, small, monkeypatch):
    """The greedy one holds 0.5 GB for a moment; the other one, measured later in the same process, does not."""
    genuine = PatchCore.learn
    monkeypatch.setattr(PatchCore, "learn", lambda self, collected: (
        self.bank == 30 and np.ones(500_000_000, dtype=np.uint8) is None) or genuine(self, collected))
    size = psutil.Process().memory_info().rss / 1e9
    large, other = (scores.evaluate(patchcore(bank=bank), pad, small, seeds=1).iloc[0] for bank in (30, 20))
    assert large["peak_memory_gb"] > size + 0.45
    assert size - 0.1 < other["peak_memory_gb"] < size + 0.3
    several = scores.evaluate_many({"one": patchcore(bank=31), "other": patchcore(bank=21)}, pad, small, seeds=1)
    assert [rows["peak_memory_gb"].tolist() for rows in several.values()] == [[None], [None]]
    assert scores.evaluate(patchcore(bank=22), pad, small, seeds=2)["peak_memory_gb"].isna().all()
    assert scores.evaluate(patchcore(bank=20), pad, small, seeds=1)["peak_memory_gb"][0] == other["peak_memory_gb"]


def test_many_detectors_give_what_each_gives_alone(pad, small, calls):
    """Three of the four share their features; one more seed than the detectors' own."""
    detectors = {"one": patchcore(), "bank": patchcore(bank=30), "squared": patchcore(distance="l2_squared"),
                 "deeper": patchcore(layers=(2,))}
    many = scores.evaluate_many(detectors, pad, small, seeds=[0, 4])
    assert calls.count("gather") == 2
    assert calls.count("learn") == 8
    assert list(many) == list(detectors)
    for name, detector in detectors.items():
        alone = scores.evaluate(dataclasses.replace(detector), pad, small, seeds=[0, 4], force=True)
        facts = ["seed", "parameters.bank", "parameters.distance", "image_auroc", "pixel_auroc", "scores"]
        assert many[name][facts].to_dict() == alone[facts].to_dict()
    calls.clear()
    scores.evaluate_many(detectors | {"new": patchcore(bank=31)}, pad, small, seeds=[0, 4])
    assert calls == ["gather", "learn", "learn"]


def test_one_extraction_serves_all_levels_and_methods(pad, small, monkeypatch):
    """Another level, another embedding, another method: each picture is read once, and the numbers stay."""
    detectors = {"first": patchcore(), "pooled": patchcore(embedding="max_k5_s2_p2"), "second": patchcore(layers=(2,)),
                 "padim": PaDiM(weights="random", layers=(1, 2), channels=8),
                 "spade": SPADE(weights="random", layers=(1,), pooled=2, k=2)}
    monkeypatch.setenv("THESIS_FEATURES_GB", "0")
    alone = {name: scores.evaluate(dataclasses.replace(detector), pad, small, seeds=1)
             for name, detector in detectors.items()}
    read, genuine = [], data.Preprocess.array
    monkeypatch.setattr(data.Preprocess, "array", lambda self, path: read.append(path) or genuine(self, path))
    many = scores.evaluate_many(detectors, pad, small, seeds=1, force=True)
    assert sorted(read) == sorted(sample.path for sample in pad.train + pad.test)
    for name, rows in many.items():
        assert rows[["scores", "pixel_auroc"]].to_dict() == alone[name][["scores", "pixel_auroc"]].to_dict()
        assert tuple(detectors[name].backbone_.layers) == detectors[name].levels, "timed alone, it stops there"
    other = patchcore(tap="preactivation")
    read.clear()
    scores.evaluate_many({"output": patchcore(), "before": other}, pad, small, seeds=1, force=True)
    assert len(read) == 2 * len(pad.train + pad.test), "another tap is another network"


def test_pixel_metrics_can_wait(pad, small, calls):
    """A row without them is found when nobody asks for them, and measured again when somebody does."""
    first = scores.evaluate(patchcore(), pad, small, seeds=1, pixels=False).iloc[0]
    assert first["pixel_auroc"] is None
    scores.evaluate(patchcore(), pad, small, seeds=1, pixels=False)
    assert calls == ["gather", "learn"]
    full = scores.evaluate(patchcore(), pad, small, seeds=1).iloc[0]
    assert full["pixel_auroc"] > 0.9
    assert full["scores"] == first["scores"]
    assert len(stored()) == 1
    scores.evaluate(patchcore(), pad, small, seeds=1, pixels=False)
    assert calls == ["gather", "learn"] * 2


def test_a_detector_learns_nothing_of_another_one(pad, small):
    """Only its other seeds were measured, so it is as unfitted as before."""
    first, second = patchcore().fit(data.Pictures(pad.train, small)), patchcore(bank=30)
    scores.evaluate_many({"first": first, "second": second}, pad, small, seeds=[3])
    with pytest.raises(NotFittedError):
        second.predict(torch.zeros(1, 3, 64, 64))


def test_a_detector_fitted_by_the_evaluation_knows_its_pictures(pad, small, counted, monkeypatch):
    """Also from maps that were found, where nobody has seen a picture; what was read shows that."""
    Counted, read = counted
    monkeypatch.setattr(scores, "Pictures", Counted)
    for first in (True, False):
        detector = patchcore()
        scores.evaluate(detector, pad, small, seeds=1, force=True)
        assert (sum(read) == 10) is first
        read.clear()
        assert detector.image_size_ == (64, 64) and detector.preprocess_ == small.decided(pad.train)
        with pytest.raises(ThesisError, match="images of 32x32 pixels: this patchcore was fitted on 64x64"):
            detector.predict(torch.zeros(1, 3, 32, 32))


def test_stored_rows_are_not_measured_again(pad, small, calls):
    first = scores.evaluate(patchcore(), pad, small, seeds=2)
    calls.clear()
    again = scores.evaluate(patchcore(), pad, small, seeds=2)
    assert calls == []
    assert again.astype(str).equals(first.astype(str))
    more = scores.evaluate(patchcore(), pad, small, seeds=[5, 1, 0])
    assert calls == ["gather", "learn"]
    assert more["seed"].tolist() == [5, 1, 0]
    assert len(stored()) == 3


def test_force_measures_again(pad, small, calls):
    for _ in range(2):
        scores.evaluate(patchcore(), pad, small, seeds=1, force=True)
    assert calls == ["gather", "learn"] * 2
    assert len(stored()) == 1


@pytest.mark.parametrize(("changed", "again"), [
    ({"bank": 21}, True), ({"score": "reweighted"}, True), ({"search": "faiss"}, True),
    ({"search_threads": 1}, False), ({"memory_limit_gb": 2.0}, False), ({"bank": "20"}, False)])
def test_what_a_row_stands_for(pad, small, calls, changed, again):
    scores.evaluate(patchcore(), pad, small, seeds=1)
    scores.evaluate(patchcore(**changed), pad, small, seeds=1)
    assert calls.count("gather") == 1 + again


def test_other_pictures_or_preprocessing_are_measured(pad, small, calls):
    scores.evaluate(patchcore(), pad, small, seeds=1)
    scores.evaluate(patchcore(), pad, dataclasses.replace(small, crop=48), seeds=1)
    scores.evaluate(patchcore(), pad.subset(train=3), small, seeds=1)
    scores.evaluate(patchcore(), pad.subset(test=4), small, seeds=1)
    assert calls.count("gather") == 4
    assert len(stored()) == 4


@pytest.mark.parametrize("removed", [["000"], ["000", "001", "002"]])
def test_pixel_metrics_only_with_all_masks(make_category, small, removed):
    root = make_category()
    for number in removed:
        (root / f"pad/ground_truth/hole/{number}_mask.png").unlink()
    row = scores.evaluate(patchcore(), data.scan(root, "pad"), small, seeds=1).iloc[0]
    assert row["pixel_auroc"] is row["pro"] is None
    assert row["image_auroc"] == metrics.image_auroc(row["labels"], row["scores"])


@pytest.mark.parametrize(("good", "bad"), [(1, 3), (3, 1), (1, 1)])
def test_a_single_picture_of_a_kind_has_a_row_without_an_interval(make_category, small, calls, good, bad):
    category = data.scan(make_category(good=good, bad=bad), "pad")
    rows = scores.evaluate(patchcore(), category, small, seeds=2)
    assert rows["image_auroc"].tolist() == [metrics.image_auroc(category.labels, one) for one in rows["scores"]]
    assert rows["image_auroc_low"].isna().all() and rows["image_auroc_high"].isna().all()
    assert rows["pixel_auroc"].between(0.9, 1).all()
    for file in stored():
        row = json.loads(file.read_text(), parse_constant=pytest.fail)      # NaN is no JSON
        assert row["image_auroc_low"] is row["image_auroc_high"] is None
    before = list(calls)
    assert scores.evaluate(patchcore(), category, small, seeds=2)["id"].tolist() == rows["id"].tolist()
    assert calls == before and len(stored()) == 2


@pytest.mark.parametrize("gone", [3, 2])
def test_masks_that_the_resize_leaves_no_pixel_of(make_category, small, calls, caplog, gone):
    """Without any there are no pixel metrics, and the row is found again; one that is left still counts."""
    root = make_category(size=128)
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[0, 0] = 255                                            # nearest takes every second pixel, from the second on
    for number in range(gone):
        Image.fromarray(mask).save(root / f"pad/ground_truth/hole/00{number}_mask.png")
    category = data.scan(root, "pad")
    row = scores.evaluate(patchcore(), category, small, seeds=1).iloc[0]
    assert f"pad: {gone} of 3 masks have no pixel at 64x64" in caplog.text
    if gone == 3:
        assert row["pixel_auroc"] is row["pro"] is None
    else:
        assert row["pixel_auroc"] > 0.5 and row["pro"] > 0
    assert row["image_auroc_low"] <= row["image_auroc"] and calls == ["gather", "learn"]
    again = scores.evaluate(patchcore(), category, small, seeds=1).iloc[0]
    assert again["id"] == row["id"] and calls == ["gather", "learn"]


def test_equal_scores_are_half_right(pad, small, monkeypatch):
    monkeypatch.setitem(scoring.RULES, "max", scoring.Rule(lambda found, finder, b: torch.ones(6), lambda b: 1, False))
    row = scores.evaluate(patchcore(), pad, small, seeds=1).iloc[0]
    assert (row["image_auroc"], row["image_auroc_low"], row["image_auroc_high"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("good", "bad", "only"), [(3, 0, "nominal"), (0, 3, "anomalous")])
def test_one_class_is_refused_before_the_work(make_category, small, calls, good, bad, only):
    category = data.scan(make_category(good=good, bad=bad), "pad")
    with pytest.raises(ValueError, match=f"all 3 here are {only}"):
        scores.evaluate(patchcore(), category, small)
    assert calls == []


def test_copy_of_a_training_picture_is_refused_before_the_work(make_category, small, calls):
    root = make_category()
    shutil.copy(root / "pad/train/good/000.png", root / "pad/test/hole/009.png")
    with pytest.raises(DataError, match=r"009.png: test picture is a copy"):
        scores.evaluate(patchcore(), data.scan(root, "pad"), small)
    assert calls == []


def test_score_that_is_no_number_names_its_picture(pad, small, monkeypatch):
    def score(found, finder, b):
        return torch.tensor([1.0, 2, 3, 4, float("nan"), 5])

    monkeypatch.setitem(scoring.RULES, "max", scoring.Rule(score, lambda b: 1, False))
    with pytest.raises(ValueError, match=r"1 of 6 scores are NaN .*: hole/001\.png"):
        scores.evaluate(patchcore(), pad, small, seeds=1)
    assert stored() == []


@pytest.mark.parametrize("seeds", [0, []])
def test_no_seed_is_refused(pad, small, seeds):
    with pytest.raises(ValueError, match="seeds: needs at least one"):
        scores.evaluate(patchcore(), pad, small, seeds=seeds)


def test_file_of_weights_counts_by_content_not_by_place(pad, small, tmp_path):
    subjects = []
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        file = tmp_path / folder / "net.safetensors"
        file.parent.mkdir()
        file.write_bytes(content)
        subjects.append(scores.subject(patchcore(weights=str(file)), pad, small, seed=0))
    assert subjects[0] == subjects[1] != subjects[2]


def test_time_is_a_stored_row(pad, small, calls):
    row = stage_times.measure_time(patchcore(), pad, small, pictures=2, warmup=1, repeats=3)
    assert calls == ["gather", "learn"]
    assert np.shape(row["raw_s"]) == (2, 3, 4)
    assert list(row["stage_ms"]) == ["extraction", "embedding", "search", "score"]
    assert row["total_ms"] == pytest.approx(sum(row["stage_ms"].values()))
    assert row["protocol"]["pictures"] == 2
    assert row["threads"] == row["protocol"]["threads"] == torch.get_num_threads()
    assert stage_times.measure_time(patchcore(), pad, small, pictures=2, warmup=1, repeats=3) == row
    assert calls == ["gather", "learn"]
    assert len(stored("time")) == 1


@pytest.mark.parametrize("changed", [
    {"pictures": 1}, {"warmup": 0}, {"repeats": 2}, {"batch_size": 2}, {"threads": 1}, {"force": True}])
def test_another_protocol_is_measured(pad, small, monkeypatch, changed):
    detector = patchcore().fit(data.Pictures(pad.train, small))
    protocol = {"pictures": 2, "warmup": 1, "repeats": 1, "threads": 2}
    stage_times.measure_time(detector, pad, small, **protocol)
    seen, genuine = [], stage_times.measure
    monkeypatch.setattr(stage_times, "measure", lambda detector, images, **how: seen.append(
        {"pictures": len(images), "batch_size": len(images[0]), **how}) or genuine(detector, images, **how))
    stage_times.measure_time(detector, pad, small, **protocol)
    assert seen == []
    stage_times.measure_time(detector, pad, small, **{**protocol, **changed})
    expected = {"batch_size": 1, **protocol, **changed}
    expected.pop("force", None)
    assert seen == [expected]


def test_time_uses_a_fitted_detector_and_repeats_pictures(pad, small, calls, monkeypatch):
    detector = patchcore().fit(data.Pictures(pad.train, small))
    calls.clear()
    seen = []
    monkeypatch.setattr(stage_times, "measure", lambda detector, images, **how: seen.extend(images)
                        or timing.Timing(("all",), np.ones((1, 1, 1)), 1.0, 1, 1))
    stage_times.measure_time(detector, pad, small, pictures=4, batch_size=2)
    expected = torch.stack([load_image(pad.test[index % 6].path, small) for index in range(8)])
    assert torch.equal(torch.cat(seen), expected)
    assert calls == []


def test_many_times_fit_from_one_extraction(pad, small, monkeypatch):
    read, genuine = [], data.Preprocess.array
    detectors = {"first": patchcore(), "second": patchcore(layers=(2,)), "fitted": patchcore(bank=25)}
    detectors["fitted"].fit(data.Pictures(pad.train, small))
    monkeypatch.setattr(data.Preprocess, "array", lambda self, path: read.append(path) or genuine(self, path))
    rows = stage_times.measure_times(detectors, pad, small, pictures=1, warmup=0, repeats=1)
    assert sorted(read) == sorted(sample.path for sample in (*pad.train, pad.test[0]))
    assert list(rows) == list(detectors)
    assert [row["parameters"]["layers"] for row in rows.values()] == [[1], [2], [1]]
    read.clear()
    assert stage_times.measure_times(detectors, pad, small, pictures=1, warmup=0, repeats=1) == rows
    assert read == []


def test_compare_times_what_it_cannot_judge(pad, small):
    """No weights for resnet34 here: its time is measured with random ones, its AUROC is not."""
    detectors = {"own": patchcore(weights="bundled"), "other": patchcore(weights="bundled", backbone="resnet34")}
    rows, times = stage_times.compare(detectors, pad, small, seeds=2, pictures=1)
    assert list(rows) == ["own"] and len(rows["own"]) == 2
    assert rows["own"]["pixel_auroc"].isna().all()
    assert {name: row["weights"]["source"] for name, row in times.items()} == {"own": "bundled", "other": "random"}
    assert detectors["other"].weights == "bundled"


def test_what_is_only_timed_sees_as_few_pictures_as_fill_its_bank(pad, small):
    bank = patchcore(bank=1000, layers=(2,))                                    # 64 places a picture of 64 pixels
    assert stage_times.pictures_for_bank(bank, small) == 16
    assert stage_times.pictures_for_bank(dataclasses.replace(bank, engine="int8", calibration=20), small) == 20
    for other in (dataclasses.replace(bank, bank="10%"), dataclasses.replace(bank, search="pruned"), SPADE(k=1)):
        assert stage_times.pictures_for_bank(other, small) == 0                 # all
    other = patchcore(weights="bundled", backbone="resnet34", bank=100, layers=(1,))      # 256 places
    _, times = stage_times.compare({"other": other}, pad, small, seeds=1, pictures=1)
    other = dataclasses.replace(other, weights="random")
    assert times["other"] == stage_times.measure_time(other, pad.subset(train=1), small, pictures=1)


def test_time_without_test_pictures_takes_training_pictures(make_category, small, monkeypatch):
    category, seen = data.scan(make_category(good=0, bad=0), "pad"), []
    monkeypatch.setattr(stage_times, "measure", lambda detector, images, **how: seen.extend(images)
                        or timing.Timing(("all",), np.ones((1, 1, 1)), 1.0, 1, 1))
    stage_times.measure_time(patchcore(), category, small, pictures=5)
    expected = [load_image(category.train[index % 4].path, small)[None] for index in range(5)]
    assert torch.equal(torch.cat(seen), torch.cat(expected))


@pytest.mark.parametrize("arguments", [{"pictures": 0}, {"batch_size": 0}, {"repeats": 0}, {"warmup": -1}])
def test_time_refuses_before_the_work(pad, small, calls, arguments):
    (name, value), = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        stage_times.measure_time(patchcore(), pad, small, **arguments)
    assert calls == []


def test_compare_refuses_a_negative_count_before_the_work(pad, small, calls):
    with pytest.raises(ThesisError, match="pictures=-1: needs at least 1, or 0 to time none"):
        stage_times.compare({"one": patchcore()}, pad, small, seeds=1, pictures=-1)
    assert calls == []


def test_worst_are_high_nominal_and_low_anomalous(pad):
    assert scores.worst(pad, [1, 3, 2, 9, 0, 5], count=2) == [1, 2, 4, 5]
    assert scores.worst(pad, [1, 3, 2, 9, 0, 5], count=9) == [1, 2, 0, 4, 5, 3]
