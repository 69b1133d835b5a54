"""A change of the light is told, defects and chance are not; a watch needs the bundle alone and remembers."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.stats import betabinom

from thesis_lib import data
from thesis_lib.commands import main
from thesis_lib.core.errors import ThesisError
from thesis_lib.data import synthetic
from thesis_lib.device import bundle, drift, export, run
from thesis_lib.methods import PatchCore

LIGHT = ("mean grey", "contrast", "sharpness")


def values_of(pixels, factor=1.0):
    """As of the file of a picture (H, W, 3) uint8, other light by a factor."""
    changed = np.clip(np.rint(pixels * factor), 0, 255).astype(np.float32)
    colours = (changed.transpose(2, 0, 1) / 255 - 0.449) / 0.226
    # `of_picture` takes ImageNet's numbers off again, of each channel its own.
    mean, std = (np.array(one, np.float32)[:, None, None] for one in (drift.IMAGENET_MEAN, drift.IMAGENET_STD))
    return drift.of_picture((colours * 0.226 + 0.449 - mean) / std)


@pytest.fixture(scope="module")
def pool():
    """Bands of 60 good pictures; values of 60 others, of these in brighter light, and of 20 defective ones."""
    kinds = synthetic.DEFECTS["weave"]
    good = [synthetic.render("weave", seed=3, index=index, size=64)[0] for index in range(120)]
    bad = [synthetic.render("weave", seed=3, index=index, size=64, defect=kinds[index % len(kinds)])[0]
           for index in range(20)]
    learned = [values_of(one) for one in good[:60]]
    bands = drift.bands({name: [one[name] for one in learned] for name in LIGHT})
    return bands, *([values_of(one, factor) for one in some]
                    for some, factor in ((good[60:], 1), (good[60:], 1.1), (bad, 1)))


def told(bands, stream):
    """Pictures after which something is told."""
    watch = drift.Watch(bands)
    return [number for number, values in enumerate(stream, 1) if watch.see(values)]


# ---- what the issue promises

def test_ten_percent_more_light_is_told_within_100_pictures(pool):
    bands, good, bright, _ = pool
    numbers = told(bands, good[:40] + (bright + bright)[:100])
    assert numbers and 40 < numbers[0] <= 140


def test_a_fifth_of_defective_parts_is_not_told(pool):
    bands, good, _, bad = pool
    rng = np.random.default_rng(0)
    assert told(bands, [(bad if rng.random() < 0.2 else good)[rng.integers(20)] for _ in range(1000)]) == []


def test_of_10_000_good_pictures_at_most_two_reports(pool):
    bands, good, *_ = pool
    assert len(told(bands, [good[number] for number in np.random.default_rng(0).integers(60, size=10_000)])) <= 2


@pytest.mark.parametrize("n", [20, 60])
def test_bands_of_many_draws_report_less_than_one_in_10_000_windows(n):
    """Values of any distribution: 200 000 bands, and of each a window of 50."""
    rng = np.random.default_rng(0)
    limit = drift.bands(dict.fromkeys(LIGHT, np.zeros(n)))[LIGHT[0]]["limit"]
    highest = rng.exponential(size=(200_000, n)).max(axis=1)
    over = (rng.exponential(size=(200_000, 50)) > highest[:, None]).sum(axis=1)
    assert (over >= limit).mean() < 1.5 * drift.CHANCE / 6
    assert (over >= limit - 3).mean() > drift.CHANCE / 6, "the limit is higher than it need be"


@pytest.mark.parametrize("n", [4, 20, 60, 400, 3000])
def test_the_limit_is_the_first_count_that_is_rare_enough(n):
    rank = max(1, int(0.005 * (n + 1)))
    chances = [1 - sum(betabinom.pmf(j, 50, rank, n + 1 - rank) for j in range(k)) for k in range(1, 51)]
    expected = next(k for k, chance in enumerate(chances, 1) if chance < 1e-4 / 8)
    assert drift.limit(n, 8) == expected


def test_too_few_pictures_can_tell_nothing_and_say_so():
    bands = drift.bands({"mean grey": [1.0, 2.0], "contrast": np.arange(60.0)})
    assert bands["mean grey"]["limit"] is None and bands["contrast"]["limit"] is not None
    assert drift.lines(bands)[-1] == "too few pictures to tell a change from chance: mean grey (2)"
    assert told(bands, [{"mean grey": 1e9, "contrast": 5.0}] * 100) == []


# ---- values

def test_values_are_those_of_the_grey_picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = drift.of_picture(data.Preprocess(image_size=(48, 40)).array(tmp_path / "a.png"))
    grey = pixels.mean(axis=2)
    sharpness = np.mean([abs(4 * grey[y, x] - grey[y - 1, x] - grey[y + 1, x] - grey[y, x - 1] - grey[y, x + 1])
                         for y in range(1, 39) for x in range(1, 47)])
    assert found == pytest.approx({"mean grey": grey.mean(), "contrast": grey.std(), "sharpness": sharpness}, rel=1e-4)


def test_what_does_not_count_has_no_part_in_the_values(tmp_path):
    pixels = np.random.default_rng(0).integers(90, 130, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[10:50, 12:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    preprocess, found = data.Preprocess(image_size=64, roi=str(tmp_path / "mask.png")), []
    for outside in (0, 255):
        Image.fromarray(np.where(mask[..., None] > 0, pixels, outside).astype(np.uint8)).save(tmp_path / "a.png")
        found.append(drift.of_picture(preprocess.array(tmp_path / "a.png")))
    assert found[0] == found[1] and 90 < found[0]["mean grey"] < 130
    assert drift.of_map(np.array([[-np.inf, 1.0], [2.0, 5.0]])) == 2


# ---- a watch

BANDS = {"mean grey": {"low": 0.0, "high": 1.0, "n": 60, "limit": 3}}


def test_it_is_said_once_with_name_and_side_and_again_after_it_was_over():
    watch, low, fine = drift.Watch(BANDS), {"mean grey": -1.0}, {"mean grey": 1.0}
    lines = [watch.see(low) for _ in range(60)]
    assert [bool(line) for line in lines] == [False, False, True, *[False] * 57]
    assert lines[2] == ["the light has changed: mean grey below that of good pictures, 0 to 1, in 3 of the last 3 "
                        "pictures (now -1)"]
    assert not any(watch.see(fine) for _ in range(49))
    assert [bool(watch.see(low)) for _ in range(3)] == [False, False, True]
    assert "above" in [*map(watch.see, [{"mean grey": 2.0}] * 3)][-1][0]


def test_more_than_50_pictures_ago_does_not_count():
    watch = drift.Watch(BANDS)
    for _ in range(20):
        assert not watch.see({"mean grey": 9.0})
        assert not any(watch.see({"mean grey": 0.5}) for _ in range(24))


def test_a_file_keeps_the_last_pictures_of_this_bundle_alone(tmp_path):
    file = tmp_path / "history.json"
    for number in range(3):
        watch = drift.Watch(BANDS, file, "one")
        assert bool(watch.see({"mean grey": 2.0})) == (number == 2)
        watch.save()
    assert not drift.Watch(BANDS, file, "one").see({"mean grey": 2.0}), "it was told before"
    assert not drift.Watch(BANDS, file, "other").seen
    for content in ("no json", "[]", '{"origin": "one", "values": [{}], "told": []}'):
        file.write_text(content)
        with pytest.raises(ThesisError, match=f"{file}: no history"):
            drift.Watch(BANDS, file, "one")


# ---- in a bundle

@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of pictures, its bundle): noise, 20 training and 10 test pictures."""
    root, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    for kind, count in (("train/good", 20), ("test/good", 10)):
        (root / "pad" / kind).mkdir(parents=True)
        for index in range(count):
            values = rng.integers(90, 130, (64, 64, 3)) + rng.integers(-3, 4)
            Image.fromarray(values.astype(np.uint8)).save(root / "pad" / kind / f"{index:03d}.png")
    detector = PatchCore(weights="random", layers=(1,), bank=20, calibration=4)
    export.export(detector, data.scan(root, "pad"), data.Preprocess(image_size=64), root / "bundle")
    return root, root / "bundle"


def test_a_bundle_has_bands_of_held_out_pictures_for_each_engine(exported):
    root, folder = exported
    opened, files = bundle.Bundle.open(folder), sorted((root / "pad/train/good").iterdir())
    light = [drift.of_picture(opened.image(file)[0]) for file in files]
    for engine in bundle.ENGINES:
        bands = opened.bands(engine)
        assert list(bands) == [*LIGHT, drift.MAP] and {one["n"] for one in bands.values()} == {20}
        for name in LIGHT:
            values = [one[name] for one in light]
            assert (bands[name]["low"], bands[name]["high"]) == pytest.approx((min(values), max(values)))
        # Pictures that were learned from: near those of the folds, which have not learned from them.
        seen = [found.values[drift.MAP] for _, found in run.detect(opened, files, engine=engine)]
        width = bands[drift.MAP]["high"] - bands[drift.MAP]["low"]
        assert abs(np.median(seen) - (bands[drift.MAP]["high"] + bands[drift.MAP]["low"]) / 2) < width
    assert opened.bands("float")[drift.MAP] != opened.bands("int8")[drift.MAP]


def test_detect_tells_of_other_light_and_remembers_it_from_call_to_call(exported, capsys, tmp_path):
    root, folder = exported
    files = sorted((root / "pad/test/good").iterdir())
    for file in files:
        Image.fromarray((np.asarray(Image.open(file)) * 1.3).astype(np.uint8)).save(tmp_path / file.name)
    bright = [str(file) for file in sorted(tmp_path.glob("*.png"))]

    def warnings(*arguments):
        assert main.main(["detect", str(folder), *map(str, arguments)]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "the light has changed" in line]

    assert warnings(*files * 5) == [] and warnings(*bright) == []
    limit = bundle.Bundle.open(folder).bands("float")["mean grey"]["limit"]
    assert 20 < limit < 30
    lines = [line for _ in range(4) for line in warnings(*bright, "--history", tmp_path / "history.json")]
    assert sum("mean grey above" in line for line in lines) == 1, lines
    assert lines[0].startswith("thesis: warning: the light has changed: ") and f"in {limit} of the last" in lines[0]


def test_a_bundle_of_before_bands_were_known_says_nothing_of_the_light(exported, capsys, tmp_path):
    root, folder = exported
    copy = shutil.copytree(folder, tmp_path / "copy")
    facts = json.loads((copy / bundle.FACTS).read_text())
    facts["format"] = 3
    del facts["added"]
    for one in facts["engines"].values():
        del one["bands"]
    (copy / bundle.FACTS).write_text(json.dumps(facts))
    (copy / bundle.SUMS).write_text(bundle.sums(copy))
    files = [str(file) for file in (root / "pad/test/good").iterdir()]
    assert main.main(["detect", str(copy), *files * 6]) == 0
    assert capsys.readouterr().err == ""
    (_, found), = run.detect(bundle.Bundle.open(copy), [root / "pad/test/good/000.png"])
    assert found.values == {}
