"""Rows of a bank that are found again are those that would be chosen."""

import numpy as np
import pytest

from thesis_lib.core import paths
from thesis_lib.evaluation import scores
from thesis_lib.methods import PatchCore
from thesis_lib.patches import coreset, selection


def patches(n=400, dim=12, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def forbidden(*_, **__):
    raise AssertionError("chosen anew")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path))


@pytest.mark.parametrize("projection", [None, 4])
def test_found_rows_are_the_chosen_ones(monkeypatch, projection):
    """The whole order and every shorter one; seconds grow with the rows."""
    features, how = patches(), {"seed": 3, "projection": projection}
    rows, seconds = selection.select(features, 120, **how)
    assert seconds == 0 and rows.dtype == np.int64
    np.testing.assert_array_equal(rows, coreset.select(features, 120, **how))
    monkeypatch.setattr(coreset, "greedy", forbidden)
    taken = []
    for count in (1, 7, 120):
        found, seconds = selection.select(features.copy(), count, **how)
        np.testing.assert_array_equal(found, rows[:count])
        taken.append(seconds)
    assert 0 < taken[0] <= taken[1] < taken[2]


@pytest.mark.parametrize("other", [
    lambda x: (x + np.float32(1e-6) * (np.arange(len(x)) == 399)[:, None], {}), lambda x: (x, {"seed": 1}),
    lambda x: (x, {"projection": 4}), lambda x: (x[:-1], {}), lambda x: (x.reshape(-1, 6), {}),
    lambda x: (x, {"rows": 21})])
def test_anything_else_is_chosen_anew(monkeypatch, other):
    about = {"rows": 20, "seed": 0, "projection": None}
    selection.select(patches(), **about)
    features, changed = other(patches())
    about |= changed
    found, seconds = selection.select(features, **about)
    np.testing.assert_array_equal(found, coreset.select(features, **about))
    assert seconds == 0


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-30]), lambda file: file.unlink(),
                                    lambda file: file.write_bytes(b""), lambda file: file.write_text("rows")])
def test_a_damaged_file_is_written_anew(damage):
    expected, _ = selection.select(patches(), 20, seed=0, projection=None)
    (file,) = paths.features().iterdir()
    content = np.load(file)["order"]
    damage(file)
    np.testing.assert_array_equal(selection.select(patches(), 20, seed=0, projection=None)[0], expected)
    np.testing.assert_array_equal(np.load(file)["order"], content)


def test_all_rows_need_no_choice():
    rows, seconds = selection.select(patches(), 400, seed=0, projection=None)
    assert rows.tolist() == list(range(400)) and seconds == 0 and not paths.features().exists()


def test_an_evaluation_chooses_once_for_all_rules_and_banks(pad, small, monkeypatch):
    """Largest bank first: all others are its beginning. Rows are those without anything kept."""
    rules = {rule: PatchCore(layers=(1,), weights="random", bank=60, score=rule) for rule in ("reweighted", "max")}
    several = rules | {"less": PatchCore(layers=(1,), weights="random", bank=20)}
    asked, genuine = [], coreset.greedy
    monkeypatch.setattr(coreset, "greedy", lambda *args, **how: asked.append(how["seed"]) or genuine(*args, **how))
    rows = scores.evaluate_many(several, pad, small, seeds=2, pixels=False)
    assert asked == [0, 1]
    assert (rows["max"]["fit_s"] > 0).all()
    monkeypatch.setenv("THESIS_FEATURES_GB", "0")
    anew = scores.evaluate_many(several, pad, small, seeds=2, pixels=False, force=True)
    assert len(asked) == 2 + 6
    for name in several:
        assert rows[name]["scores"].tolist() == anew[name]["scores"].tolist()


def test_fit_counts_the_seconds_of_rows_that_were_found(pad, small, monkeypatch):
    monkeypatch.setattr(selection, "select", lambda features, rows, **_: (np.arange(rows), 1000.0))
    found = PatchCore(layers=(1,), weights="random", bank=20)
    random = PatchCore(layers=(1,), weights="random", bank=20, coreset="random")
    rows = scores.evaluate_many({"found": found, "random": random}, pad, small, seeds=1, pixels=False)
    assert rows["found"]["fit_s"][0] > 1000 > rows["random"]["fit_s"][0]


def test_fit_by_itself_keeps_nothing(pad, small):
    from thesis_lib.data import Pictures
    PatchCore(layers=(1,), weights="random", bank=20).fit(Pictures(pad.train, small))
    assert not paths.features().exists()
