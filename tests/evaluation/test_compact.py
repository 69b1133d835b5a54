"""Rows of five banks as one, and their scores back from an archive, against the rows as they were measured."""

import json

import numpy as np
import pandas as pd
import pytest

from thesis_lib.core import paths, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import compact, metrics, verdicts
from thesis_lib.evaluation.scores import evaluate
from thesis_lib.evaluation.statements import Pair, Side, Statement


@pytest.fixture
def measured(pad, small):
    """Two sides and the rows of three banks of each, as their files hold them."""
    sides = [Side("patchcore", {"layers": [1], "bank": bank, "embedding": "identity"}, small) for bank in (5, 9)]
    for side in sides:
        evaluate(side.detector("random"), pad, side.preprocess, seeds=3, pixels=False)
    return sides, [row for file in sorted(paths.results().glob("*.json")) for row in results.read(file)]


def test_written_and_read_again(measured, tmp_path):
    sides, rows = measured
    files = compact.write(rows, tmp_path / "published", "real")
    assert [file.name for file in files] == ["real.jsonl", "real_pad.npz"]
    lines, found = results.read(files[0]), compact.read(files[0])
    assert len(lines) == 2 and set(found) == {(side.id, "pad") for side in sides}
    for side, line in zip(sides, sorted(lines, key=lambda line: line["parameters"]["bank"]), strict=True):
        banks = sorted((row for row in rows if row["configuration"] == line["configuration"]), key=lambda r: r["seed"])
        assert line["image_auroc"] == pytest.approx([row["image_auroc"] for row in banks], abs=1e-5)
        assert line["rows"] == [row["id"] for row in banks] and line["seeds"] == [0, 1, 2] and "pro" not in line
        scored = found[side.id, "pad"]
        assert scored.scores.dtype == np.float32 and scored.labels.tolist() == banks[0]["labels"]
        np.testing.assert_allclose(scored.scores, [row["scores"] for row in banks], rtol=1e-6)
        # What float32 rounds makes no two scores equal that were apart: the AUROC is that of the rows.
        again = [metrics.image_auroc(scored.labels, bank) for bank in scored.scores]
        assert again == pytest.approx([row["image_auroc"] for row in banks], abs=1e-9)


def test_verdicts_of_either_kind_of_rows_are_the_same(measured, tmp_path):
    (one, two), rows = measured
    asked = [Statement("s", "3.5", "text", "direction", (Pair(one, two),))]
    shipped = verdicts.judge(asked, compact.read(compact.write(rows, tmp_path, "real")[0]), resamples=500)[0]
    as_measured = verdicts.judge(asked, compact.of_rows(rows), resamples=500)[0]
    assert shipped.differences == as_measured.differences and shipped.verdict == as_measured.verdict
    assert len(as_measured.rows) == 6 and len(shipped.rows) == 2


def test_scores_are_kept_of_those_alone_that_a_verdict_needs(measured, tmp_path):
    sides, rows = measured
    lines = compact.write(rows, tmp_path, "real", scores_of=[sides[0].id])[0]
    assert set(compact.read(lines)) == {(sides[0].id, "pad")} and len(results.read(lines)) == 2
    with np.load(tmp_path / "real_pad.npz", allow_pickle=False) as archive:
        assert len(archive.files) == 2                          # labels and one configuration


def test_a_line_is_no_row_of_one_bank(measured, tmp_path):
    """Pages take rows of kind auroc by themselves; a line with five values is not one of them."""
    compact.write(measured[1], tmp_path, "real")
    assert set(pd.json_normalize(results.read(tmp_path / "real.jsonl"))["kind"]) == {compact.KIND}


def test_files_that_do_not_belong_together_are_named(measured, tmp_path):
    _, rows = measured
    lines = compact.write(rows, tmp_path, "real")[0]
    archive = tmp_path / "real_pad.npz"
    with np.load(archive, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(archive, **{name: values + (values.dtype == np.float32) for name, values in arrays.items()})
    with pytest.raises(ThesisError, match=r"real_pad.npz: does not hold the scores of \w+, row \w+ of .*real.jsonl"):
        compact.read(lines)
    archive.write_bytes(b"no archive")
    with pytest.raises(ThesisError, match=r"real_pad.npz: no readable archive"):
        compact.read(lines)
    archive.unlink()
    with pytest.raises(ThesisError, match=r"real_pad.npz: no readable archive"):
        compact.read(lines)


def test_other_pictures_are_refused_and_the_last_row_of_a_seed_counts(measured, tmp_path):
    _, rows = measured
    other = json.loads(json.dumps(rows[0])) | {"data": "another"}
    with pytest.raises(ThesisError, match="its pad has other pictures than row"):
        compact.write([*rows, other | {"seed": 7}], tmp_path, "real")
    again = rows[0] | {"image_auroc": 0.125, "finished": "2999-01-01T00:00:00+00:00"}
    lines = results.read(compact.write([again, *rows], tmp_path, "real")[0])
    assert sum(line["image_auroc"].count(0.125) for line in lines) == 1
    assert [len(line["image_auroc"]) for line in lines] == [3, 3]
