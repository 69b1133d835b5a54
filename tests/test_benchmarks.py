"""The other side of a benchmark is right, it measures what it says, and refuses to compare different answers."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import (
    bench_coreset,
    bench_methods,
    bench_picture,
    bench_promise,
    bench_rectangle,
    bench_search,
    bench_training,
    common,
    compare_rows,
)
from tests.patches.test_coreset import clustered, farthest_first
from thesis_lib import data
from thesis_lib.core import identity, paths
from thesis_lib.data.pictures import load_image
from thesis_lib.evaluation import limits, scores
from thesis_lib.methods import PatchCore
from thesis_lib.networks import engines
from thesis_lib.patches import coreset, search
from thesis_lib.report import tables


@pytest.fixture
def one_giga(monkeypatch):
    """Rates of the machine without the seconds that it takes to measure them."""
    monkeypatch.setattr(limits, "machine", lambda: limits.Machine(1e9, 1e9, 1))


def stored(method):
    """Lines of the only row of that benchmark, by all their texts."""
    rows = tables.all_rows()
    (row,) = rows[(rows["kind"] == "benchmark") & (rows["method"] == method)].to_dict("records")
    return row["lines"], row


def test_plain_loop_is_farthest_first():
    features = clustered(400, 16, 0)
    tensor = torch.from_numpy(features).double()
    assert bench_coreset.plain_loop(tensor, tensor.square().sum(dim=1), 100, 5) == farthest_first(features, 100, 5)


def test_other_rows_than_the_plain_loop_stop_it(monkeypatch):
    monkeypatch.setattr(coreset, "select", lambda features, rows: np.arange(rows))
    with pytest.raises(SystemExit, match="not the rows of the plain loop"):
        bench_coreset.compare(clustered(100, 4, 0), 20, 5, 1, 1)


def test_more_rows_are_the_same_with_noise():
    features = clustered(50, 4, 0)
    larger = bench_coreset.resized(features, 120, np.random.default_rng(0))
    assert (larger[:50] == features).all()
    assert 0 < np.abs(larger[50:100] - features).max() < 5 * bench_coreset.NOISE * features.std(axis=0).max()
    assert (bench_coreset.resized(features, 2, np.random.default_rng(0)) == features[[0, -1]]).all()


def test_table_is_printed_and_stored(make_category, capsys):
    bench_coreset.main(["--data", str(make_category()), "--category", "pad", "--weights", "random",
                        "--sizes", "90,5000", "--picks", "40", "--plain-picks", "5", "--rounds", "2"])
    listed, _ = stored("coreset")
    lines = {(line["rows"], line["side"]): line for line in listed}
    assert set(lines) == {(n, side) for n in (90, 5000) for side in ("thesis_lib", "plain loop", "reading once")}
    assert all(len(line["raw_ms"]) == 2 and line["ms_min"] > 0 for line in listed)
    assert lines[90, "thesis_lib"]["same_rows"] == "40 of 40"
    assert "plain loop" in capsys.readouterr().out


def test_ratio_is_within_a_round():
    """A round in which both sides were slow does not count for more."""
    statistics = common.statistics(np.array([1, 20, 2.0]), np.array([2, 40, 1.0]))
    assert statistics == {"ms_median": 2000, "ms_min": 1000, "ratio": 0.5, "raw_ms": [1000, 20_000, 2000]}


def test_picture_is_printed_and_stored(make_category, capsys, one_giga):
    bench_picture.main(["--data", str(make_category(size=64)), "--category", "pad", "--weights", "random",
                        "--rounds", "2", "--layers", "1", "1,2", "--bank", "30", "--threads", "1"])
    lines, row = stored("picture")
    sides = ["prototype", "eager", "fast", "int8", "fast, pruned", "floor, float32", "matrix product", "copying"]
    assert [(line["layers"], line["side"]) for line in lines] == [(levels, side) for levels in ("1", "1+2")
                                                                  for side in sides]
    assert row["protocol.rounds"] == 2 and row["protocol.threads"] == 1 and row["parameters.bank"] == 30
    for line in lines:
        if "raw_ms" in line:
            assert len(line["raw_ms"]) == 2 and line["ms_min"] <= line["ms_median"]
        if line["side"] == "prototype":
            assert line["ratio"] == 1
        if line["side"] == "matrix product":
            assert line["gmac_per_s"] == 1
        if "times_floor" in line:
            assert line["gmac_per_s"] == pytest.approx(1e3 * line["gmac"] / line["ms_median"])
    assert "matrix product" in capsys.readouterr().out


def test_prototype_gives_the_scores_of_the_detector(pad, small):
    train = data.Pictures(pad.train, small)
    detector = PatchCore(layers=(2, 3), weights="random", bank=30).fit(train)
    images = [load_image(sample.path, small)[None] for sample in pad.test]
    plain = bench_picture.prototype(detector, images[0])
    expected = [float(detector.predict(image).score) for image in images]
    assert [plain(image) for image in images] == pytest.approx(expected, rel=1e-4)
    others = bench_picture.with_engines(detector, train)
    assert list(others) == [*engines.ENGINES, "fast, pruned"]
    assert [one.engine for one in others.values()] == [*engines.ENGINES, "fast"]
    assert all(one.bank_ is detector.bank_ for one in others.values())
    assert others["fast"].backbone_ is not detector.backbone_
    for name in ("fast", "fast, pruned"):
        assert float(others[name].predict(images[0]).score) == pytest.approx(expected[0], rel=1e-4)


def test_another_score_than_eager_stops_it(pad, small, monkeypatch):
    monkeypatch.setattr(bench_picture, "prototype", lambda detector, image: lambda image: 1.0)
    train = data.Pictures(pad.train, small)
    detector = PatchCore(layers=(2,), weights="random", bank=30).fit(train)
    with pytest.raises(SystemExit, match="do not give the same score"):
        bench_picture.compare(detector, train, [load_image(pad.test[0].path, small)[None]])


def test_search_is_printed_and_stored(capsys, one_giga):
    bench_search.main(["--shapes", "70x30x8,5x200x4", "--rounds", "2", "--threads", "1"])
    lines, _ = stored("search")
    sides = ["cdist", "faiss", "one product", "blocks (torch)", "by shape (auto)", "floor"]
    assert [(line["shape"], line["side"]) for line in lines] == [(shape, side) for shape in ("70x30x8", "5x200x4")
                                                                 for side in sides]
    for line in lines:
        queries, rows, dim = map(int, line["shape"].split("x"))
        assert line["gmac_per_s"] == pytest.approx(queries * rows * dim / 1e6 / line["ms_median"])
        assert line["ratio"] == 1 or line["side"] != "faiss"
    assert "by shape (auto)" in capsys.readouterr().out


def test_other_distances_than_cdist_stop_it(monkeypatch):
    monkeypatch.setattr(search.Torch, "_nearest", lambda self, x, k: (torch.ones(len(x), 1), torch.zeros(len(x), 1)))
    with pytest.raises(SystemExit, match=r"70x30x8: blocks \(torch\) gives other distances"):
        bench_search.compare("70x30x8", 1, limits.Machine(1e9, 1e9, 1))


TRAINING = ["--category", "pad", "--weights", "random", "--pdn-weights", "random", "--rounds", "2",
            "--image-size", "64", "--train-pictures", "4", "--threads", "1", "--peer", "none"]


def test_training_is_printed_and_stored_with_equal_losses(make_category, capsys, one_giga):
    bench_training.main(["--data", str(make_category(size=64)), *TRAINING])
    lines, row = stored("training")
    assert [line["method"] for line in lines] == ["efficientad"] * 3 + ["simplenet"] * 3
    for ours, plain, floor in (lines[:3], lines[3:]):
        losses = ("hard", "autoencoder", "student_autoencoder", "penalty")
        for name in losses if ours["method"] == "efficientad" else ("nominal", "pseudo"):
            assert ours[name] == pytest.approx(plain[name], rel=1e-3)
        assert len(ours["raw_ms"]) == len(plain["raw_ms"]) == 2 and plain["ratio"] == 1
        assert ours["times_arithmetic"] == pytest.approx(ours["ms_median"] / floor["ms_median"])
    assert row["protocol.train_pictures"] == 4 and "arithmetic" in capsys.readouterr().out
    assert row["parameters.efficientad.backbone"] == "pdn_small" and row["parameters.simplenet.backbone"] == "resnet18"
    assert row["weights.efficientad.source"] == row["weights.simplenet.source"] == "random"


def test_another_step_than_the_plain_one_stops_it(make_category, monkeypatch, one_giga):
    monkeypatch.setattr(bench_training, "GREY", 1.0)        # of the plain side: its penalty has lost all colours
    with pytest.raises(SystemExit, match="efficientad, step 1: the sides do not lose the same"):
        bench_training.main(["--data", str(make_category(size=64)), *TRAINING, "--methods", "efficientad"])


METHODS = ["--category", "pad", "--weights", "random", "--pdn-weights", "random", "--rounds", "2", "--fits", "1",
           "--image-size", "64", "--train-pictures", "4", "--test-pictures", "3", "--threads", "1", "--passes", "1"]


def test_methods_beside_restatements_without_the_peer(make_category, capsys, tmp_path):
    bench_methods.main(["--data", str(make_category(size=64)), *METHODS, "--peer", str(tmp_path / "none")])
    lines, row = stored("methods")
    sides = ["thesis_lib, eager", "thesis_lib, fast", "plain"]
    assert [(line["method"], line["side"]) for line in lines] == [(method, side) for method in ("spade", "simplenet")
                                                                  for side in sides]
    for line in lines:
        assert len(line["raw_fit_s"]) == 1 and len(line["raw_picture_ms"]) == 2
        if line["side"] == "plain":
            assert line["fit_ratio"] == line["picture_ratio"] == 1
        else:
            assert line["difference"] < 1e-3 and line["rank"] == pytest.approx(1)
    printed = capsys.readouterr().out
    assert "is not there; make it by" in printed and "anomalib==2.7" in printed
    assert "| spade | plain |" in printed and row["protocol.clock"] == "wall"


PRETENDED = """
import json, sys
def say(**answer): print(json.dumps(answer), flush=True)
say(anomalib="2.7.x")
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "fail":
        break
    say(seconds=2.0, score=1.0 + asked.get("number", 0), threads=asked["threads"], clock=asked["clock"])
"""


@pytest.fixture
def pretended(tmp_path):
    """A Python that answers in anomalib's place, whatever program it is told to run."""
    (tmp_path / "answers.py").write_text(PRETENDED)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'answers.py'}\n")
    python.chmod(0o755)
    return str(python)


def test_a_peer_that_ends_says_how_it_is_made(pretended):
    with common.Peer(pretended, 3, "processor") as peer:
        assert peer.version == "2.7.x"
        answer = peer.ask("predict", number=4)
        assert answer == {"seconds": 2.0, "score": 5.0, "threads": 3, "clock": "processor"}
        with pytest.raises(SystemExit, match="anomalib: its process has ended"):
            peer.ask("fail")


def test_methods_are_compared_with_a_peer(make_category, capsys, pretended):
    """What is sent can be written and what is answered counts; that anomalib understands it needs its environment."""
    bench_methods.main(["--data", str(make_category(size=64)), *METHODS, "--peer", pretended, "--bank", "20",
                        "--channels", "10", "--steps", "2", "--methods", "patchcore", "padim", "efficientad"])
    lines, _ = stored("methods")
    assert [line["side"] for line in lines] == ["thesis_lib, eager", "thesis_lib, fast", "anomalib 2.7.x"] * 3
    for line in lines:
        assert (line["fit_s"] == 2 and line["picture_ms"] == 2000) == line["side"].startswith("anomalib")
        assert ("times_arithmetic" in line) == (line["method"] == "efficientad")
    assert "| padim | anomalib 2.7.x | 2 | 1 | 0 | 2e+03 | 1 | 0 |  |  |" in capsys.readouterr().out


def test_other_losses_than_the_peers_stop_it(make_category, pretended, monkeypatch, one_giga):
    losses = {"hard+penalty": 1e9, "autoencoder": 1.0, "student_autoencoder": 1.0}
    ask = common.Peer.ask
    monkeypatch.setattr(common.Peer, "ask", lambda self, *given, **more: ask(self, *given, **more) | {"losses": losses})
    with pytest.raises(SystemExit, match="step 1: the sides do not lose the same, anomalib 2"):
        bench_training.main(["--data", str(make_category(size=64)), *TRAINING, "--methods", "efficientad", "--peer",
                             pretended])


def as_program(name, *arguments):
    """What `python -m benchmarks.bench_name` prints."""
    command = [sys.executable, "-m", f"benchmarks.bench_{name}", *arguments]
    return subprocess.run(command, cwd=paths.PACKAGE.parent, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("name", "option"), [("coreset", "--sizes"), ("picture", "--layers"), ("search", "--shapes"),
                                              ("training", "--penalty"), ("methods", "--fits")])
def test_help_names_the_options(name, option):
    assert option in as_program(name, "--help")


def test_a_program_stores_the_row_of_the_module(capsys):
    """The code is that of `benchmarks.bench_search` and of PatchCore however it was started, not of "__main__"."""
    arguments = ["--shapes", "5x20x4", "--rounds", "1", "--threads", "1"]
    assert "by shape (auto)" in as_program("search", *arguments)
    _, row = stored("search")
    assert row["code"] == identity.key("benchmarks.bench_search", "thesis_lib.methods.patchcore")
    bench_search.main(arguments)
    _, again = stored("search")
    assert again["id"] == row["id"] and again["finished"] >= row["finished"]


def test_another_method_does_not_change_the_code_of_a_benchmark():
    """What it ran through counts, the benchmark and the search among it, no other method."""
    for name in ("coreset", "picture", "search"):
        counted = identity.modules(f"benchmarks.bench_{name}", "thesis_lib.methods.patchcore")
        assert {f"benchmarks.bench_{name}", "benchmarks.common", "thesis_lib.patches.search"} <= set(counted)
        assert [module for module in counted if ".methods." in module] == ["thesis_lib.methods.base",
                                                                           "thesis_lib.methods.patchcore"]


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_how_often_a_promise_holds_is_printed_and_stored(make_category, capsys, method):
    bench_promise.main(["--data", str(make_category(train=50)), "--category", "pad", "--weights", "random", "--method",
                        method, "--pictures", "10", "20", "--draws", "3", "--image-size", "64", "--channels", "5",
                        "--bank", "10"])
    lines, row = stored("promise")
    assert [(line["pictures"], line["asked"]) for line in lines] == [(10, 0.1), (20, 0.05), (20, 0.1)]
    for line in lines:
        assert line["draws"] == 3 and {line["held"], line["at_most"], line["fresh"]} <= {0, 1, 2, 3}
        assert 0 < line["expected"] <= line["asked"] and 0 <= line["true"] <= 1 and np.isfinite(line["shift"])
    assert row["parameters.embedding"] == "avg_k3_s2_p1" and row["protocol.rounds"] == 3
    assert "expected" in capsys.readouterr().out


@pytest.fixture
def small_parts(monkeypatch):
    """Sizes of a quarter of the pixels each way; parts are drawn as they are."""
    monkeypatch.setattr(bench_rectangle, "SIZES", {"64": 64, "96": 96, "64x160": (64, 160)})
    monkeypatch.setattr(bench_rectangle, "RECTANGLE", (64, 160))
    monkeypatch.setattr(bench_rectangle, "LARGE", (128, 320))


def test_a_rectangle_is_held_against_squares_tiles_and_a_device(small_parts, capsys):
    bench_rectangle.main(["--train", "5", "--test", "2", "--seeds", "2", "--rounds", "2", "--tiles", "1x2", "--tiled",
                          "2", "--contrast", "200", "--width", "8", "--methods", "patchcore"])
    lines, row = stored("rectangle")
    assert [line["pictures"] for line in lines] == [
        "64", "96", "64x160", "64x160 minus 64", "64x160 minus 96", "128x320", "128x320, 1x2 tiles", "64x160, device"]
    square, _, rectangle, difference, *_, whole, tiled, device = lines
    assert rectangle["raw_all"][0] == 1, "so wide a scratch is found"
    assert difference["raw_all"][0] == pytest.approx(rectangle["raw_all"][0] - square["raw_all"][0])
    assert tiled["raw_all"] == whole["raw_all"] and whole["ratio"] == 1 and min(whole["mb"], tiled["mb"]) > 0
    assert device["difference"] < 1e-4 and row["protocol.contrast"] == 200
    assert "64x160 minus 96" in capsys.readouterr().out


def test_a_scratch_runs_along_or_across_and_its_stream_is_its_own(tmp_path):
    rng = np.random.default_rng(0)
    for kind, long in (("along", 0), ("across", 1)):
        rows, columns = np.nonzero(bench_rectangle.scratch(rng, kind, 1.5) > 0.5)
        sides = np.ptp(rows), np.ptp(columns)
        assert 35 < sides[long] < 95 and sides[1 - long] < 12
    for name, good in (("few", 1), ("more", 2)):
        bench_rectangle.write(tmp_path / name, {"train/good": good, "test/along": 1}, 35, 1.5, seed=0)
    assert (tmp_path / "few/test/along/000.png").read_bytes() == (tmp_path / "more/test/along/000.png").read_bytes()


def test_rows_of_two_folders_are_held_side_by_side(tmp_path, make_category, capsys):
    category = data.scan(make_category(), "pad")
    for name, banks in (("before", (10, 20)), ("after", (20, 30))):
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("THESIS_OUTPUTS", str(tmp_path / name))
            scores.evaluate_many({bank: PatchCore(weights="random", layers=(1,), bank=bank) for bank in banks},
                                 category, data.Preprocess(image_size=64), seeds=1, pixels=False)
    arguments = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert compare_rows.main(arguments) == 0
    assert "1 rows of 2 and 2 measure the same" in capsys.readouterr().out
    (row,) = compare_rows.rows_of(tmp_path / "before").keys() & compare_rows.rows_of(tmp_path / "after").keys()
    changed = compare_rows.rows_of(tmp_path / "after")
    changed[row]["scores"][0] *= 1.01
    assert compare_rows.compare(compare_rows.rows_of(tmp_path / "before"), changed)["scores"].max() > 1e-4
    assert compare_rows.main([arguments[0], str(tmp_path / "nothing")]) == 1
    assert "hold no row" in capsys.readouterr().err
