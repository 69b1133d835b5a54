"""The generated demo data: layout, masks, pinned pixels, and a writer that never leaves half a data set."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from thesis_lib.data import synthetic
from thesis_lib.data.synthetic import CATEGORIES, DEFECTS, VISIBLE, render, write

SMALL = {"train": 3, "good": 2, "defective": 7, "size": 32}
KINDS = [(category, defect) for category in CATEGORIES for defect in (None, *DEFECTS[category])]
GOLDEN = {     # sha256 of picture and mask; another value on another machine breaks the promise of `synthetic`
    ("granulate", None): "524b033f0f92bcb2",
    ("granulate", "burnt"): "d9c3ea54e84019b5",
    ("granulate", "broken"): "479d09d67a9f8dde",
    ("granulate", "fused"): "c5fc3ec5ecd31541",
    ("granulate", "shaving"): "96c63ca69fa91fc9",
    ("granulate", "dust"): "530603d06d8741e2",
    ("weave", None): "3c6bf52ffe22bc51",
    ("weave", "missing_yarn"): "b5c38501dc407a95",
    ("weave", "double_yarn"): "0ca6ab832e344717",
    ("weave", "hole"): "550f8bea7210228c",
    ("weave", "cut"): "e7cf824edc442a9b",
    ("weave", "stain"): "427dd82057695c9c",
    ("weave", "knot"): "87d2c15adc2654b0",
    ("bracket", None): "1064a10db68c0387",
    ("bracket", "scratch"): "d466ba70dc1205b0",
    ("bracket", "dent"): "1d86a4e1bd7ce143",
    ("bracket", "chip"): "0af086e8e8a00783",
    ("bracket", "burr"): "630e18493970c9ed",
    ("bracket", "rust"): "2e54bacd856c2868",
    ("bracket", "missing_hole"): "6cd8a9323c1389b1",
}


@pytest.mark.parametrize("category, defect", KINDS)
def test_pixels_are_the_pinned_ones(category, defect):
    picture, mask = render(category, seed=7, index=3, size=64, defect=defect)
    assert hashlib.sha256(picture.tobytes() + mask.tobytes()).hexdigest()[:16] == GOLDEN[category, defect]


@pytest.mark.parametrize("category, defect", [kind for kind in KINDS if kind[1]])
def test_mask_is_where_the_picture_differs_from_its_faultless_twin(category, defect):
    for index in range(2):
        picture, mask = render(category, seed=1, index=index, size=64, defect=defect)
        key = (1, CATEGORIES.index(category), 1 + DEFECTS[category].index(defect), index)
        change = np.abs(picture.astype(int) - synthetic._draw(key, 64, None)).max(axis=2)
        assert 0 < mask.mean() < 0.25
        assert change[~mask].max() < VISIBLE
        assert change[mask].max() >= 6
        assert (change[mask] > 0).mean() > 0.5, "mask much wider than the change"


def test_a_larger_picture_shows_the_same_scene():
    for category in CATEGORIES:
        small, _ = render(category, seed=2, index=0, size=64)
        large, _ = render(category, seed=2, index=0, size=192)
        shrunk = large.reshape(64, 3, 64, 3, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - small).mean() < 12
        assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.8


def test_pictures_differ_by_seed_index_and_kind():
    seen = {render("weave", size=32, **what)[0].tobytes() for what in (
        {"seed": 0, "index": 0}, {"seed": 1, "index": 0}, {"seed": 0, "index": 1},
        {"seed": 0, "index": 0, "defect": "stain"}, {"seed": 0, "index": 0, "defect": "hole"})}
    assert len(seen) == 5


def test_layout_counts_and_files(tmp_path):
    root = write(tmp_path / "demo", **SMALL)
    for category in CATEGORIES:
        here = root / category
        assert sorted(p.name for p in (here / "train/good").iterdir()) == ["000.png", "001.png", "002.png"]
        assert len(list((here / "test/good").iterdir())) == 2
        pictures = sorted(p for p in (here / "test").glob("*/*.png") if p.parent.name != "good")
        assert len(pictures) == 7 and {p.parent.name for p in pictures} == set(DEFECTS[category])
        masks = [here / "ground_truth" / p.parent.name / f"{p.stem}_mask.png" for p in pictures]
        assert sorted(masks) == sorted((here / "ground_truth").glob("*/*.png"))
        for path in masks:
            with Image.open(path) as mask:
                assert mask.mode == "L" and mask.size == (32, 32)
                assert set(np.unique(np.asarray(mask))) == {0, 255}
        with Image.open(pictures[0]) as picture:
            assert picture.mode == "RGB" and picture.size == (32, 32)
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]
    nominal = [p.read_bytes() for part in ("train", "test") for p in (root / "weave" / part / "good").iterdir()]
    assert len(set(nominal)) == 5, "a nominal test picture repeats a training picture"


def test_pictures_depend_neither_on_count_nor_on_other_categories(tmp_path):
    many, few = write(tmp_path / "a", **SMALL), write(tmp_path / "b", **{**SMALL, "train": 1, "good": 1},
                                                      categories=["bracket"])
    for name in ("train/good/000.png", "test/good/000.png", "test/dent/000.png", "ground_truth/dent/000_mask.png"):
        assert (many / "bracket" / name).read_bytes() == (few / "bracket" / name).read_bytes()


def test_progress_counts_every_picture(tmp_path):
    calls = []
    write(tmp_path / "d", categories=("weave",), train=1, good=1, defective=1, size=32,
          progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_second_write_returns_at_once_and_other_arguments_are_refused(tmp_path, monkeypatch):
    what = {"categories": ("weave",), "train": 1, "good": 1, "defective": 1, "size": 32}
    root = write(tmp_path / "d", **what)
    record = json.loads((root / "dataset.json").read_text())
    monkeypatch.setattr(synthetic, "render", None)             # drawing anything now would fail
    assert write(root, **what) == root
    with pytest.raises(ValueError, match=r"train=1 \(asked 2\)"):
        write(root, **{**what, "train": 2})
    with pytest.raises(ValueError, match=r"seed=0 \(asked 5\)"):
        write(root, **what, seed=5)
    assert json.loads((root / "dataset.json").read_text()) == record


def test_pixel_hash_covers_the_pixels(tmp_path):
    what = {"categories": ("weave",), "train": 1, "good": 0, "defective": 0, "size": 32}
    root = write(tmp_path / "d", **what)
    picture = np.asarray(Image.open(root / "weave/train/good/000.png"))
    recorded = json.loads((root / "dataset.json").read_text())["sha256"]
    assert recorded == hashlib.sha256(picture.tobytes()).hexdigest()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="no finished demo data set"):
        write(tmp_path / "mine", **SMALL)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_finish_first(tmp_path):
    what = {"categories": ("weave",), "train": 1, "good": 0, "defective": 0, "size": 32}
    root = write(tmp_path / "d", **what, progress=lambda done, total: write(tmp_path / "d", **what))
    assert [p.name for p in tmp_path.iterdir()] == ["d"] and (root / "dataset.json").exists()
    with pytest.raises(ValueError, match="holds another"):
        write(tmp_path / "e", **what, progress=lambda done, total: write(tmp_path / "e", **what, seed=1))


@pytest.mark.parametrize("change, message", [
    ({"category": "wood"}, "category 'wood'.*granulate, weave, bracket"),
    ({"defect": "rust"}, "defect 'rust'.*missing_yarn"),
    ({"size": 30}, "size 30"),
    ({"size": 65}, "size 65"),
    ({"seed": -1}, "seed -1"),
    ({"index": -1}, "index -1"),
])
def test_render_names_a_bad_argument(change, message):
    with pytest.raises(ValueError, match=message):
        render(**{"category": "weave", "seed": 0, "index": 0, "size": 32, **change})


@pytest.mark.parametrize("change, message", [
    ({"categories": ("wood",)}, "category 'wood'"), ({"train": -1}, "train -1"), ({"good": -2}, "good -2"),
    ({"defective": -1}, "defective -1"), ({"size": 16}, "size 16"), ({"categories": ("weave", "weave")}, "each once"),
    ({"categories": ()}, "categories")])
def test_write_names_a_bad_argument(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "d", **{**SMALL, **change})
    assert not (tmp_path / "d").exists()
