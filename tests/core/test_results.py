"""A row is there whole or not at all, and found again only for exactly what it measured."""

import json
import os
from pathlib import Path

import pytest

from thesis_lib.core import paths, results
from thesis_lib.report import tables

SUBJECT = {"method": "patchcore", "category": "pad", "seed": 0, "weights": {"source": "random", "seed": 0},
           "parameters": {"backbone": "resnet18", "layers": (2, 3), "embedding": "identity", "bank": "1%"},
           "preprocess": {"image_size": 256, "crop": None}, "data": "0123", "code": "c0de"}
SHIPPED = paths.published


@pytest.fixture(autouse=True)
def own_published(monkeypatch):
    """No row that ships with the project, but as near to the own ones as it lies in a checkout."""
    monkeypatch.setattr(paths, "published", lambda: paths.results() / "published")


def changed(path, value):
    """SUBJECT with the entry at "a.b" replaced."""
    subject = json.loads(json.dumps(SUBJECT))
    *parents, last = path.split(".")
    entry = subject
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    return subject


def files(pattern="*"):
    return sorted(file.name for file in paths.results().glob(pattern)) if paths.results().is_dir() else []


def test_saved_row_is_found_again():
    row = results.save("auroc", SUBJECT, {"image_auroc": 0.875, "scores": [1.0, 1 / 3]})
    assert results.find("auroc", SUBJECT) == row
    assert row["image_auroc"] == 0.875
    assert row["scores"][1] == 1 / 3
    assert row["parameters"]["layers"] == [2, 3]
    assert row["stamp"]["versions"]["torch"]
    assert row["finished"].endswith("+00:00")


def test_what_is_no_number_is_null():
    """NaN and infinity are no JSON, and a reader other than Python's would refuse the row."""
    row = results.save("auroc", SUBJECT, {"low": float("nan"), "deep": {"list": [1.5, -float("inf")]}, "name": "NaN"})
    (file,) = paths.results().glob("*.json")
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == row == results.find("auroc", SUBJECT)
    assert (row["low"], row["deep"], row["name"]) == (None, {"list": [1.5, None]}, "NaN")


def test_file_has_a_readable_name():
    row = results.save("auroc", SUBJECT, {})
    assert files() == [f"auroc-patchcore-pad-resnet18-L23-identity-bank1pct-s0-{row['id']}.json"]


def test_measured_again_replaces_the_row():
    results.save("auroc", SUBJECT, {"image_auroc": 0.5})
    results.save("auroc", SUBJECT, {"image_auroc": 0.6})
    assert len(files()) == 1
    assert results.find("auroc", SUBJECT)["image_auroc"] == 0.6


CHANGES = [("method", "spade"), ("category", "screw"), ("seed", 1), ("weights.source", "imagenet"),
           ("weights.seed", 1), ("parameters.bank", 1000), ("parameters.layers", (3, 2)),
           ("preprocess.crop", 224), ("data", "0124"), ("code", "c0df")]


@pytest.mark.parametrize(("path", "value"), CHANGES)
def test_every_part_changes_the_identity(path, value):
    results.save("auroc", SUBJECT, {})
    assert results.row_id("auroc", changed(path, value)) != results.row_id("auroc", SUBJECT)
    assert results.find("auroc", changed(path, value)) is None


def test_kind_changes_the_identity():
    assert results.row_id("time", SUBJECT) != results.row_id("auroc", SUBJECT)


@pytest.mark.parametrize(("path", "value"), CHANGES)
def test_the_id_of_a_configuration_stands_for_what_it_was_made_of(path, value):
    """Its parameters, preprocessing and weights do not count beside it; whatever else is in a subject does."""
    configured = SUBJECT | {"configuration": "abc"}
    row = results.save("auroc", configured, {"image_auroc": 0.5})
    other = changed(path, value) | {"configuration": "abc"}
    told = path.partition(".")[0] in ("parameters", "preprocess", "weights")
    assert (results.row_id("auroc", other) == row["id"]) is told
    assert (results.find("auroc", other) == row) is told
    assert results.row_id("auroc", configured | {"configuration": "abd"}) != row["id"]
    assert results.row_id("auroc", SUBJECT) != row["id"]


def test_stamp_and_library_do_not_change_the_identity(monkeypatch):
    """What a row was measured with is told, not asked: an edit of a comment finds it again."""
    row = results.save("auroc", SUBJECT, {})
    monkeypatch.setattr(results, "stamp", lambda: {"library": "edited"})
    assert results.find("auroc", SUBJECT) == row
    assert results.save("auroc", SUBJECT, {})["id"] == row["id"]


def test_order_of_the_keys_does_not_change_the_identity():
    turned = {key: SUBJECT[key] for key in reversed(SUBJECT)}
    assert results.row_id("auroc", turned) == results.row_id("auroc", SUBJECT)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize(("module", "function"), [(os, "replace"), (Path, "write_bytes")])
def test_a_crash_while_writing_leaves_nothing(monkeypatch, module, function, error):
    def crash(file, *args, **kwargs):
        with open(file, "wb") as half:
            half.write(b"{half")
        raise error("broken on purpose")

    monkeypatch.setattr(module, function, crash)
    with pytest.raises(error, match="on purpose"):
        results.save("auroc", SUBJECT, {})
    assert files() == files(".*") == []


def test_a_killed_process_leaves_no_row():
    """What is left of a kill between writing and replacing is not taken for a row."""
    results.save("auroc", SUBJECT, {})
    whole = next(paths.results().glob("*.json"))
    whole.rename(whole.with_name(f".{whole.name}.abc.partial"))
    assert results.find("auroc", SUBJECT) is None
    assert tables.all_rows().empty


def test_all_rows_flattens_and_tells_own_from_published():
    results.save("auroc", SUBJECT, {"image_auroc": 0.5})
    results.save("auroc", changed("seed", 1), {"image_auroc": 0.6})
    moved = next(paths.results().glob("*-s1-*.json"))
    paths.published().mkdir(parents=True)
    moved.rename(paths.published() / moved.name)
    rows = tables.all_rows().set_index("seed")
    assert rows.loc[0, ["origin", "image_auroc"]].tolist() == ["own", 0.5]
    assert rows.loc[1, ["origin", "image_auroc"]].tolist() == ["published", 0.6]
    assert rows.loc[0, "parameters.layers"] == [2, 3]
    assert {"weights.source", "preprocess.image_size", "stamp.cpu"} <= set(rows.columns)


def test_many_published_rows_may_share_a_file():
    rows = [results.save("auroc", changed("seed", seed), {"image_auroc": seed / 10}) for seed in (1, 2)]
    for file in paths.results().glob("*.json"):
        file.unlink()
    paths.published().mkdir(parents=True)
    many = paths.published() / "many.jsonl"
    many.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tables.all_rows()
    assert found[["seed", "origin"]].to_numpy().tolist() == [[1, "published"], [2, "published"]]
    many.write_text(many.read_text() + "{half")
    with pytest.raises(ValueError, match=r"many\.jsonl: not a result row"):
        tables.all_rows()


def test_published_rows_are_not_taken_for_measured_ones():
    row = results.save("auroc", SUBJECT, {})
    (file,) = paths.results().glob("*.json")
    paths.published().mkdir(parents=True)
    file.rename(paths.published() / file.name)
    assert results.find("auroc", SUBJECT) is None
    assert tables.all_rows().iloc[0]["id"] == row["id"]


def test_all_rows_of_nothing_is_empty():
    assert tables.all_rows().empty


@pytest.mark.parametrize("text", ['{"kind": "auroc"', "[]", "{}", '{"kind": "auroc"}', "null", ""])
def test_all_rows_names_a_broken_file(text):
    results.save("auroc", SUBJECT, {})
    (paths.results() / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json: not a result row"):
        tables.all_rows()


@pytest.mark.parametrize("text", ["{half", "[]", '{"kind": "auroc"}'])
def test_a_damaged_row_that_is_looked_for_is_named(text):
    row = results.save("auroc", SUBJECT, {})
    (file,) = paths.results().glob("*.json")
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"{row['id']}\.json: not a result row .*delete it"):
        results.find("auroc", SUBJECT)


def test_a_checkout_in_a_folder_called_published_owns_its_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path / "published" / "outputs"))
    results.save("auroc", SUBJECT, {})
    assert tables.all_rows()["origin"].tolist() == ["own"]


def test_rows_of_the_project_stay_when_outputs_move(monkeypatch):
    monkeypatch.setattr(paths, "published", SHIPPED)
    rows = tables.all_rows()
    assert len(rows) and set(rows["origin"]) == {"published"}
    assert {"screw", "elpv_mono"} <= set(rows["category"])
