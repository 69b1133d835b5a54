"""A closer look: kept beside the rows, whatever the pictures are."""

import numpy as np
import pytest

from thesis_lib import data
from thesis_lib.core import paths
from thesis_lib.evaluation import crossfit
from thesis_lib.evaluation.examined import SHOWN, examine
from thesis_lib.evaluation.robustness import STEPS, robustness
from thesis_lib.methods import PatchCore, SimpleNet
from thesis_lib.networks.maps import Extracted

pytestmark = pytest.mark.usefixtures("networks_built_once")
FEW = {"brightness": (0.1,), "shift": (0.02,)}


def core():
    return PatchCore(weights="random", layers=(1,), bank=20)


@pytest.fixture
def forwards(monkeypatch):
    """How many batches of pictures were read."""
    read = []
    genuine = Extracted.pictures

    def noted(self):
        for batch in genuine(self):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(Extracted, "pictures", noted)
    return read


def flat(category):
    """Without good test pictures."""
    return data.folders.Category(category.name, category.train,
                                 tuple(sample for sample in category.test if sample.label))


@pytest.mark.parametrize("detector", [core(), SimpleNet(weights="random", layers=(1,), epochs=1, snapshots=1)])
@pytest.mark.parametrize("cut", [lambda category: category, flat])
def test_nothing_is_extracted_twice(make_category, small, forwards, monkeypatch, detector, cut):
    category = cut(data.scan(make_category(train=10, good=4, bad=3), "pad"))
    first = examine(detector, category, small, steps=FEW)
    assert forwards
    forwards.clear()
    with monkeypatch.context() as patch:
        patch.setattr(crossfit, "fitted", None)             # whoever learns again fails
        patch.setattr(type(detector), "fit", None)
        again = examine(detector, category, small, steps=FEW)
    assert not forwards
    for name in ("nominal", "good", "bad"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert again.robustness.equals(first.robustness) and again.changed == first.changed
    assert [(one.sample, one.kind, one.score) for one in again.seen] == [
        (one.sample, one.kind, one.score) for one in first.seen]
    for one, other in zip(first.seen, again.seen, strict=True):
        np.testing.assert_array_equal(one.heat, other.heat)


@pytest.mark.parametrize("spoil", ["gone", "cut short", "other steps", "force"])
def test_what_is_not_whole_or_not_the_same_is_looked_at_again(make_category, small, forwards, spoil):
    category = data.scan(make_category(train=6, good=2, bad=2), "pad")
    first = examine(core(), category, small, steps=FEW)
    (maps,) = paths.results().glob("look-*.npy")
    if spoil == "gone":
        maps.unlink()
    elif spoil == "cut short":
        maps.write_bytes(maps.read_bytes()[:-100])
    again = examine(core(), category, small, steps=STEPS if spoil == "other steps" else FEW, force=spoil == "force")
    np.testing.assert_array_equal(again.nominal, first.nominal)
    assert len(again.robustness) > len(first.robustness) if spoil == "other steps" else maps.is_file()
    np.testing.assert_array_equal(again.seen[0].heat, first.seen[0].heat)


def test_it_says_what_the_detector_and_the_table_of_robustness_say(make_category, small):
    """Against a plain fit, and maps of all test pictures."""
    category = data.scan(make_category(train=10, good=4, bad=4), "pad")
    close = examine(core(), category, small, steps=FEW)
    fitted = core().fit(data.Pictures(category.train, small))
    predicted = [fitted.predict(batch) for batch in data.Pictures(category.test, close.preprocess)]
    scores = crossfit.scores_of(predicted)
    np.testing.assert_allclose(close.good, scores[category.labels == 0], rtol=1e-6)
    np.testing.assert_allclose(close.bad, scores[category.labels == 1], rtol=1e-6)
    heats = np.concatenate([batch.full_map(64).numpy() for batch in predicted])
    assert [one.kind for one in close.seen] == ["best"] * 2 + ["missed"] * 2 + ["alarm"] * SHOWN
    for one in close.seen:
        np.testing.assert_allclose(one.heat, heats[category.test.index(one.sample)], rtol=1e-4, atol=1e-5)
    expected = robustness(fitted, category.test, small, close.usual.threshold, steps=FEW, spread=close.usual.spread)
    np.testing.assert_allclose(close.robustness["shift"], expected["shift"], atol=1e-6)
    assert close.robustness["label"].tolist() == expected["label"].tolist()


def test_without_good_test_pictures_the_light_changes_on_those_held_out(make_category, small):
    """Ten pictures are five folds of two; no defective ones are needed."""
    category = data.scan(make_category(train=10, good=0, bad=3), "pad")
    close = examine(core(), flat(category), small, steps=FEW)
    assert set(close.robustness["n_good"]) == {2} and set(close.robustness["n_defective"]) == {3}
    assert "2 good ones" in close.changed and "of one fold" in close.changed
    assert {one.sample.split for one in close.seen if one.kind == "alarm"} == {"train"}
    alone = data.folders.Category("pad", category.train, ())
    close = examine(core(), alone, small, steps=FEW)
    assert set(close.robustness["n_good"]) == {2} and close.robustness["recall"].isna().all()
    assert sorted(one.score for one in close.seen) == sorted(close.nominal)[-SHOWN:]


def test_pictures_too_small_to_be_cut_lack_these_steps_alone(make_category):
    category = data.scan(make_category(train=6, good=3, bad=2, size=17), "pad")
    close = examine(core(), category, data.Preprocess(image_size=64))
    assert set(close.robustness["change"]) == {"untouched", *STEPS} - {"rotation", "shift"}
    assert "Rotation is left out" in close.changed and "Shift is left out" in close.changed
    assert "17x17 pixels leave" in close.changed and "png" in close.changed
