"""`thesis study`, from folders to a page and rows; on tiny pictures with random weights."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from thesis_lib.commands.main import main

COLUMNS = ["method", "image_size", "image_auroc", "image_auroc_low", "image_auroc_high", "milliseconds"]
SHORT = ["--weights", "random", "--quick", "--image-size", "64", "--pictures", "1", "--threads", "1"]


@pytest.fixture
def parts(tmp_path):
    """part/OK with ten pictures and part/NOK/hole with four."""
    rng = np.random.default_rng(0)
    for kind, count in (("OK", 10), ("NOK/hole", 4)):
        folder = tmp_path / "mine" / "part" / kind
        folder.mkdir(parents=True)
        for number in range(count):
            values = rng.integers(90, 130, (64, 64, 3), dtype=np.uint8)
            if kind != "OK":
                values[20:40, 20:40] = 255
            Image.fromarray(values).save(folder / f"{number}.png")
    return tmp_path / "mine"


def test_from_two_folders_to_a_page(parts, tmp_path, capsys):
    """No good test pictures: cross-fitted. A second call takes its rows from the first."""
    out = tmp_path / "page"
    command = ["study", "--data", str(parts), "--category", "part", "--budget", "10s", "--out", str(out), *SHORT]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "thesis export patchcore" in said and str(out / "index.html") in said
    rows = pd.read_csv(out / "rows.csv")
    assert list(rows.columns[:6]) == COLUMNS and set(rows["method"]) == {"patchcore", "padim", "spade"}
    assert rows["image_size"].str.fullmatch(r"\d+x\d+").all() and (rows["milliseconds"] > 0).all()
    assert rows["image_auroc"].between(0, 1).all() and rows["recommended"].sum() == 1
    page = (out / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "http" not in re.sub(r"data:[^\"']+", "", page)
    assert 'name="viewport"' in page
    assert main(command) == 0
    again = pd.read_csv(out / "rows.csv")
    pd.testing.assert_frame_equal(again[COLUMNS[:5]], rows[COLUMNS[:5]])


def test_evaluate_takes_two_folders(parts, capsys):
    """And says that its AUROC is a mean over folds."""
    command = ["evaluate", "patchcore", "--data", str(parts), "--category", "part", "--weights", "random", "--layers",
               "1", "--image-size", "64", "--bank", "20", "--seeds", "2"]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr().out
    answer = json.loads(said[said.index("{"):])
    assert answer["folds"] == 5 and len(answer["per_seed"]) == 2
    assert answer["image_auroc"] == pytest.approx(np.mean(answer["per_seed"]))
    assert main(command) == 0 and "the mean of 5 folds" in capsys.readouterr().out


def test_without_defective_pictures_nothing_is_ranked(parts, tmp_path, capsys):
    out = tmp_path / "page"
    assert main(["study", "--good", str(parts / "part" / "OK"), "--out", str(out), *SHORT]) == 0
    rows, page = pd.read_csv(out / "rows.csv"), (out / "index.html").read_text()
    assert rows["image_auroc"].isna().all() and not rows["recommended"].any()
    assert "Nothing is ranked" in page and "wolf" in page


def test_good_test_pictures_give_a_table_of_the_light(make_category, tmp_path):
    root = make_category(train=10, good=4, bad=4)
    assert main(["study", "--data", str(root), "--category", "pad", "--out", str(tmp_path / "page"), *SHORT]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "brightness +10\u00a0%" in page and re.search(r"\d of 4", page)


@pytest.mark.parametrize(("options", "message"), [
    (["--category", "no"], "no"), (["--category", "part", "--budget", "soon"], "budget"),
    (["--category", "part", "--budget", "0ms"], "budget"), (["--category", "part", "--good", "."], "--good"),
    (["--category", "part", "--seeds", "0"], "--seeds 0: needs at least 1")])
def test_bad_input_is_one_line(parts, tmp_path, capsys, options, message):
    try:
        code = main(["study", "--data", str(parts), "--out", str(tmp_path / "page"), *options, "--quick"])
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr().err.strip().splitlines()
    assert code != 0 and message in said[-1] and "Traceback" not in said[0]


def test_too_few_pictures_are_refused(parts, tmp_path, capsys):
    for file in sorted((parts / "part" / "OK").iterdir())[1:]:
        file.unlink()
    assert main(["study", "--data", str(parts), "--category", "part", *SHORT]) != 0
    assert "at least" in capsys.readouterr().err
