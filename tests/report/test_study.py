"""The page of a study: whatever the pictures are, it is made, and says what is not on it."""

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from PIL import Image

from thesis_lib import data
from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import ladder, study
from thesis_lib.report import study as page
from thesis_lib.report import study_figures, study_words

ASKED = {"weights": "random", "pictures": 1, "seeds": 1}


@pytest.fixture(autouse=True)
def short_ladder(monkeypatch):
    """The two rungs of the smallest size; the others would only take time."""
    genuine = study.ladder
    monkeypatch.setattr(study, "ladder", lambda *args, **given: genuine(*args, **given)[:2])


def written(category, folder, preprocess=None, **given):
    """A study and the text of its page, without the figures."""
    whole = study.study(category, preprocess or data.Preprocess(image_size=64), **(ASKED | given))
    html = page.write(whole, folder, weights="random").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html) and (folder / "rows.csv").is_file()
    return whole, unescape(re.sub(r"data:[^\"']+", "", html)).replace("\u00a0", " ")


def test_pictures_too_small_to_be_cut(make_category, tmp_path):
    """They ended the study without a page."""
    category = data.scan(make_category(train=6, good=3, bad=2, size=17), "pad")
    _, html = written(category, tmp_path / "page")
    assert "Rotation is left out" in html and "Shift is left out" in html and "brightness +10 %" in html
    assert "rotation 1 degrees" not in html and "Turned and shifted" not in html


def test_equal_scores(tmp_path):
    """Nominal scores of spread 0, and defective pictures that look like good ones."""
    for kind, count in (("train/good", 8), ("test/good", 4), ("test/stain", 3)):
        folder = tmp_path / "set" / "part" / kind
        folder.mkdir(parents=True)
        for number in range(count):
            values = np.full((64, 64, 3), 100, dtype=np.uint8)
            Image.fromarray(values).save(folder / f"{kind[:2]}{number}.png", compress_level=number)
            with (folder / f"{kind[:2]}{number}.png").open("ab") as stream:      # the same pixels, no copy of the file
                stream.write(f"{kind}{number}".encode())
    whole, html = written(data.scan(tmp_path / "set", "part"), tmp_path / "page", quick=True)
    assert whole.examined.usual.spread == 0 and "no interquartile range" in html
    assert "move by" not in html and "good parts flagged" in html
    assert whole.best.auroc == 0.5 and "50.0 %" in html


@pytest.mark.parametrize("bad", [0, 1])
def test_few_or_no_defective_pictures(make_category, tmp_path, bad):
    category = data.scan(make_category(train=5, good=2, bad=bad, masks=False), "pad")
    _, html = written(category, tmp_path / "page", quick=True)
    if bad:
        assert "no interval: a class has a single picture" in html and "cannot be told" in html
    else:
        assert "Nothing is ranked" in html and "Without defective pictures nobody can tell" in html
        assert "defects found" not in html
    assert "cannot be promised by 5 pictures" in html and "true defect" not in html


def test_a_mask_that_does_not_fit_costs_its_outline_alone(make_category, tmp_path):
    root = make_category(train=6, good=2, bad=2)
    Image.new("L", (9, 9), 255).save(root / "pad/ground_truth/hole/000_mask.png")
    _, html = written(data.scan(root, "pad"), tmp_path / "page", quick=True)
    assert html.count("without its true outline") == 1 and "mask is 9x9" in html


def test_what_these_pictures_cannot_give_is_left_out_with_a_reason(make_category, tmp_path):
    """Tiles do not fit into the smallest size: the study goes on with the others."""
    category = data.scan(make_category(train=6, good=2, bad=2), "pad")
    given = {"weights": "random", "tiles": (2, 2)}
    rungs = [replace(rung, preprocess=replace(rung.preprocess, image_size=size))
             for rung, size in zip(study.ladder(category, data.Preprocess(image_size=64), **given), (32, 64),
                                   strict=True)]
    left, reasons = study.usable(rungs, category)
    assert len(left) == 1 and len(reasons) == 1 and "left out: " in reasons[0] and "tiles" in reasons[0]
    with pytest.raises(ThesisError, match="tiles"):
        study.usable(rungs[:1], category)


def test_points_of_one_threshold_are_one_point(make_category, tmp_path):
    """With 6 pictures every promise is the same threshold, or none."""
    whole, _ = written(data.scan(make_category(train=30, good=3, bad=3), "pad"), tmp_path / "page", quick=True)
    axis = study_figures.operating(whole).axes[0]
    curve = axis.lines[0]
    assert (curve.get_xdata()[0], curve.get_ydata()[0]) == (0, 0), "points without a false alarm lie on it, too"
    told = [line.get_label() for line in axis.lines if "threshold" in str(line.get_label())]
    places = [tuple(map(float, (line.get_xdata()[0], line.get_ydata()[0]))) for line in axis.lines
              if "threshold" in str(line.get_label())]
    assert len(set(places)) == len(places)
    promised = [rate for rate, found in whole.examined.promises().items() if not isinstance(found, str)]
    assert sum(label.count("%") for label in told) == len(promised) > 1
    for optimism, said in ((0.0004, "them hardly"), (-0.01, "them hardly"), (0.0123, "some 1.2 points")):
        assert said in study_words.recommendation(replace(whole, optimism=optimism))


def test_numbers_of_a_figure_cover_neither_each_other_nor_a_point(make_category, tmp_path):
    whole, _ = written(data.scan(make_category(train=6, good=3, bad=3), "pad"), tmp_path / "page", quick=True)
    line = whole.lines[0]
    near = [replace(line, ms=line.ms * factor) for factor in np.geomspace(1, 3, 8)]
    figure = study_figures.tradeoff(replace(whole, lines=tuple(near)))
    figure.draw_without_rendering()
    (axis,) = figure.axes
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 8
    points = axis.transData.transform([(one.ms, 100 * one.auroc) for one in near])
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1:])
        assert not any(box.contains(*point) for point in points)


def test_a_number_and_its_unit_stay_together(make_category, tmp_path):
    whole = study.study(data.scan(make_category(train=6, good=3, bad=3), "pad"), data.Preprocess(image_size=64),
                        quick=True, **ASKED)
    html = page.write(whole, tmp_path / "page").read_text()
    assert not re.search(r"\d (ms|%)", html) and re.search("\\d\u00a0ms", html)
    times = whole.looked_at.here
    assert times.low <= times.ms <= times.high and re.search(r"ms \(\d+\.?\d* to \d", html)


@pytest.fixture
def elongated(tmp_path):
    """Grey noise of 40 x 100 pixels; defective ones have a thin white line along the picture."""
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 6), ("test/good", 3), ("test/scratch", 3)):
        folder = tmp_path / "set" / "long" / kind
        folder.mkdir(parents=True)
        for number in range(count):
            values = rng.integers(90, 130, (100, 40, 3), dtype=np.uint8)
            if kind == "test/scratch":
                values[20:80, 15:18] = 255
            Image.fromarray(values).save(folder / f"{number}.png")
    return data.scan(tmp_path / "set", "long")


def test_the_right_rectangle_is_tried_by_itself(elongated, tmp_path):
    whole, html = written(elongated, tmp_path / "page")
    assert whole.looked_at.rung.size == "32x64" and "has taken 64x160" in html and "square of 64x64" in html
    assert {one.heat.shape for one in whole.examined.seen} == {(64, 32)}
    assert {"rotation", "shift"} <= set(whole.examined.robustness["change"])
    assert "--image-size 32x64" in html and "export patchcore" in html


def test_a_region_of_interest_and_a_mask_of_one(elongated, tmp_path):
    """Of a mask few patches count, which the bank must not ask more of; its command names the file."""
    values = np.zeros((100, 40), dtype=np.uint8)
    values[30:60, 5:35] = 255
    file = tmp_path / "mask.png"
    Image.fromarray(values).save(file)
    whole, html = written(elongated, tmp_path / "page", data.Preprocess(image_size=64, roi=(0, 10, 40, 80)), quick=True)
    assert whole.looked_at.rung.size == "32x64" and "--roi 0,10,40,80" in html
    whole = study.study(elongated, data.Preprocess(image_size=64, roi=str(file)), quick=True, **ASKED)
    assert np.isneginf(whole.examined.seen[0].heat).any()
    html = page.write(whole, tmp_path / "mask", source=["--data", "x", "--category", "y", "--roi", "mask.png"])
    assert "--roi mask.png" in html.read_text() and not re.search(r"40x100:\d", html.read_text())


def test_tiles_and_a_pi(elongated, tmp_path):
    """Times of a Pi are predictions, with their error; what has no bundle is not recommended for it."""
    whole, html = written(elongated, tmp_path / "page", data.Preprocess(image_size=96), quick=True, tiles=(1, 2),
                          device="pi4", budget_ms=5000)
    assert whole.looked_at.rung.detector.tiles == (1, 2) and "--tiles 1x2" in html
    assert whole.chosen.ms == whole.chosen.pi4.ms and "predicted on a Raspberry Pi 4B" in html
    assert whole.chosen.pi4.low < whole.chosen.ms < whole.chosen.pi4.high
    assert "13 networks that others timed there" in html and "cannot tell apart" in html
    assert "Nothing that was tried keeps the budget" in written(
        elongated, tmp_path / "page", data.Preprocess(image_size=96), quick=True, tiles=(1, 2), device="pi4",
        budget_ms=0.001)[1]


@pytest.mark.parametrize("good", [0, 3])
def test_trained_methods(make_category, tmp_path, monkeypatch, good):
    """Without good test pictures they are tested with other good ones than the rest, which must still compare."""
    for name in ("EPOCHS", "STEPS", "DISTILLED"):
        monkeypatch.setattr(ladder, name, (1, 1))
    monkeypatch.setattr(study, "ladder", lambda *args, **given: [
        rung for rung in ladder.ladder(*args, **given) if rung.detector.name not in ("padim", "spade")][2:])
    category = data.scan(make_category(train=10, good=good, bad=3), "pad")
    whole, html = written(category if good else data.folders.Category("pad", category.train, category.test),
                          tmp_path / "page", data.Preprocess(image_size=64), quick=True, trained=True)
    names = {line.rung.title for line in whole.lines}
    assert {"PatchCore", "SimpleNet", "EfficientAD"} <= names
    assert "EfficientAD has a network of its own, pdn_small with bundled weights" in html
    assert "SimpleNet has a network" not in html and "short training" in html
    counts = {line.rung.title: line.pictures for line in whole.lines}
    assert counts["PatchCore"] == ((good, 3) if good else (10, 3))
    if not good:
        assert counts["SimpleNet"] == (2, 3) and "n = 2 + 3" in html and np.isfinite(whole.optimism)
