"""A bundle scores as the library does, without torch; what is damaged, foreign or unmeasurable is refused by name."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch
from PIL import Image

from tests.device.conftest import OPTIONS
from thesis_lib import data
from thesis_lib.commands import main
from thesis_lib.core import identity, memory, nearest, paths, results, stamp, timing
from thesis_lib.core.preprocess import pictures_in
from thesis_lib.data.pictures import load_image
from thesis_lib.device import bundle, export
from thesis_lib.device.run import detect, measure
from thesis_lib.evaluation import crossfit
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.evaluation.stage_times import measure_time
from thesis_lib.evaluation.thesis import STAGES, bars_of
from thesis_lib.evaluation.thresholds import Promise, rank
from thesis_lib.methods import SPADE, EfficientAD, PaDiM, PatchCore, SimpleNet, UninformedStudents
from thesis_lib.networks import engines
from thesis_lib.networks.maps import Extracted
from thesis_lib.report import tables

SMALL = data.Preprocess(image_size=64)
DETECTOR = PatchCore(weights="random", layers=(1,), bank=20, calibration=4)
PADIM = PaDiM(weights="random", layers=(1,), channels=40, calibration=4)
TRAINED = {
    "simplenet": SimpleNet(weights="random", layers=(1,), embedding="avg_k3_s2_p1", hidden=16, epochs=2, passes=2,
                           batch=4, snapshots=1, calibration=4),
    "efficientad": EfficientAD(weights="random", steps=2, snapshots=1, penalty="none", held_out=0.3, calibration=4)}
QUICK = ("--pictures", "2", "--warmup", "0", "--repeats", "2")
INT8 = {"reduce_range": True, "onnxruntime": identity.version_of("onnxruntime")}


def thesis(capsys, *arguments):
    """Exit code, lines of stdout, lines of stderr."""
    capsys.readouterr()
    try:
        code = main.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *(text.splitlines() for text in capsys.readouterr())


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, category, tmp_path_factory):
    """(detector, its bundle); not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_OUTPUTS", str(out.parent / "outputs"))
        export.export(replace(TRAINED[request.param]), category, SMALL, out, false_alarms=0.34)
    return TRAINED[request.param], out


@pytest.fixture
def trained_copy(trained, tmp_path):
    return shutil.copytree(trained[1], tmp_path / "copy")


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


def changed(folder, change):
    """The bundle with other facts, and checksums that fit them."""
    file = folder / bundle.FACTS
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts))
    (folder / bundle.SUMS).write_text(bundle.sums(folder))
    return folder


# ---- the same numbers

@pytest.mark.parametrize("engine", bundle.ENGINES)
def test_scores_and_maps_are_those_of_the_library(original, category, monkeypatch, engine):
    """Of whole pictures, not of the copies in the bundle; its own search (FAISS) and network."""
    monkeypatch.setattr(engines, "reduce_range", lambda: True)
    library = replace(DETECTOR, engine="eager" if engine == "float" else engine)
    expected = library.fit(data.Pictures(category.train, SMALL)).predict(
        next(iter(data.Pictures(category.test, SMALL))))
    found = [one for _, one in detect(bundle.Bundle.open(original), [one.path for one in category.test], engine=engine)]
    np.testing.assert_allclose([one.score for one in found], expected.score, rtol=1e-4)
    np.testing.assert_allclose([one.map for one in found], expected.map, rtol=1e-3, atol=1e-4)
    assert min(one.score for one in found[3:]) > 1.5 * max(one.score for one in found[:3])


def test_expected_scores_hold_and_int8_is_another_network(original):
    opened = bundle.Bundle.open(original)
    assert [opened.parity(engine, 1).difference < 1e-5 for engine in bundle.ENGINES] == [True, True]
    scores = np.array([opened.facts["engines"][engine]["scores"] for engine in bundle.ENGINES])
    assert scores.shape == (2, len(opened.pictures)) and len(opened.on_way) == 3
    assert len(opened.pictures) == 6 + 3 + len(opened.facts["near"])
    nominal = scores[:, :3]     # the white squares are brighter than all that set the ranges: int8 cuts them off
    assert 1e-4 < np.abs(nominal[0] - nominal[1]).max() / nominal.max() < 0.1


@pytest.mark.parametrize("engine", bundle.ENGINES)
def test_threshold_is_a_score_of_pictures_that_the_bank_did_not_see(original, category, monkeypatch, engine):
    """By hand: the network again for each fold, which is one of the ten pictures."""
    monkeypatch.setattr(engines, "reduce_range", lambda: True)
    library, scores = replace(DETECTOR, engine="eager" if engine == "float" else engine), []
    network = library.network((1,), data.Pictures(category.train, SMALL))       # int8: with the ranges of all of them
    for one in range(10):
        held = category.train[one:one + 1]
        rest = data.Pictures([sample for sample in category.train if sample not in held], SMALL)
        detector = replace(library)
        detector.backbone_ = network
        detector.learn(detector.gather_nominal(Extracted(network, rest)))
        scores += detector.predict(next(iter(data.Pictures(held, SMALL)))).score.tolist()
    opened = bundle.Bundle.open(original)
    facts = opened.facts["engines"][engine]
    assert opened.threshold(engine) == pytest.approx(max(scores), rel=1e-5)
    assert facts["spread"] == pytest.approx(np.subtract(*np.quantile(scores, [0.75, 0.25])), rel=1e-3)
    assert {"rule": "false_alarms", "wanted": 0.1, "n": 10, "of": 10, "order": "blocks"}.items() <= (
        opened.facts["threshold"].items())
    assert "10 folds of blocks of consecutive file names" in opened.facts["threshold"]["scores"]
    promised = Promise.of(scores, false_alarms=0.1)
    low, high = promised.interval
    assert facts["rank"] == 10 and facts["false_alarms"] == pytest.approx(
        {"expected": 1 / 11, "low": low, "high": high, "at_most": promised.at_most})
    found = [one.score > opened.threshold(engine) for _, one in detect(opened, [one.path for one in category.test],
                                                                       engine=engine)]
    assert facts["good_flagged"] == [sum(found[:3]), 3] and facts["defective_found"] == [sum(found[3:]), 3] == [3, 3]
    other = [line for line in facts["promise"] if "drawn at random would put the threshold at" in line]
    assert len(other) == (engine == "float"), "the float engine says it for both"


def test_shuffled_folds_can_be_asked_for_and_a_recall_in_place_of_a_rate(category, capsys, tmp_path):
    where = ("--data", category.train[0].path.parents[3], "--category", "pad", *OPTIONS[:-2])
    command = ("export", "patchcore", *where, "--out", tmp_path / "out")
    code, printed, err = thesis(capsys, *command, "--folds", "shuffled", "--recall", "100%", "--json")
    facts = bundle.Bundle.open(tmp_path / "out").facts
    assert code == 0 and "drawn at random" in facts["threshold"]["scores"]
    assert {"rule": "recall", "wanted": 1.0, "order": "shuffled"}.items() <= facts["threshold"].items()
    text = "\n".join(printed)
    assert "folds of blocks of consecutive file names would put the threshold at" in text
    assert "3 of 3 found, 100 % were asked for: at least 29 %, for defects like these" in text
    answer = json.loads(printed[-1])
    assert answer["thresholds"]["float"] == facts["engines"]["float"]["threshold"]
    assert answer["promises"]["float"]["defective_found"] == [3, 3] and answer["promises"]["n"] == 10
    for options, told in ((("--recall", "95%", "--false-alarms", "10%"), "not allowed with"),
                          (("--false-alarms", "5"), "'5': needs a share such as 1% or 0.01"),
                          (("--false-alarms", "1%"), "false_alarms=0.01: below what 10 pictures can give, 1 in 11; "
                           "needs 0.091 or more, or the scores of at least 99 pictures"),
                          (("--quantile", "0.95"), "--quantile")):
        code, printed, err = thesis(capsys, *command, *options)
        assert (code, printed) == (2, []) and told in err[-1]


@pytest.mark.parametrize("other", [
    {"layers": (1, 2), "embedding": "avgmax_k3_s1_p1", "join": "interpolate", "scaling": "normalise_weight",
     "tap": "preactivation", "activation": "softmin", "distance": "l2_squared"},
    {"embedding": "adaptive_4"}, {"layers": (1, 2)}])
def test_every_part_of_an_embedding_goes_into_the_graph(category, tmp_path, other):
    """`export` refuses a bundle whose scores are not the library's; here by a closer limit. FAISS rounds 1e-4 away."""
    export.export(replace(DETECTOR, **other), category, SMALL, tmp_path / "out", false_alarms=0.1)
    opened = bundle.Bundle.open(tmp_path / "out")
    assert max(opened.parity(engine, 1).difference for engine in bundle.ENGINES) < 3e-4


@pytest.mark.parametrize("block", [1, 5000, nearest.BLOCK])
def test_search_equals_faiss(monkeypatch, block):
    """Block after block; far from the origin, where the product form cancels."""
    monkeypatch.setattr(nearest, "BLOCK", block)
    rng = np.random.default_rng(0)
    bank, vectors = (rng.normal(1, 1, (count, 96)).astype("f4") for count in (700, 101))
    index = faiss.IndexFlatL2(96)
    index.add(bank)
    expected, rows = index.search(vectors, 4)
    squared, found = nearest.nearest(vectors, bank, 4)
    np.testing.assert_allclose(squared, expected, rtol=1e-4)
    assert (found == rows).mean() > 0.99
    assert np.array_equal(nearest.nearest(vectors, bank)[0][:, 0], squared[:, 0])


def test_int8_weights_keep_to_seven_bits_whatever_processor_exported_them(original):
    import onnx
    from onnx import numpy_helper
    model = onnx.load(original / "int8/network.onnx")
    weights = [numpy_helper.to_array(one) for one in model.graph.initializer]
    integers = [one for one in weights if one.dtype == np.int8 and one.ndim == 4]
    assert integers and max(np.abs(one.astype(int)).max() for one in integers) <= 64


# ---- the trained detectors

def learned_by(detector, category):
    """Pictures that are left to learn from: SimpleNet keeps back a fifth for its threshold."""
    return [category.train[number] for number in crossfit.plan(detector, category.train).learned]


def test_trained_scores_and_maps_are_those_of_the_library(trained, category, monkeypatch):
    monkeypatch.setattr(engines, "reduce_range", lambda: True)
    detector, folder = trained
    opened, files = bundle.Bundle.open(folder), [one.path for one in category.test]
    scores = {}
    for name, engine in {"float": "eager", "int8": "int8"}.items():
        library = replace(detector, engine=engine)
        # The ranges of int8 come from all of them, whatever is learned from.
        library.backbone_ = library.network(library.levels, data.Pictures(category.train, SMALL))
        learned = Extracted(library.backbone_, data.Pictures(learned_by(detector, category), SMALL))
        library.learn(library.gather_nominal(learned))
        expected = library.predict(next(iter(data.Pictures(category.test, SMALL))))
        found = [one for _, one in detect(opened, files, engine=name)]
        unit = opened.threshold(name) - opened.floor(name)
        scores[name] = np.array([one.score for one in found]) / unit
        np.testing.assert_allclose(scores[name], expected.score / unit, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose([one.map / unit for one in found], expected.map / unit, rtol=1e-4, atol=1e-3)
        assert list(opened.stages(name, 1)) == list(library.stages)
        assert opened.parity(name, 1).difference < 1e-4
    assert np.abs(scores["float"] - scores["int8"]).max() > 1e-3


def test_threshold_and_floor_of_a_trained_detector_are_those_of_pictures_that_did_not_train(trained, category):
    detector, folder = trained
    planned, rim = crossfit.plan(detector, category.train), 4 if detector.name == "efficientad" else 0
    held = [category.train[number] for number in planned.held]
    assert len(held) == {"efficientad": 3, "simplenet": 2}[detector.name]
    fitted = replace(detector).fit(data.Pictures(learned_by(detector, category), SMALL))
    found = fitted.predict(next(iter(data.Pictures(held, SMALL))))
    opened, side = bundle.Bundle.open(folder), found.map.shape[-1]
    inner = found.map[:, rim:side - rim, rim:side - rim].numpy()
    ranked = np.sort(found.score.numpy())
    assert opened.threshold("float") == pytest.approx(ranked[rank(len(held), 0.34) - 1], abs=1e-4)
    assert np.quantile(inner, 0.45) < opened.floor("float") < np.quantile(inner, 0.55) < opened.threshold("float")
    assert {"n": len(held), "of": 10, "scores": planned.made}.items() <= opened.facts["threshold"].items()
    assert bundle.Bundle.open(folder).threshold("int8") != opened.threshold("float")


def test_a_map_is_grey_from_its_floor_to_its_threshold(trained, category, capsys, tmp_path):
    opened, file = bundle.Bundle.open(trained[1]), shutil.copy(category.test[0].path, tmp_path / "good.png")
    assert thesis(capsys, "detect", trained[1], file, "--maps")[0] == 0
    (_, found), = detect(opened, [file])
    level, top = opened.floor("float"), opened.threshold("float")
    full = Image.fromarray(found.map).resize((64, 64), Image.Resampling.BILINEAR)
    expected = np.clip(128 * (np.asarray(full) - level) / (top - level), 0, 255)
    assert np.abs(np.asarray(Image.open(tmp_path / "anomaly_maps/good.png.png")) - expected).max() < 1
    assert np.ptp(expected) > 50


@pytest.mark.parametrize("sign", [1, -1])
def test_another_score_of_a_trained_detector_gives_no_times(trained_copy, capsys, sign):
    """Whatever the sign of score and threshold, which need not be positive."""
    def off(facts):
        one = facts["engines"]["float"]
        one["scores"] = [score - 1 - one["threshold"] for score in one["scores"]]
        one["floor"] -= 1 + one["threshold"]
        one["threshold"] = -1.0
        one["scores"][0] += sign * 0.01 * (one["threshold"] - one["floor"])
    code, printed, err = thesis(capsys, "measure", changed(trained_copy, off), *QUICK)
    assert (code, printed, len(err)) == (2, [], 1) and "no times" in err[0]


def test_trained_bundles_refuse_what_is_damaged_missing_or_newer(trained_copy, capsys):
    for file in [file for file in trained_copy.rglob("*") if file.is_file()]:
        content = file.read_bytes()
        for other in (content[:-1] + bytes([content[-1] ^ 1]), None):
            file.unlink() if other is None else file.write_bytes(other)
            code, _, err = thesis(capsys, "detect", trained_copy, "x.png")
            assert (code, len(err)) == (2, 1) and file.name in err[0]
            file.write_bytes(content)
    last = list(json.loads((trained_copy / bundle.FACTS).read_text())["stages"].values())[-1]
    sums = trained_copy / bundle.SUMS
    content = sums.read_text()
    sums.write_text("".join(line for line in content.splitlines(True) if not line.endswith(f"  int8/{last}\n")))
    code, _, err = thesis(capsys, "measure", trained_copy)
    assert (code, len(err)) == (2, 1) and f"does not list int8/{last}" in err[0]
    newer = changed(trained_copy, lambda facts: facts.update(format=bundle.FORMAT + 1))
    code, _, err = thesis(capsys, "measure", newer)
    assert (code, len(err)) == (2, 1) and f"format {bundle.FORMAT + 1}, this version reads 2, 3, 4" in err[0]


def test_a_threshold_below_what_maps_show_everywhere_is_refused(category, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_median", lambda *_: 1e9)
    with pytest.raises(ValueError, match=r"false_alarms=0.5: gives the threshold .* not above the median .*, 1e\+09"):
        export.export(replace(TRAINED["simplenet"]), category, SMALL, tmp_path / "out", false_alarms=0.5)
    assert not (tmp_path / "out").exists()


def test_trained_bundles_need_no_torch(trained, tmp_path):
    lines = (f"measure {trained[1]} {' '.join(QUICK)} --threads 1 --engine int8 --out {tmp_path}/row.json",
             f"detect {trained[1]} {trained[1]}/pictures/00_good.png")
    done = subprocess.run([sys.executable, "-c", WALL, ";".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[0, 0]", done.stderr
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["method"] == trained[0].name and list(row["stage_ms"]) == list(row["stages"])
    assert (row["parameters"]["engine"], row["engine"]) == ("int8", INT8)
    assert Configuration.from_row(row).id == row["configuration"]


# ---- without torch

WALL = """
import importlib.abc, sys
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "faiss", "pandas", "matplotlib", "seaborn", "scipy",
                                      "sklearn", "safetensors", "onnx", "tqdm", "yaml", "jinja2", "jupyterlab",
                                      "IPython", "ipykernel", "ipywidgets", "papermill", "nbformat"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Wall())
from thesis_lib.commands import main
codes = []
for line in sys.argv[1].split(";"):
    try:
        codes.append(main.main(line.split()))
    except SystemExit as stop:
        codes.append(stop.code)
print(codes)
"""


def test_measure_and_detect_need_neither_torch_nor_faiss_nor_jupyter(copy, tmp_path):
    lines = (f"measure {copy} {' '.join(QUICK)} --threads 1 --out {tmp_path}/row.json",
             f"detect {copy} {copy}/pictures/00_good.png --maps --engine int8", "--help", "measure --help",
             "evaluate patchcore")
    done = subprocess.run([sys.executable, "-c", WALL, ";".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 2]", done.stderr
    assert (tmp_path / "row.json").is_file()
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith("thesis: error: needs the package ") and "pip install 'thesis-lib[full]'" in line
    assert "Traceback" not in done.stderr


# ---- measuring

def test_rows_have_the_fields_of_thesis_time_and_go_into_the_same_tables(original, category, capsys, tmp_path):
    out = results.path_of({"kind": "time", "method": "x", "category": "y", "id": "z", "parameters": {}})
    out = out.with_name("pi.json")
    code, printed, _ = thesis(capsys, "measure", original, *QUICK, "--threads", "1,2", "--engine", "int8", "--out", out)
    assert code == 0
    opened = bundle.Bundle.open(original)
    plain = len(opened.pictures) - 3
    assert any(f"scores of the bundle's {plain} pictures: at most" in line and "; of 3 JPEGs, decoded" in line
               for line in printed)
    assert f"verdicts: {plain + 3} of {plain + 3} as at export" in printed
    assert any("before that, ms a picture: reading " in line and "--images times yours" in line for line in printed)
    ours = measure_time(replace(DETECTOR, search="numpy"), category, SMALL, pictures=1, warmup=0, repeats=1)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["threads"] for row in rows] == [row["protocol"]["threads"] for row in rows] == [1, 2]
    for row in rows:
        assert set(ours) - set(row) == set()
        assert set(ours["protocol"]) == set(row["protocol"]) and set(ours["stamp"]) == set(row["stamp"])
        assert np.array(row["raw_s"]).shape == (2, 2, 4) and list(row["stage_ms"]) == list(STAGES)
        assert row["parity"]["difference"] < 1e-5 and row["parity"]["whole_way"] < 1e-5
        assert (row["parity"]["flipped"], row["parity"]["on_way"]) == ([], 3)
        assert list(row["opening_ms"]) == ["reading", "decoding", "resizing"] and min(row["opening_ms"].values()) > 0
        assert row["opened"] == ["jpeg0_good.jpg", "jpeg1_hole.jpg", "large_hole.jpg"]
        assert Configuration.from_row(row).id == row["configuration"]
        assert (row["parameters"]["engine"], row["parameters"]["search"]) == ("int8", "numpy")
        assert row["engine"] == INT8
        assert row["stamp"]["threads"] == {"onnxruntime": row["threads"], "numpy": row["threads"]}
    assert rows[0]["id"] != rows[1]["id"]
    label = bars_of("3.2")["label"][0]
    table = tables.stage_times("3.2", {label: rows[0]})
    assert table.loc[(label, "measured"), "total"] == pytest.approx(rows[0]["total_ms"])
    stored = tables.all_rows()[lambda every: every["origin"] == "own"]
    assert sorted(stored["protocol.threads"]) == sorted([1, 2, torch.get_num_threads()])


def test_without_out_a_row_lies_where_the_others_do(original, capsys):
    code, printed, _ = thesis(capsys, "measure", original, *QUICK, "--threads", 1)
    (row,) = tables.all_rows()[lambda every: every["origin"] == "own"].to_dict("records")
    assert code == 0 and row["kind"] == "time" and row["parameters.engine"] == "fast"
    (stored,) = paths.results().glob("time-*.json")
    assert printed[-1].strip() == str(stored)


@pytest.mark.parametrize("forget", ["told", "gone"])
def test_the_memory_is_told_or_that_it_is_not_known(original, capsys, monkeypatch, tmp_path, forget):
    if forget == "gone" or memory.Peak().gb is None:
        monkeypatch.setattr(memory, "FORGET", tmp_path / "gone" / "file")
        expected = "peak memory not told by this system"
    else:
        monkeypatch.setattr(timing.memory, "Peak", lambda: type("P", (), {"gb": 0.125}))
        expected = "peak memory 0.12 GB"
    printed = thesis(capsys, "measure", original, *QUICK, "--threads", 1, "--out", tmp_path / "row.json")[1]
    assert any(expected in line for line in printed)


def test_own_pictures_are_timed(original, category, capsys, tmp_path):
    folder = category.test[0].path.parent
    command = ("measure", original, *QUICK, "--images", folder, "--threads", 1, "--out", tmp_path / "r")
    assert thesis(capsys, *command)[0] == 0
    row = json.loads((tmp_path / "r").read_text())
    assert row["timed"] == row["opened"] == ["000.png", "001.png"]


def test_network_and_search_run_on_the_threads_that_are_noted(original, monkeypatch):
    from threadpoolctl import threadpool_info
    seen, genuine, session = [], timing.protocol, bundle.session

    def protocol(*args, **kwargs):
        seen.append(("search", *{pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}))
        return genuine(*args, **kwargs)

    monkeypatch.setattr(timing, "protocol", protocol)
    monkeypatch.setattr(bundle, "session", lambda model, threads: seen.append(threads) or session(model, threads))
    row = measure(bundle.Bundle.open(original), threads=1, pictures=1, warmup=0, repeats=1)
    assert seen == [1, 1, 1, 1, ("search", 1)] and row["threads"] == 1


def test_other_scores_than_expected_give_no_times(copy, capsys, tmp_path):
    def off(facts):
        facts["engines"]["float"]["scores"][0] *= 1.01
    code, printed, err = thesis(capsys, "measure", changed(copy, off), *QUICK, "--out", tmp_path / "row.json")
    assert (code, printed, len(err)) == (2, [], 1)
    assert "scores of engine float differ by" in err[0] and "no times" in err[0]
    assert not (tmp_path / "row.json").exists()


@pytest.mark.parametrize(("before", "after", "told"), [
    ("0x0", "0x50005", "under-voltage, throttled while measuring"), ("0x50000", "0x50000", None), (None, None, None),
    ("0x0", "0x80000", "over the soft temperature limit"), ("0x2", "0x20000", "clock capped while measuring")])
def test_throttling_is_told(original, monkeypatch, capsys, before, after, told):
    answers = iter([before, after, after])
    monkeypatch.setattr(stamp, "_throttled", lambda: next(answers))
    monkeypatch.setattr(timing, "SPREAD_LIMIT", 1e9)
    code, printed, err = thesis(capsys, "measure", original, *QUICK, "--threads", 1)
    assert code == 0 and any(f"throttled {before} to {after}" in line for line in printed) == bool(before)
    assert len(err) == bool(told) and (not told or told in err[0])


def test_noise_is_told(original, monkeypatch, capsys):
    monkeypatch.setattr(timing, "SPREAD_LIMIT", -1.0)
    _, _, err = thesis(capsys, "measure", original, *QUICK, "--threads", 1)
    assert len(err) == 1 and err[0].startswith("thesis: warning: noisy: spread")


# ---- detecting

def test_detect_goes_on_after_a_broken_picture(original, category, capsys, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = [category.test[0].path, tmp_path / "broken.png", tmp_path / "absent.png", category.test[-1].path]
    code, printed, err = thesis(capsys, "detect", original, *files)
    assert code == 1 and len(printed) == len(err) == 2
    assert printed[1].split()[1:] == ["anomalous", "confidence", printed[1].split()[3], str(files[3])]
    assert "broken.png: not a readable picture" in err[0] and "absent.png: not a readable picture" in err[1]
    assert thesis(capsys, "detect", original, files[3])[0] == 0


def test_above_the_threshold_is_anomalous_and_not_at_it(copy, capsys):
    opened = bundle.Bundle.open(copy)
    (_, found), = detect(opened, opened.pictures[:1])
    for threshold, verdict in ((found.score, "OK"), (np.nextafter(found.score, 0), "anomalous")):
        changed(copy, lambda facts, value=threshold: facts["engines"]["float"].update(threshold=float(value)))
        assert thesis(capsys, "detect", copy, opened.pictures[0])[1][0].split()[1] == verdict


def test_confidence_is_the_logistic_of_the_distance_to_the_threshold(original, category, capsys):
    opened, files = bundle.Bundle.open(original), [one.path for one in category.test]
    threshold, spread = opened.threshold("float"), opened.facts["engines"]["float"]["spread"]
    scores = np.array([found.score for _, found in detect(opened, files)])
    printed = thesis(capsys, "detect", original, *files)[1]
    shown = [float(line.split()[3]) for line in printed]
    np.testing.assert_allclose(shown, 1 / (1 + np.exp(-(scores - threshold) / spread)), atol=6e-4)
    verdicts = [line.split()[1] for line in printed]
    assert [verdict == "anomalous" for verdict in verdicts] == [value > 0.5 for value in shown]
    help = " ".join(" ".join(thesis(capsys, "detect", "--help")[1]).split())
    assert "1 / (1 + exp(-(score - threshold) / s))" in help and "It orders pictures and is no probability" in help


def test_confidence_without_a_spread_is_a_step_and_far_away_it_does_not_overflow(copy):
    opened = bundle.Bundle.open(copy)
    one, threshold = opened.facts["engines"]["float"], opened.threshold("float")
    for spread in (0, 5e-324, 1e-9):
        one["spread"] = spread
        assert [opened.confidence("float", threshold + far) for far in (-1e9, -1e-3, 0, 1e-3, 1e9)] == [0, 0, 0.5, 1, 1]


def test_a_bundle_of_before_confidences_were_known_is_read_and_says_so(copy, capsys):
    def forget(facts):
        for one in facts["engines"].values():
            for key in ("spread", "rank", "false_alarms", "defective_found", "good_flagged", "promise"):
                del one[key]
        facts["threshold"] = {"rule": "quantile of the scores", "quantile": 0.95, "held_out": 2, "of": 10}
    file = bundle.Bundle.open(changed(copy, forget)).pictures[0]
    code, printed, err = thesis(capsys, "detect", copy, file)
    assert code == 0 and printed[0].split()[1:] == ["OK", str(file)]
    assert err == [f"thesis: {copy}: was exported before confidences were known and shows none; export it anew"]
    assert thesis(capsys, "measure", copy, *QUICK, "--threads", 1)[0] == 0


def test_map_is_grey_with_the_threshold_in_the_middle(original, category, capsys, tmp_path):
    file = shutil.copy(category.test[-1].path, tmp_path / "hole.png")
    assert thesis(capsys, "detect", original, file, "--maps")[0] == 0
    grey = np.asarray(Image.open(tmp_path / "anomaly_maps/hole.png.png"))
    threshold = bundle.Bundle.open(original).threshold("float")
    fitted = replace(DETECTOR).fit(data.Pictures(category.train, SMALL))
    found = fitted.predict(load_image(file, SMALL)[None])
    expected = replace(found, sigma=0).full_map(64)[0]
    assert (grey.dtype, grey.shape) == (np.uint8, (64, 64))
    assert np.abs(grey - np.clip(expected.numpy() * 128 / threshold, 0, 255)).max() < 1
    assert grey[18:36, 24:40].min() > 128 and grey[:4, :4].max() < 128


def test_maps_are_not_taken_for_pictures(original, category, capsys, tmp_path):
    for name in ("a.png", "a.jpg"):             # two maps, too
        Image.open(category.test[-1].path).save(tmp_path / name)
    pattern = lambda: sorted(file for file in tmp_path.rglob("*") if file.is_file())        # noqa: E731
    first, second = (thesis(capsys, "detect", original, *pattern(), "--maps") for _ in range(2))
    assert first[0] == second[0] == 0 and first[1] == second[1] and len(second[1]) == 2
    assert [file.name for file in sorted((tmp_path / "anomaly_maps").iterdir())] == ["a.jpg.png", "a.png.png"]
    assert pictures_in(tmp_path, below=True) == [tmp_path / "a.jpg", tmp_path / "a.png"]
    code, _, err = thesis(capsys, "detect", original, *(tmp_path / "anomaly_maps").iterdir())
    assert code == 2 and len(err) == 1 and "anomaly_maps" in err[0]


@pytest.mark.parametrize("hindrance", ["the folder is a file", "the map is a folder", "the disk is full"])
def test_a_map_that_cannot_be_written_stops_no_other(original, category, capsys, tmp_path, monkeypatch, hindrance):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(category.test[-1].path, tmp_path / name / "x.png")
    maps = tmp_path / "a" / "anomaly_maps"
    if hindrance == "the folder is a file":
        maps.touch()
    elif hindrance == "the map is a folder":
        (maps / "x.png.png").mkdir(parents=True)
    else:
        genuine = Image.Image.save

        def full(image, file, **options):
            if file.parent == maps:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            genuine(image, file, **options)

        monkeypatch.setattr(Image.Image, "save", full)
    files = [tmp_path / name / "x.png" for name in ("a", "b")]
    code, printed, err = thesis(capsys, "detect", original, *files, "--maps")
    assert (code, len(printed), len(err)) == (1, 2, 1)
    assert err[0].startswith(f"thesis: {maps}/x.png.png: ") and err[0].endswith("; the map is not written")
    assert (tmp_path / "b/anomaly_maps/x.png.png").is_file() and not list(tmp_path.rglob("*.partial"))


def test_nan_on_the_way_is_no_score(original, category, capsys, monkeypatch, tmp_path):
    """`nan > threshold` is False: such a picture was OK."""
    genuine, broken = data.Preprocess.array, shutil.copy(category.test[-1].path, tmp_path / "broken.png")

    def array(self, path):
        return genuine(self, path) * (np.nan if path.name == "broken.png" else 1)

    monkeypatch.setattr(data.Preprocess, "array", array)
    code, printed, err = thesis(capsys, "detect", original, broken, category.test[0].path)
    assert (code, len(printed), len(err)) == (1, 1, 1) and "broken.png: " in err[0] and "NaN" in err[0]


def test_levels_travel_in_the_bundle(capsys, tmp_path):
    """12 bits in files of 16: what the training pictures decide holds on the device."""
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 10), ("test/good", 2), ("test/hole", 2)):
        (tmp_path / "set/pad" / kind).mkdir(parents=True)
        for index in range(count):
            values = rng.integers(1400, 2100, (64, 64), dtype=np.uint16)
            values[:2, :2] = 4095                   # a bright rim, in all of them
            if kind == "test/hole":
                values[20:40, 30:50] = 4000
            Image.fromarray(values).save(tmp_path / "set/pad" / kind / f"{index}.png")
    where = ("--data", tmp_path / "set", "--category", "pad")
    assert thesis(capsys, "export", "patchcore", *where, *OPTIONS, "--out", tmp_path / "bundle")[0] == 0
    opened = bundle.Bundle.open(tmp_path / "bundle")
    assert opened.preprocess.levels == 4096
    _, printed, _ = thesis(capsys, "detect", tmp_path / "bundle", *sorted((tmp_path / "set/pad/test").rglob("*.png")))
    assert [line.split()[1] for line in printed] == ["OK", "OK", "anomalous", "anomalous"]


# ---- what is refused

def test_a_flipped_byte_in_any_file_is_named(copy):
    files = [file for file in copy.rglob("*") if file.is_file()]
    assert len(files) == 2 + 6 + len(json.loads((copy / bundle.FACTS).read_text())["pictures"])
    for file in files:
        content = file.read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
            with pytest.raises(bundle.BundleError, match=r"SHA256SUMS" if file.name == bundle.SUMS else file.name):
                bundle.Bundle.open(copy)
        file.write_bytes(content)
    bundle.Bundle.open(copy)


def test_a_missing_file_is_named(copy):
    for file in [file for file in copy.rglob("*") if file.is_file()]:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(bundle.BundleError, match=file.name) as told:
            bundle.Bundle.open(copy)
        assert "\n" not in str(told.value)
        file.write_bytes(content)


@pytest.mark.parametrize("name", ["bundle.json", "float/bank.npy", "int8/network.onnx", "pictures/00_good.png"])
def test_a_file_without_checksum_is_refused(copy, name):
    sums = copy / bundle.SUMS
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if not line.endswith(f"  {name}\n")))
    with pytest.raises(bundle.BundleError, match=f"does not list {name}"):
        bundle.Bundle.open(copy)


@pytest.mark.parametrize(("key", "value", "told"), [
    ("format", bundle.FORMAT + 1, f"format {bundle.FORMAT + 1}, this version reads 2, 3, 4, 5"),
    ("preprocess", {"mean": [0, 0, 0], "std": [1, 1, 1]}, "normalises with")])
def test_another_format_is_refused(copy, capsys, key, value, told):
    code, _, err = thesis(capsys, "measure", changed(copy, lambda facts: facts.update({key: value})))
    assert (code, len(err)) == (2, 1) and told in err[0]


@pytest.mark.parametrize("command", [("measure",), ("detect", "x.png")])
def test_a_folder_that_is_no_bundle(capsys, tmp_path, command):
    name, *more = command
    for folder in (tmp_path, tmp_path / "absent"):
        code, _, err = thesis(capsys, name, folder, *more)
        assert (code, len(err)) == (2, 1) and f"{folder}: not a bundle" in err[0]


@pytest.mark.parametrize(("options", "told"), [
    (("--threads", "0"), "threads=0: needs at least 1"), (("--threads", "x"), "'x': needs numbers such as 1,2,4"),
    (("--pictures", "0"), "pictures=0"), (("--repeats", "0"), "repeats=0"), (("--images", "nowhere"), "nowhere"),
    (("--engine", "tpu"), "tpu")])
def test_measure_names_a_bad_option(original, capsys, options, told):
    code, printed, err = thesis(capsys, "measure", original, *options)
    assert (code, printed) == (2, []) and told in err[-1]


def test_a_broken_picture_to_time_is_named(original, capsys, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    code, _, err = thesis(capsys, "measure", original, *QUICK, "--images", tmp_path)
    assert (code, len(err)) == (2, 1) and "broken.png: not a readable picture" in err[0]


@pytest.mark.parametrize(("detector", "options", "told"), [
    (SPADE(weights="random", layers=(1,)), {}, "^spade: has no bundle, as the feature maps of all training pictures "
     "would have to be on the device, .*; needs patchcore, padim, simplenet, efficientad$"),
    (UninformedStudents(weights="random"), {}, "^uninformed_students: has no bundle, as by default twelve networks "),
    (replace(DETECTOR, score="reweighted"), {}, "score=reweighted: a device knows max only"),
    (replace(DETECTOR, embedding="adaptive_7"), {}, "embedding=adaptive_7: has windows that ONNX lacks.* divides 16"),
    (replace(DETECTOR, embedding="original_d64"), {}, "embedding=original_d64: has windows that ONNX lacks"),
    (DETECTOR, {"false_alarms": 0.0}, "false_alarms=0: needs a share above 0"),
    (DETECTOR, {"false_alarms": 0.09}, "false_alarms=0.09: below what 10 pictures can give, 1 in 11"),
    (DETECTOR, {"recall": 0.0}, "recall=0: needs a share above 0"),
    (DETECTOR, {"order": "sorted"}, "order='sorted'")])
def test_export_refuses_and_leaves_nothing(category, tmp_path, detector, options, told):
    with pytest.raises(ValueError, match=told):
        export.export(detector, category, SMALL, tmp_path / "out", **{"false_alarms": 0.1} | options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("detector", "pictures", "told"), [
    (replace(DETECTOR, bank=9 * 256 + 1), 10, "9 of 10 training pictures, .* bank=2305: is 2305 rows, needs 1 to 2304"),
    (TRAINED["simplenet"], 5, "needs 0.5 or more, .*; simplenet keeps back 1 of 5 training pictures"),
    (replace(TRAINED["efficientad"], torch_device="abacus"), 10, "torch_device=abacus"),
    (TRAINED["efficientad"], 1, "1 training picture: one is held out")])
def test_export_refuses_before_a_picture_is_read(category, tmp_path, monkeypatch, detector, pictures, told):
    monkeypatch.setattr(data.Preprocess, "array", lambda *_: pytest.fail("a picture was read"))
    with pytest.raises(ValueError, match=told):
        export.export(detector, category.subset(pictures), SMALL, tmp_path / "out", false_alarms=0.4)
    assert not (tmp_path / "out").exists()


def test_export_wants_enough_pictures_a_new_folder_and_one_category(original, category, capsys):
    with pytest.raises(ValueError, match=r"false_alarms=0.05: below what 4 pictures can give, 1 in 5"):
        export.export(DETECTOR, category.subset(4), SMALL, "out")
    before = bundle.sums(original)
    where = ("--data", category.train[0].path.parents[3], *OPTIONS, "--out", original)
    for names, told in ((("pad",), "is there already"), (("all",), "one category"), (("pad", "pad"), "one category")):
        chosen = [word for name in names for word in ("--category", name)]
        code, _, err = thesis(capsys, "export", "patchcore", *chosen, *where)
        assert (code, len(err)) == (2, 1) and told in err[0]
    assert bundle.sums(original) == before


def test_without_test_pictures_training_ones_have_expected_scores(category, tmp_path):
    export.export(DETECTOR, replace(category, test=()), SMALL, tmp_path / "out", false_alarms=0.1)
    opened = bundle.Bundle.open(tmp_path / "out")
    names = opened.facts["pictures"]
    assert len(names) == 10 + 3 + len(opened.facts["near"]) and names[0] == "pictures/00_good.png"
    assert [Image.open(tmp_path / "out" / names[number]).size for number in (0, 10, 12)] == [
        (64, 56), (64, 56), (256, 224)]
