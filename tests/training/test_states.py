"""States that ship: what their files and cards say, and that their recipes give them again."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pretraining import states
from thesis_lib.core import paths
from thesis_lib.data.folders import scan
from thesis_lib.data.pictures import Pictures
from thesis_lib.evaluation import metrics
from thesis_lib.methods import EfficientAD, UninformedStudents
from thesis_lib.networks.torch_setup import has_bfloat16, torch_threads
from thesis_lib.report import tables
from thesis_lib.training import descent

EVERY = sorted(states.RECIPES)


@pytest.fixture(scope="module")
def loaded():
    """Name -> detector, as its file says."""
    return {name: type(states.RECIPES[name].detector).load(paths.states() / f"{name}.safetensors") for name in EVERY}


@pytest.fixture(scope="module")
def published():
    """Rows that ship, by id."""
    rows = tables.all_rows()
    return rows[rows["origin"] == "published"].set_index("id")


def test_they_are_small_and_told_of():
    told = (paths.states() / "README.md").read_text(encoding="utf-8")
    shipped = sorted(paths.states().glob("*.safetensors"))
    assert [file.stem for file in shipped] == EVERY
    assert sum(file.stat().st_size for file in shipped) <= 16e6
    for file in shipped:
        assert states.digest(file) in told, file.name
        assert f"python -m pretraining.states {file.stem}" in told


@pytest.mark.parametrize("name", EVERY)
def test_a_file_holds_its_recipe_and_belongs_to_its_row(name, loaded, published):
    recipe, detector = states.RECIPES[name], loaded[name]
    assert detector == recipe.detector                  # all parameters
    assert states.digest(paths.states() / f"{name}.safetensors") == detector.card_["sha256"]
    assert json.loads(json.dumps(recipe.detector.parameters())) == detector.card_["recipe"]
    assert detector.preprocess_ == replace(recipe.preprocess, levels=256)
    assert detector.image_size_ == (recipe.image_size, recipe.image_size)
    row = published.loc[detector.card_["row"]]
    assert detector.card_["auroc"][0] == pytest.approx(100 * row["image_auroc"], abs=0.051)
    assert row["training.steps"][-1] == detector.card_["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_a_file_gives_the_scores_of_its_row(name, loaded, published, demo_data):
    """On the test pictures of the demo set; weights of 16 bits move a score a little."""
    recipe, detector = states.RECIPES[name], loaded[name]
    row, category = published.loc[detector.card_["row"]], scan(demo_data, recipe.category)
    scores = torch.cat([detector.predict(images).score for images in Pictures(category.test, recipe.preprocess)])
    assert metrics.image_auroc(category.labels, scores) == pytest.approx(row["image_auroc"], abs=0.01)
    np.testing.assert_allclose(scores, row["scores"], atol=0.02 * np.ptp(row["scores"]))


def test_logical_defects_are_found_by_the_global_map(loaded):
    _, low, _ = loaded["efficientad_bracket"].card_["fresh"]["global"]["missing_hole"]
    assert states.FRESH >= 50 and low > 80
    assert loaded["efficientad_bracket"].card_["auroc"][0] >= 95


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_the_first_steps_of_a_recipe_give_the_losses_of_its_row(name, loaded, published, monkeypatch):
    """To 1e-3 on any processor; teachers of Uninformed Students are those of the file, rounded to 16 bits."""
    recipe, row = states.RECIPES[name], published.loc[loaded[name].card_["row"]]
    if recipe.detector.precision == "bfloat16" and not has_bfloat16("cpu"):
        pytest.skip("this processor has no bf16 units: 50 steps would take many minutes")
    monkeypatch.setattr(descent, "descend", functools.partial(descent.descend, limit=50))
    monkeypatch.setattr(UninformedStudents, "_teacher", lambda self, p, images: loaded[name].networks_[f"teacher{p}"])
    category, detector = recipe.drawn(), replace(recipe.detector)
    with torch_threads(1):
        course = detector.train(detector.collect(Pictures(category.train, recipe.preprocess)))
    assert course.step == 50
    for loss, values in course.losses.items():
        tolerance = 4e-3 if hasattr(detector, "teachers_") else 1e-3
        np.testing.assert_allclose(values, row[f"training.first_losses.{loss}"], tolerance, err_msg=loss)


def test_a_recipe_becomes_a_file_with_its_card(monkeypatch, tmp_path, capsys):
    short = EfficientAD(weights="bundled", penalty="none", steps=2, snapshots=1)
    monkeypatch.setitem(states.RECIPES, "short", states.Recipe(short, "bracket", 64, 3))
    monkeypatch.setattr(states, "FRESH", 2)
    assert states.main(["short", "--out", str(tmp_path)]) == 0
    card = json.loads(capsys.readouterr().out)
    file = tmp_path / "short.safetensors"
    detector = EfficientAD.load(file)
    assert detector.card_ == card and detector == short
    assert card["steps"] == 2 and card["fresh"]["global"].keys() >= {"all", "missing_hole"}
    assert (tables.all_rows()["id"] == card["row"]).sum() == 1
    # Again: the row and the checkpoint are there, and the file becomes the same.
    monkeypatch.setattr(EfficientAD, "losses", lambda *_: pytest.fail("trained again"))
    assert states.main(["short", "--out", str(tmp_path)]) == 0
    assert EfficientAD.load(file).card_ == card and states.digest(file) == card["sha256"]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        states.main(["efficientad_weave"])
    assert "efficientad_bracket" in capsys.readouterr().err
