"""What a bundle carries to be compared by: the whole way from a file, verdicts next to the threshold; old bundles."""

import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from tests.device.test_run import QUICK, changed, thesis
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.device import bundle, copies, opening
from thesis_lib.device.run import detect


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


@pytest.mark.parametrize("options", [
    {"image_size": 64}, {"image_size": 64, "interpolation": "lanczos"}, {"image_size": 96, "crop": 64},
    {"image_size": 96, "crop": 64, "resize": "short_side"}, {"image_size": 64, "resize": "pad"},
    {"image_size": (64, 128)}, {"image_size": 64, "roi": (5, 6, 50, 40)}])
@pytest.mark.parametrize("size", [(80, 70), (70, 200), (301, 99), (64, 64)])
def test_a_picture_as_it_is_seen_is_seen_the_same_again(options, size, tmp_path):
    preprocess = Preprocess(**options, levels="full")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    copies.as_seen(picture, preprocess).save(tmp_path / "b.png")
    assert np.array_equal(preprocess.array(tmp_path / "a.png"), preprocess.array(tmp_path / "b.png"))


@pytest.mark.parametrize(("scores", "expected"), [
    ([1, 3, 2, 7, 5], [1, 4]), ([1, 2], [1]), ([9, 8], [1]), ([], []), ([4, 4 + 1e-7, 3, 4.1], [2, 3])])
def test_nearest_to_the_threshold_on_both_sides(scores, expected):
    """4 itself is the threshold: rounding would decide."""
    assert copies.nearest(np.array(scores), 4.0, 0.0) == expected


def test_the_pictures_next_to_both_thresholds_are_carried_as_they_are_seen(original, category):
    opened = bundle.Bundle.open(original)
    near = [name for name in opened.facts["pictures"] if name in opened.facts["near"]]
    for engine in bundle.ENGINES:
        scores = np.array([one.score for _, one in detect(opened, [one.path for one in category.test], engine=engine)])
        expected = dict(zip(opened.facts["pictures"], opened.facts["engines"][engine]["scores"], strict=True))
        kept, threshold = np.array([expected[name] for name in near]), opened.threshold(engine)
        assert kept[kept <= threshold].max() == pytest.approx(scores[scores <= threshold].max(), rel=1e-5)
        assert kept[kept > threshold].min() == pytest.approx(scores[scores > threshold].min(), rel=1e-5)


def test_the_large_one_is_scaled_down_and_the_bundle_stays_small(original):
    opened = bundle.Bundle.open(original)
    sizes = {file.name: Image.open(file).size for file in opened.on_way}
    assert sizes == {"jpeg0_good.jpg": (64, 56), "jpeg1_hole.jpg": (64, 56), "large_hole.jpg": (256, 224)}
    assert all(Image.open(file).format == "JPEG" for file in opened.on_way)
    assert sum(file.stat().st_size for file in opened.pictures) < 200_000


def test_verdicts_that_flip_are_named_though_the_difference_is_small(copy, capsys, tmp_path):
    """The threshold is moved to just above a score, and that score at export to just above the threshold."""
    before = json.loads((copy / bundle.FACTS).read_text())
    number = before["pictures"].index(before["near"][0])

    def move(facts):
        one = facts["engines"]["int8"]
        one["threshold"] = one["scores"][number] * (1 + 1e-4)
        one["scores"][number] *= 1 + 2e-4

    out = tmp_path / "row.json"
    command = ("measure", changed(copy, move), *QUICK, "--threads", 1, "--out", out)
    code, printed, err = thesis(capsys, *command, "--engine", "int8")
    count, name = len(before["pictures"]), before["near"][0]
    assert code == 0 and f"verdicts: {count - 1} of {count} as at export" in printed
    assert any(line.startswith(f"thesis: warning: 1 of {count} verdicts are others") and name in line for line in err)
    assert json.loads(out.read_text())["parity"]["flipped"] == [name]
    code, printed, _ = thesis(capsys, *command)                     # the same engine, not the other one
    assert code == 0 and f"verdicts: {count} of {count} as at export" in printed


@pytest.mark.parametrize(("share", "code"), [(0.01, 0), (0.1, 2)])
def test_another_decoder_has_a_limit_of_its_own(copy, capsys, tmp_path, share, code):
    def other(facts):
        number = facts["pictures"].index(facts["whole_way"][-1])
        facts["engines"]["float"]["scores"][number] *= 1 + share

    found, printed, err = thesis(capsys, "measure", changed(copy, other), *QUICK, "--threads", 1,
                                 "--out", tmp_path / "row.json")
    assert found == code
    if code:
        assert "JPEGs and a large picture, decoded and resized here, of engine float differ by 9.1 %" in err[0]
    else:
        assert "of 3 JPEGs, decoded and resized here: 0.99 % (limit 5 %)" in printed[0]


@pytest.mark.parametrize("form", [2, 3, 4])
def test_bundles_of_before_are_read(copy, capsys, tmp_path, form):
    def forget(facts):
        facts["format"] = form
        del facts["whole_way"], facts["near"]
        facts["pictures"] = facts["pictures"][:6]
        for one in facts["engines"].values():
            one["scores"] = one["scores"][:6]

    command = ("measure", changed(copy, forget), *QUICK, "--threads", 1, "--out", tmp_path / "row.json")
    code, printed, _ = thesis(capsys, *command)
    assert code == 0 and "scores of the bundle's 6 pictures" in printed[0] and "JPEG" not in printed[0]
    assert json.loads((tmp_path / "row.json").read_text())["parity"]["whole_way"] is None


@pytest.mark.parametrize(("step", "name"), [("decoding", "read_rgb"), ("reading", "forget")])
def test_opening_tells_its_steps_apart(original, monkeypatch, step, name):
    opened, genuine = bundle.Bundle.open(original), getattr(opening, name)
    if step == "reading":                       # forgetting is not timed, reading is
        monkeypatch.setattr(opening.Path, "read_bytes", lambda file: time.sleep(0.02) or b"")
        monkeypatch.setattr(opening, name, lambda file: time.sleep(0.05))
    else:
        monkeypatch.setattr(opening, name, lambda *given: time.sleep(0.02) or genuine(*given))
    took = opening.opening(opened.on_way, opened.preprocess, 2)
    assert max(ms for other, ms in took.items() if other != step) < 20 <= took[step]
