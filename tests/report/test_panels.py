"""The interactive end of the notebooks, without a browser; test_lab drives it in JupyterLab."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from thesis_lib import data
from thesis_lib.data.pictures import load_image
from thesis_lib.methods import SPADE, PaDiM, PatchCore
from thesis_lib.report import panels


@pytest.fixture
def patchcore():
    return PatchCore(weights="random", layers=(1,), bank=30)


@pytest.fixture
def view(patchcore, pad, small):
    return panels.view_of(patchcore, pad, small)


def widgets(box):
    """description -> widget, of everything inside."""
    found = {}
    for child in getattr(box, "children", ()):
        found |= {child.description: child} if getattr(child, "description", "") else {}
        found |= widgets(child)
    return found


def test_scores_are_the_detectors(view, pad, small):
    images = torch.stack([load_image(sample.path, small) for sample in pad.test])
    assert np.allclose(view.scores, view.detector.predict(images).score, rtol=1e-5)


def test_predictions_that_are_there_are_not_made_again(view, monkeypatch):
    backwards = view.predictions[::-1]
    monkeypatch.setattr(PatchCore, "predict", lambda *_: pytest.fail("predicted again"))
    given = panels.View(view.detector, view.category, view.preprocess, backwards)
    assert given.scores.tolist() == view.scores[::-1].tolist()


def test_the_usual_threshold_is_over_all_but_one_of_twenty_good_pictures(view, pad):
    assert view.usual == np.quantile(view.scores[pad.labels == 0], 0.95) < view.scores[pad.labels == 1].min()


def test_a_detector_is_fitted_once(patchcore, pad, small, view, monkeypatch):
    monkeypatch.setattr(PatchCore, "fit", lambda *_: pytest.fail("fitted again"))
    assert panels.view_of(PatchCore(**patchcore.parameters()), pad, small) is view


def test_the_verdict_counts_alarms(view, pad):
    middle = float(np.median(view.scores))
    alarms = view.scores >= middle
    told = view.verdict(0, middle)
    assert f"finds {100 * alarms[pad.labels == 1].mean():.0f} %" in told
    assert f"raises {100 * alarms[pad.labels == 0].mean():.0f} % false alarms" in told
    assert "anomalous at threshold" in view.verdict(int(view.scores.argmax()), middle)


def test_nearest_patches_come_from_the_training_pictures(view, pad, small):
    """The bank row's number leads back to its picture and place."""
    crops = view.nearest(0)
    assert len(crops) == 1 + panels.SHOWN and all(crop.shape == (24, 24, 3) for crop in crops)
    train = [load_image(sample.path, small) for sample in pad.train]
    stages = view.detector.stages
    patches = stages["embedding"](stages["extraction"](torch.stack(train))).vectors      # (N, P, D)
    for row, vector in zip(view.detector.rows_, view.detector.bank_, strict=True):
        number, place = divmod(int(row), patches.shape[1])
        assert torch.allclose(patches[number, place], vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("detector", [SPADE(weights="random", layers=(1, 2), k=2),
                                      PaDiM(weights="random", channels=10)],
                         ids=lambda detector: detector.name)
def test_other_methods_have_no_bank_patches(detector, pad, small):
    view = panels.view_of(detector, pad, small)
    assert view.nearest(0) == [] and view.figure(0)._repr_png_()


def test_the_batch_shows_one_picture_and_no_widget(patchcore, pad, small, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(panels, "display", shown.append)
    panels.show(patchcore, pad.train[0].path.parents[3], pad, small)
    assert [type(one).__name__ for one in shown] == ["Figure", "Figure"] and "false alarms" in capsys.readouterr().out


@pytest.mark.parametrize("gone", ["good", "hole"])
def test_the_batch_shows_pictures_of_one_kind_too(patchcore, pad, small, capsys, monkeypatch, gone):
    monkeypatch.setattr(panels, "display", lambda shown: None)
    left = replace(pad, test=tuple(sample for sample in pad.test if sample.defect != gone))
    panels.show(patchcore, pad.train[0].path.parents[3], left, small)
    assert ("false alarms" if gone == "hole" else "of the anomalous pictures") in capsys.readouterr().out


def test_widgets_change_what_is_told(patchcore, pad, small, make_category):
    root = make_category("other", train=3)
    panel = panels.panel(patchcore, root, pad, small)
    parts, told = widgets(panel), panel.children[3]
    before = told.value
    parts["threshold"].value = parts["threshold"].max
    assert told.value != before and "raises 0 % false alarms" in told.value
    parts["picture"].value = 0
    assert told.value.startswith("score ")
    parts["layers"].value = (1, 2)
    assert "false alarms" in told.value
    parts["category"].value = "other"
    assert len(parts["picture"].options) == len(data.scan(root, "other").test)


def test_a_first_view_is_shown_until_something_else_is_chosen(patchcore, view, pad, small, capsys, monkeypatch):
    larger = PatchCore(weights="random", layers=(1,), bank=60)
    parts = widgets(box := panels.panel(larger, pad.train[0].path.parents[3], pad, small, first=view))
    told, highest = box.children[3], int(np.argmax(view.scores))
    assert told.value == view.verdict(highest, view.usual)
    parts["layers"].value = (1, 2)
    assert told.value != view.verdict(highest, view.usual)
    parts["layers"].value = (1,)
    assert told.value == view.verdict(highest, view.usual)
    monkeypatch.setattr(PatchCore, "fit", lambda *_: pytest.fail("fitted"))
    panels.show(larger, pad.train[0].path.parents[3], pad, small, first=view)
    said = capsys.readouterr().out
    assert any(view.verdict(index, view.usual) in said for index in range(len(view.scores)))


def test_another_detector_keeps_the_picture(patchcore, pad, small):
    parts = widgets(panels.panel(patchcore, pad.train[0].path.parents[3], pad, small))
    parts["picture"].value = 1
    parts["layers"].value = (1, 2)
    assert parts["picture"].value == 1


def test_the_threshold_moves_without_the_detector(patchcore, pad, small, monkeypatch):
    parts = widgets(panels.panel(patchcore, pad.train[0].path.parents[3], pad, small))
    monkeypatch.setattr(panels.View, "figure", lambda *_: pytest.fail("drawn again"))
    parts["threshold"].value = parts["threshold"].max


def test_a_folder_with_a_category_of_the_same_name_is_fitted_anew(patchcore, pad, small, tmp_path):
    panel = panels.panel(patchcore, pad.train[0].path.parents[3], pad, small)
    parts = widgets(panel)
    other = tmp_path / "mine" / "pad"
    shutil.copytree(pad.train[0].path.parents[2], other)
    shutil.rmtree(other / "test" / "good")
    parts["folder"].value = str(other.parent)
    assert len(parts["picture"].options) == 3 and "false alarms" not in panel.children[3].value
    shutil.rmtree(other / "test" / "hole")
    parts["folder"].value = str(tmp_path)           # away and back
    parts["folder"].value = str(other.parent)
    assert "pad: no test pictures" in panel.children[3].value


@pytest.mark.parametrize(("gone", "told"), [("good", "which finds 0 % of the anomalous pictures"),
                                            ("hole", "which raises 0 % false alarms")])
def test_pictures_of_one_kind_have_a_verdict_and_no_curve(patchcore, pad, small, gone, told):
    left = replace(pad, test=tuple(sample for sample in pad.test if sample.defect != gone))
    view = panels.view_of(patchcore, left, small)
    assert view.verdict(0, view.scores.max() + 1).endswith(told)
    assert view.usual == np.quantile(view.scores, 0.95), "of the good ones, and of all where there are none"
    assert not view.curve(0, view.usual).axes[1].lines


def test_a_folder_without_categories_is_told_and_what_is_shown_stays(patchcore, pad, small, tmp_path, make_category):
    panel = panels.panel(patchcore, make_category("other", train=3), pad, small)
    parts, told = widgets(panel), panel.children[3]
    for folder, what in ((pad.train[0].path.parents[2], "give the folder above it"), (tmp_path / "nowhere", "nowhere"),
                         (pad.train[0].path.parent, "holds no category, but 4 pictures; good parts belong into")):
        parts["folder"].value = str(folder)
        assert what in told.value
    parts["category"].value = "other"
    assert "false alarms" in told.value


def test_parameters_that_do_not_fit_each_other_are_told(pad, small):
    panel = panels.panel(PatchCore(weights="random", layers=(1,), bank=30), pad.train[0].path.parents[3], pad, small,
                          ["pdn_medium"])
    parts, told = widgets(panel), panel.children[3]
    assert {value for _, value in parts["backbone"].options} == {"resnet18", "resnet34", "pdn_small", "pdn_medium"}
    parts["layers"].value = (2,)
    parts["backbone"].value = "pdn_medium"
    assert told.value.startswith("<b>") and "pdn_medium" in told.value
    parts["layers"].value = (1,)
    assert "false alarms" in told.value


def test_weights_that_are_missing_are_told(pad, small):
    panel = panels.panel(PatchCore(weights="bundled", layers=(1,), bank=30), pad.train[0].path.parents[3], pad, small)
    widgets(panel)["backbone"].value = "resnet34"
    assert "there are none for resnet34" in panel.children[3].value


def test_another_camera_decides_its_own_levels(patchcore, pad, small, tmp_path, make_category):
    """8 bits beside 12 in files of 16: the first category's scale is not the other's."""
    shutil.copytree(make_category() / "pad", tmp_path / "both" / "eight")
    for file in (tmp_path / "both" / "eight").rglob("*.png"):
        deep = tmp_path / "both" / "twelve" / file.relative_to(tmp_path / "both" / "eight")
        deep.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(Image.open(file).convert("L")).astype(np.uint16) * 16).save(deep)
    root = tmp_path / "both"
    box = panels.panel(patchcore, root, data.scan(root, "eight"), small)
    widgets(box)["category"].value = "twelve"
    assert panels.view_of(patchcore, data.scan(root, "twelve"), small).preprocess.levels == 4096
    assert len(widgets(box)["picture"].options) == 6 and "beyond levels" not in str(box.children[3].value)
    assert "at threshold" in box.children[3].value
