"""Folders as people have them."""

import pytest
from PIL import Image

from thesis_lib.core.preprocess import DataError
from thesis_lib.data import flat, folders


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (16, 16), (number, 90, 90)).save(folder / name)
    return folder


@pytest.mark.parametrize(("good", "bad"), [("OK", "NOK"), ("ok", "nok"), ("Good", "Bad"), ("good parts", "rejects"),
                                           ("i.O.", "n.i.O.")])
def test_a_category_may_be_two_folders(tmp_path, good, bad):
    fill(tmp_path / "part" / good, "a.png", "b.png")
    fill(tmp_path / "part" / bad / "scratch", "a.png")
    fill(tmp_path / "part" / bad, "c.png")
    found = folders.scan(tmp_path, "part")
    assert [sample.path.name for sample in found.train] == ["a.png", "b.png"]
    assert sorted((sample.defect, sample.label) for sample in found.test) == [(bad, 1), ("scratch", 1)]
    assert folders.categories(tmp_path) == ["part"]


def test_good_parts_alone_are_a_category(tmp_path):
    fill(tmp_path / "part" / "OK", "a.png", "b.png")
    found = folders.scan(tmp_path, "part")
    assert (len(found.train), len(found.test)) == (2, 0)


@pytest.mark.parametrize(("make", "message"), [
    (lambda root: (fill(root / "OK", "a.png"), fill(root / "gut", "b.png")), "both seem to hold the good parts"),
    (lambda root: (fill(root / "OK", "a.png"), fill(root / "maybe", "b.png")), "maybe: lies beside OK"),
    (lambda root: (fill(root / "OK", "a.png"), fill(root / "NOK" / "ok", "b.png")), "a folder of good parts inside")])
def test_folders_that_may_mean_either_are_refused(tmp_path, make, message):
    make(tmp_path / "part")
    with pytest.raises(DataError, match=message):
        folders.scan(tmp_path, "part")


def test_two_folders_anywhere(tmp_path):
    good, bad = fill(tmp_path / "line 3" / "OK", "a.png"), fill(tmp_path / "elsewhere", "b.png")
    name, learned, defective = flat.two_folders(good, bad)
    assert (name, len(learned), len(defective)) == ("line 3", 1, 1)
    for first, second, message in ((good, good, "inside the folder of good ones"), (good, tmp_path / "no", "no such"),
                                   (tmp_path / "line 3", good, "inside the folder of good ones"),
                                   (good, fill(tmp_path / "empty"), "no pictures")):
        with pytest.raises(DataError, match=message):
            flat.two_folders(first, second)
