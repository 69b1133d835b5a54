"""The thesis' values as printed, and measured ones beside them."""

import dataclasses

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from thesis_lib.core import files, paths, results
from thesis_lib.evaluation import compact, literature, metrics, statements, verdicts
from thesis_lib.evaluation.scores import evaluate
from thesis_lib.evaluation.statements import Pair, Side, Statement
from thesis_lib.evaluation.thesis import STAGES, bars_of
from thesis_lib.evaluation.verdicts import NOT_MEASURED, TOGETHER, Difference, Scored, Verdict, records
from thesis_lib.methods import PatchCore
from thesis_lib.report import tables

LABELS = [0, 0, 0, 1, 1, 1]
SCORES = [[0, 1, 2, 3, 4, 5], [0, 3, 1, 2, 4, 5]]       # image AUROC 1 and 8/9
DEFAULT = "#1000 (MW ~0,6%)"


def rows(category="pad", configuration="abc", data="0123", scores=SCORES, **more):
    """What `evaluate` returns: one line per seed."""
    same = {"configuration": configuration, "category": category, "data": data, "weights.source": "random",
            "labels": LABELS, "n_train": 4, "n_test_good": 3, "n_test_defective": 3, "pixel_auroc": None,
            "pro": None, **more}
    return pd.DataFrame([{**same, "seed": seed, "scores": row,
                          "image_auroc": np.mean([[bad > good for good in row[:3]] for bad in row[3:]])}
                         for seed, row in enumerate(scores)])


def timed(factor=1.0):
    stage_ms = dict(zip(STAGES, (4 * factor, 3 * factor, 2 * factor, factor), strict=True))
    return {"stage_ms": stage_ms, "total_ms": sum(stage_ms.values()), "spread": 0.05}


@pytest.mark.parametrize(("figure", "label", "auroc", "total_ms"), [
    ("3.2", DEFAULT, 98.6911, 84.9782), ("3.2", "100%", 99.048, 954.7587),
    ("3.3", "cdist d=1536 (1)", 96.6531, 334.5709), ("3.4", "Layer 2", 96.9862, 8.4735),
    ("3.5", "Layer 2 & 3", 97.5167, 13.0582), ("3.7", "Layer 2", 97.6025, 11.8866),
    ("3.9", "PDN S", 97.4384, 59.5481), ("3.13", "L Layer 1 & 2", 96.358, 60.556),
    ("3.18", "d_Ausgang = 7", 95.976, 10.594), ("3.20", "Avg.-P. k=3 s=1 p=1", 97.763, 22.1),
    ("4.5", "Bestes Modell FP32", 99.393, 149.199)])
def test_bars_of_the_thesis(figure, label, auroc, total_ms):
    bar = bars_of(figure).set_index("label").loc[label]
    assert (bar["auroc_mvtec_pct"], bar["total_ms"]) == (auroc, total_ms)


def test_figures_hold_their_own_bars_only():
    assert bars_of("3.2")["bank"].tolist() == ["0.1%", "1000", "1%", "10%", "100%"]
    assert bars_of("3.20")["backbone"].unique().tolist() == ["ResNet34"]
    assert bars_of("3.2")["label"].is_unique


def test_stages_of_a_bar_add_up():
    bars = pd.concat([bars_of(figure) for figure in ("3.2", "3.3", "3.4", "3.14")])
    stages = bars[[f"{stage}_ms" for stage in STAGES]].sum(axis=1)
    np.testing.assert_allclose(stages, bars["total_ms"], atol=2e-3)


def test_unknown_figure_lists_those_there_are():
    with pytest.raises(KeyError, match=r"'3.1' has no bars; there are 3.2, 3.3, .*3.11, .*3.20, .*4.5"):
        bars_of("3.1")


def test_summary_is_mean_interval_and_spread():
    line = tables.summary(rows()).iloc[0]
    aurocs = 100 * np.array([1, 8 / 9])
    assert (line["auroc"], line["sd"]) == pytest.approx((aurocs.mean(), aurocs.std(ddof=1)))
    low, high = metrics.auroc_interval(LABELS, SCORES)         # all seeds together
    assert (line["low"], line["high"]) == pytest.approx((100 * low, 100 * high))
    assert (line["seeds"], line["n_train"], line["n_test"], line["weights"]) == (2, 4, 6, "random")
    assert np.isnan([line["pixel_auroc"], line["pro"]]).all()


def test_summary_of_one_seed_has_no_spread():
    assert np.isnan(tables.summary(rows(scores=SCORES[:1])).iloc[0]["sd"])


def test_an_interval_in_words_or_none():
    assert tables.interval({"low": 88.84, "high": 94.96}) == "88.8 to 95.0"
    single = {"labels": [0, 1, 1, 1, 1, 1], "n_test_good": 1, "n_test_defective": 5}
    line = tables.summary(rows(**single)).iloc[0]
    assert np.isnan([line["low"], line["high"]]).all() and line["auroc"] == pytest.approx(100 * (1 + 8 / 9) / 2)
    assert tables.interval(line) == "none: one kind has a single picture"
    assert tables.beside("3.2", {DEFAULT: rows(**single)}).loc[DEFAULT, "95 % interval"] == tables.NO_INTERVAL


def test_summary_has_a_line_per_configuration_category_and_data():
    parts = [rows(), rows("screw"), rows(configuration="xyz", pixel_auroc=0.5, pro=0.25), rows(data="9")]
    table = tables.summary(pd.concat(parts))
    assert table[["configuration", "category"]].to_numpy().tolist() == [
        ["abc", "pad"], ["abc", "screw"], ["xyz", "pad"], ["abc", "pad"]]
    assert table.loc[2, ["pixel_auroc", "pro"]].tolist() == [50, 25]


def test_beside_sets_measured_beside_the_thesis():
    measured = {DEFAULT: rows(), "1%": rows(scores=SCORES[:1])}
    table = tables.beside("3.2", measured, {DEFAULT: timed(), "1%": timed(2)})
    assert table.index.tolist() == [DEFAULT, "1%"]
    line = table.loc[DEFAULT]
    measured = 100 * (1 + 8 / 9) / 2
    facts = ["thesis AUROC %", "thesis ms", "measured ms", "weights"]
    assert line[facts].tolist() == [98.6911, 84.9782, 10, "random"]
    assert (line["measured AUROC %"], line["difference"]) == pytest.approx((measured, measured - 98.6911))
    low, high = metrics.auroc_interval(LABELS, SCORES)
    assert line["95 % interval"] == f"{100 * low:.1f} to {100 * high:.1f}"
    assert table["measured ms"].tolist() == [10, 20]
    assert table["spread %"].tolist() == [5, 5]


def test_a_bar_that_was_only_timed_says_what_it_needs():
    table = tables.beside("3.2", {DEFAULT: rows()}, {"1%": timed(), DEFAULT: timed()})
    assert table.index.tolist() == ["1%", DEFAULT]
    assert table["weights"].tolist() == ["needs ImageNet weights", "random"]
    assert np.isnan(table.loc["1%", ["measured AUROC %", "difference"]].astype(float)).all()
    assert table.loc["1%", "measured ms"] == 10
    untimed = tables.beside("3.2", {}, labels=["1%"])
    assert untimed["weights"].tolist() == ["needs ImageNet weights"] and "thesis ms" not in untimed
    halves = tables.halves("3.2", table, {"1%": timed(), DEFAULT: timed(2)}, "pad")
    assert list(halves) == ["thesis, Fig. 3.2", "measured here, bars of Fig. 3.2"]
    thesis, measured = halves.values()
    assert thesis.loc["1%"].tolist() == pytest.approx([50.5632, 28.9203, 9.4515, 0.0304, 98.9949, 94.2969])
    assert measured.loc[DEFAULT, list(STAGES)].tolist() == [8, 6, 4, 2]
    assert list(measured.columns) == [*STAGES, "AUROC pad"]


def test_published_rows_are_summed_up_over_banks(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "published", lambda: tmp_path)

    def row(seed, auroc, **parameters):
        return {"kind": "auroc", "method": "patchcore", "origin": "published", "category": "screw", "seed": seed,
                "weights.source": "imagenet", "image_auroc": auroc, "parameters.layers": [2, 3],
                "parameters.bank": 1000, "parameters.score": "max", "parameters.embedding": "identity",
                **{f"parameters.{name}": value for name, value in parameters.items()}}

    rows = [row(0, 0.9), row(1, 0.8, scaling="none"), row(0, 0.1, scaling="normalise"), row(0, 0.1, bank=50),
            row(0, 0.6, layers=[1]), row(0, 0.2) | {"origin": "own"}, row(0, 0.2) | {"method": "spade"}]
    monkeypatch.setattr(tables, "all_rows", lambda: pd.DataFrame(rows))
    table = tables.published(["layers"], embedding="identity")
    assert table.loc[("screw", "imagenet", "2+3")].tolist() == pytest.approx([85, 80, 90, 2])
    assert table.loc[("screw", "imagenet", "1")].tolist() == pytest.approx([60, 60, 60, 1])
    assert len(table) == 2
    assert tables.published(["layers"], embedding="avg_k3_s1_p1").empty


def test_published_lines_of_several_banks_count_each_bank_once(monkeypatch, pad, small, tmp_path):
    """A line counts as its banks, unless they are there as rows, too, or it was prepared otherwise."""
    detector = PatchCore(layers=(1,), bank=9, embedding="identity", weights="random", search="faiss")
    usual = dataclasses.replace(small, image_size=256)
    for prepared in (usual, dataclasses.replace(usual, crop=224)):
        evaluate(detector, pad, prepared, seeds=3, pixels=False)
    rows = [row for file in sorted(paths.results().glob("*.json")) for row in results.read(file)]
    (file, *_) = compact.write(rows, tmp_path / "shipped")
    cropped = [row for row in rows if row["preprocess"]["crop"]]
    one = next(row for row in rows if row not in cropped and row["seed"] == 2)
    files.write(tmp_path / "shipped" / "before.jsonl", results.line(one))
    monkeypatch.setattr(paths, "published", lambda: file.parent)
    table = tables.published(["layers"], bank=9)
    assert table["banks"].tolist() == [3]
    aurocs = [100 * row["image_auroc"] for row in rows if row not in cropped]
    assert table["AUROC %"].tolist() == pytest.approx([np.mean(aurocs)], abs=1e-3)


def test_pareto_keeps_what_nothing_beats():
    table = pd.DataFrame({"ms": [3.0, 1, 2, 2, 5, 4], "AUROC": [90.0, 80, 85, 86, 90, np.nan]}, index=list("abcdef"))
    assert tables.pareto(table, "ms", "AUROC").index.tolist() == ["b", "d", "a"]


def test_beside_the_other_data_set_and_without_times():
    table = tables.beside("3.2", {DEFAULT: rows()}, column="auroc_granulat_pct")
    assert table.loc[DEFAULT, "thesis AUROC %"] == 93.2261
    assert not [column for column in table if column.endswith(" ms")]


@pytest.mark.parametrize("arguments", [({"1000": rows()},), ({DEFAULT: rows()}, {"1000": timed()})])
def test_unknown_bar_lists_those_there_are(arguments):
    with pytest.raises(KeyError, match=r"figure 3.2 has no bar 1000; it has 0,1%, .*100%"):
        tables.beside("3.2", *arguments)


def test_stage_times_of_both():
    table = tables.stage_times("3.2", {DEFAULT: timed()})
    thesis = [48.7593, 31.0572, 5.1332, 0.0285, 84.9782]
    assert table.loc[(DEFAULT, "thesis")].tolist() == pytest.approx(thesis)
    assert table.loc[(DEFAULT, "measured")].tolist() == [4, 3, 2, 1, 10]
    assert table.columns.tolist() == [*STAGES, "total"]


@pytest.mark.parametrize(("weights", "warned"), [("random", "Random weights"), ("bundled", "Bundled weights"),
                                                 ("imagenet", None)])
def test_note_names_pictures_and_weights_other_than_the_thesis(weights, warned):
    text = tables.note(["pad", "screw"], weights)
    assert "pad, screw" in text
    for words in ("Random weights", "Bundled weights"):
        assert (words in text) is (words == warned)


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Two sources; the first was executed by the profile demo and shows two Markdown texts."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(paths, "notebooks", lambda: folder)
    for number, name in (("01", "first"), ("02", "second")):
        head = f"# {number} Title\n\n**Thesis:** sec. 3.{number}.\n**Question:** What of\n{name}? More text."
        nbformat.write(new_notebook(cells=[new_markdown_cell(head)]), folder / f"{number}_{name}.ipynb")
    cells = [new_code_cell(outputs=[new_output("display_data", {"text/markdown": text})])
             for text in ("notes\n- not this one", "It follows:\n- The first\n  bullet.\n- The second.")]
    paths.executed("demo").mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), paths.executed("demo") / "01_first.ipynb")


def test_contents_come_from_sources_and_executed_copies(notebooks):
    assert tables.contents("demo").to_numpy().tolist() == [
        ["[01 Title](01_first.ipynb)", "sec. 3.01", "What of first?", "The first bullet."],
        ["[02 Title](02_second.ipynb)", "sec. 3.02", "What of second?", "not executed yet"]]
    assert set(tables.contents("smoke")["result"]) == {"not executed yet"}


def test_markdown_is_a_pipe_table():
    assert tables.markdown(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})).splitlines() == [
        "| a | b |", "| --- | --- |", "| 1 | x |", "| 2 | y |"]


@pytest.fixture
def two_rows(pad, small):
    """Rows of two detectors that differ in the bank alone, one of them timed."""
    from thesis_lib.evaluation import scores, stage_times
    from thesis_lib.methods import PatchCore
    detectors = {bank: PatchCore(weights="random", layers=(1,), bank=bank) for bank in (20, 40)}
    rows = scores.evaluate_many(detectors, pad, small, seeds=2)
    stage_times.measure_time(detectors[20], pad, small, pictures=1)
    return rows, tables.all_rows().query("origin == 'own'")


def test_overview_has_a_line_per_configuration(two_rows):
    rows, every = two_rows
    table = tables.overview(every).set_index("bank")
    assert sorted(table.index) == [20, 40]
    assert table.loc[20, "auroc"] == pytest.approx(100 * rows[20]["image_auroc"].mean())
    assert table.loc[20, "total ms"] > table.loc[20, "extraction ms"] > 0 and np.isnan(table.loc[40, "total ms"])
    assert table.loc[20, "label"] == "patchcore resnet18 1 avg_k3_s1_p1 20" and table.loc[20, "seeds"] == 2
    assert tables.overview(every[every["kind"] == "time"]).empty


def test_overview_leaves_out_rows_without_scores(two_rows):
    """Some that ship with the project are without the scores of the single pictures."""
    _, every = two_rows
    every["scores"] = [None if bank == 40 else scores for bank, scores in
                       zip(every["parameters.bank"], every["scores"], strict=True)]
    assert list(tables.overview(every)["bank"]) == [20]


def test_contrast_pairs_what_differs_in_one_parameter(two_rows):
    rows, every = two_rows
    table = tables.overview(every)
    found = tables.contrast(table, "bank", 20, 40)
    change = 100 * (rows[40]["image_auroc"].mean() - rows[20]["image_auroc"].mean())
    assert found["pairs"] == 1 and found["AUROC, points"] == pytest.approx(change) and np.isnan(found["time, ratio"])
    assert tables.contrast(table, "bank", 20, 99)["pairs"] == 0
    assert tables.contrast(table, "bank", 20, 40, layers="2")["pairs"] == 0


def test_overview_leaves_out_what_saw_fewer_test_pictures(two_rows, pad, small):
    from thesis_lib.evaluation import scores
    from thesis_lib.methods import PatchCore
    _, before = two_rows
    scores.evaluate(PatchCore(weights="random", layers=(1,), bank=30), pad.subset(0, 4), small, seeds=1)
    every = tables.all_rows().query("origin == 'own'")
    assert len(every) == len(before) + 1 and sorted(tables.overview(every)["bank"]) == [20, 40]


@pytest.mark.parametrize(("kept", "expected"), [
    (6, [64, 80, 96]), (1, [96]), (2, [96]), (40, [86.4, 88.8, 91.2, 93.6, 96])])
def test_late_states_are_at_most_five_and_none_of_the_first_half(kept, expected):
    """Six states of 96 steps: the mean of the last five would count one of step 32, which is still at chance."""
    steps = 96 * np.arange(1, kept + 1) / kept
    curve = pd.DataFrame({"seed 0": steps, "seed 1": -steps}, index=steps)
    found = tables.late(curve)
    np.testing.assert_allclose(found.index, expected)
    np.testing.assert_allclose(found.mean(), [np.mean(expected), -np.mean(expected)])


def test_verdicts_beside_the_thesis():
    """A line per pair, its sets before all together; a pair says what it compares, no number is NaN."""
    two, three, both = (Side("patchcore", {"layers": levels}) for levels in ([2], [3], [2, 3]))
    pooled = Side("patchcore", {"layers": [2], "embedding": "identity"})
    pairs = Pair(two, three, 1.88), Pair(two, both), Pair(two, pooled)
    stated = Statement("levels", "3.5.2", "level 2 is best", "direction", pairs)
    differences = [Difference(pairs[0], on, 1.0, -0.5, 2.0, 0.5, "open") for on in (TOGETHER, "pill")]
    scored = {(side.id, "pill"): Scored(np.array(LABELS), np.array(SCORES), ("id",)) for side in (two, three)}
    found = pd.DataFrame(records([Verdict(stated, "open", tuple(differences), ("pill",), ("id",))], scored))
    table = tables.verdicts(found)
    assert table["pair"].tolist() == ["layers 2 | layers 3", "layers 2 | layers 2+3",
                                      "layers 2: embedding avg_k3_s1_p1 | embedding identity"]
    assert list(table)[-3:] == ["pill", TOGETHER, "verdict"] and table["thesis"].tolist() == ["+1.88", "", ""]
    assert table.loc[0, "pill"] == "+1.00 (-0.50 to +2.00)"
    assert found["rows_one"].tolist() == ["id", "", "", ""] and len(found.loc[0, "scores_two"]) == 12
    assert tables.counted(found) == ("1 of 1 statements of chapters 2 and 3 can be judged by these rows, on pill: "
                                     "0 hold, 0 are contradicted, 1 are open.")


def test_verdicts_that_nobody_has_measured(monkeypatch, tmp_path):
    """Nothing published: every statement is there, without a number, and the sentence says so."""
    monkeypatch.setattr(paths, "published", lambda: tmp_path)
    found = tables.published_verdicts()
    assert set(found["verdict"]) == {NOT_MEASURED} and found["points"].isna().all()
    assert tables.counted(found) == (f"0 of {len(statements.statements())} statements of chapters 2 and 3 can be "
                                     "judged by these rows.")
    assert len(tables.verdicts(found)) == len(found) and tables.published_lines() == []
    assert tables.literature(literature.beside({})).xs(literature.HERE, level="who").eq(NOT_MEASURED).all(axis=None)


def test_bars_on_real_pictures_beside_the_thesis():
    """Of the bars of Fig. 3.5 those that ship; a category's mean is that of its five banks."""
    lines = tables.published_lines(paths.root() / "outputs" / "results" / "published")
    table = tables.bars_on_real("3.5", lines)
    assert set(table.index) <= set(bars_of("3.5")["label"]) and "Layer 2 & 3" in table.index
    bar = table.loc["Layer 2 & 3"]
    assert bar["thesis, MVTec AD %"] == bars_of("3.5").set_index("label").loc["Layer 2 & 3", "auroc_mvtec_pct"]
    banks = [line["image_auroc"] for line in lines if line["category"] == "screw" and line["parameters"].items() >= {
        "backbone": "resnet18", "layers": [2, 3], "embedding": "avg_k3_s1_p1", "bank": 1000, "search": "faiss",
        "score": "max"}.items() and line["preprocess"]["crop"] is None
        and line["preprocess"]["interpolation"] == "bilinear"]
    assert len(banks) == 1 and bar["screw"].startswith(f"{100 * np.mean(banks[0]):.1f} (")
    empty = tables.bars_on_real("3.5", [])
    assert not len(empty) and "mean here %" in empty
    assert not len(tables.bars_on_real("3.5", lines, embedding="identity"))


def test_what_ships_is_judged_as_its_file_says():
    """Verdicts among the published rows are those of the scores beside them, and README tells them."""
    found = tables.published_verdicts()
    assert tables.counted(found) in " ".join((paths.root() / "README.md").read_text(encoding="utf-8").split())
    if (paths.published() / compact.VERDICTS).is_file():
        scored = compact.read(paths.published() / f"{compact.NAME}.jsonl")
        measured = {one.id for one in statements.statements() if verdicts._sets(one, scored)}
        assert measured == set(found.loc[found["verdict"] != NOT_MEASURED, "statement"])
        for kind in (f"{compact.NAME}.jsonl", f"{compact.NAME}_*.npz"):
            assert sum(file.stat().st_size for file in paths.published().glob(kind)) <= 3e6


@pytest.mark.slow
def test_what_ships_is_judged_again_from_what_ships_alone():
    found = tables.published_verdicts()
    file = paths.published() / f"{compact.NAME}.jsonl"
    if not file.is_file():
        pytest.skip("no such rows are published yet")
    scored = compact.read(file)
    again = pd.DataFrame(records(verdicts.judge(statements.statements(), scored), scored))
    assert again["verdict"].tolist() == found["verdict"].tolist()
    numbers = ["points", "low", "high"]
    np.testing.assert_allclose(again[numbers].astype(float), found[numbers], atol=1e-3)
    assert again["scores_one"].tolist() == found["scores_one"].tolist()
