"""`thesis reproduce` from folders to rows, verdicts and published files, with two configurations in place of all."""

import shutil

import pandas as pd
import pytest

from thesis_lib.commands.main import main
from thesis_lib.core import paths, results
from thesis_lib.data import Preprocess
from thesis_lib.evaluation import compact, reproduction, statements
from thesis_lib.evaluation.statements import Pair, Side, Statement
from thesis_lib.networks import weightfiles

GENUINE = reproduction.parts


@pytest.fixture
def command(make_category, tmp_path, monkeypatch, capsys):
    """command(options...) -> exit code and what was printed, for two sides on the category pad."""
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(weightfiles.bundled("resnet18"), folder / "resnet18_own.safetensors")
    prepared = Preprocess(image_size=64)
    one, two = (Side("patchcore", {"layers": [1], "bank": bank, "embedding": "identity"}, prepared) for bank in (5, 9))
    monkeypatch.setattr(reproduction, "parts", lambda: {"few": reproduction.Part("Fig. 3.2", (one, two))})
    monkeypatch.setattr(statements, "statements", lambda: [
        Statement("rows", "3.5.1", "more rows", "direction", (Pair(two, one, 2.5),))])

    def run(*options):
        code = main(["reproduce", "--data", str(make_category()), "--weights", str(folder), *options])
        return code, "".join(capsys.readouterr())

    return run


def test_measured_judged_and_published(command, tmp_path):
    code, text = command("--dry-run")
    assert code == 0 and "2 configurations on pad, 0 measured" in text and "few: 2 to measure, about 0 min" in text
    assert not list(paths.results().glob("*.json"))
    code, text = command()
    assert code == 0 and "1/2 few pad patchcore" in text and "2/2 few" in text
    assert len(list(paths.results().glob("*.json"))) == 2 * reproduction.SEEDS
    code, text = command()                                      # nothing is left to do
    assert code == 0 and "2 configurations on pad, 2 measured" in text and "1/2" not in text
    code, text = command("--verdicts")
    assert code == 0 and "bank 9 | bank 5" in text and "2.5" in text and "verdict" in text
    code, text = command("--publish", str(tmp_path / "published"))
    assert code == 0 and "real_pad.npz" in text and "2 of 2 configurations were measured" in text
    assert [len(line["image_auroc"]) for line in results.read(tmp_path / "published" / "real.jsonl")] == [5, 5]


def test_what_was_published_is_judged_alone(command, tmp_path, capsys, monkeypatch):
    """The files of --publish, without the rows, the pictures and the weights, give the same table."""
    folder = str(tmp_path / "published")
    code, text = command("--publish", folder)
    assert code == 2 and "nothing of these parts was measured yet" in text
    command()
    command("--publish", folder)
    _, measured = command("--verdicts")
    for file in paths.results().glob("*.json"):
        file.unlink()
    assert main(["reproduce", "--verdicts", "--from", folder]) == 0
    assert capsys.readouterr().out == measured and "1 of 1 statements" in measured
    table = pd.read_csv(tmp_path / "published" / compact.VERDICTS)
    (line,) = [one for one in results.read(tmp_path / "published" / "real.jsonl") if one["parameters"]["bank"] == 9]
    assert table["rows_one"][0] == line["id"] and line["scores"]["sha256"].startswith(table["scores_one"][0])
    monkeypatch.setattr(reproduction, "parts", GENUINE)         # the experiments are named by their parts
    assert main(["reproduce", "--literature", "--from", folder]) == 0
    assert "not measured" in capsys.readouterr().out


def test_where_rows_come_from_is_asked(command, tmp_path, capsys):
    assert main(["reproduce"]) == 2 and "needs --data and --weights, or --from" in capsys.readouterr().err
    code, text = command("--from", str(tmp_path), "--verdicts")
    assert code == 2 and "--from needs --verdicts or --literature, and neither --data nor --weights" in text
    assert main(["reproduce", "--verdicts", "--from", str(tmp_path)]) == 2
    assert "real.jsonl: is not there; thesis reproduce --publish" in capsys.readouterr().err


def test_what_is_not_there_is_said(command):
    code, text = command("--category", "ped")
    assert code == 2 and "--category ped: there are pad" in text
    code, text = command("--part", "all")
    assert code == 2 and "part all: there are few" in text
