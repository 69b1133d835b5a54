"""A change of the light is told, defects and chance are not; a watch needs the bundle alone and remembers."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import betabinom

from thesis_lib import data
from thesis_lib.commands import main
from thesis_lib.core.errors import ThesisError
from thesis_lib.data import synthetic
from thesis_lib.device import bundle, drift, export, run
from thesis_lib.evaluation import crossfit
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


@pytest.fixture(scope="module")
def unlike(pool):
    """(values (300,) by name, of good parts that differ much in their light; of 400 others; of these 10 % brighter)."""
    rng, found = np.random.default_rng(2), []               # with seed 1 one in a hundred happens: mean grey wanders
    for count in (300, 400):
        grey = 164 + 15.5 * rng.standard_t(5, size=count)
        contrast, sharpness = 30 + 0.1 * (grey - 164) + rng.normal(0, 6, count), 3.6 + rng.normal(0, 1, count)
        found.append(dict(zip(LIGHT, (grey, contrast, sharpness), strict=True)))
    learned, others = found
    return learned, *([{name: factor * values[number] for name, values in others.items()} for number in range(400)]
                      for factor in (1, 1.1))


# ---- what the issue promises

def test_ten_percent_more_light_is_told_within_100_pictures(pool):
    bands, good, bright, _ = pool
    numbers = told(bands, good[:40] + (bright + bright)[:100])
    assert numbers and 40 < numbers[0] <= 140


def test_ten_percent_more_light_is_told_of_parts_that_differ_much(unlike):
    """Such as solar cells: hardly one leaves the band, but many more than a quarter lie above the quartile."""
    learned, good, bright = unlike
    bands, rng, found, by_ends = drift.bands(learned), np.random.default_rng(0), [], []
    ends = {name: {key: value for key, value in one.items() if key != "quarter"} for name, one in bands.items()}
    for _ in range(50):
        order = rng.permutation(400)
        stream = [good[number] for number in order[:60]] + [bright[number] for number in order[60:160]]
        numbers = told(bands, stream)
        found.append(bool(numbers) and numbers[0] > 60)
        by_ends.append(bool(told(ends, stream)))
    assert sum(found) >= 45 and sum(by_ends) <= 15


def test_what_is_told_says_which_count_it_was(unlike):
    learned, _, bright = unlike
    watch = drift.Watch(bands := drift.bands(learned))
    line = next(lines[0] for lines in map(watch.see, bright) if lines)
    count, limit = bands["mean grey"]["quarter"]["limit"], 29
    assert line.startswith(f"the light has changed: mean grey above {bands['mean grey']['quarter']['high']:.4g} in "
                           f"{limit} of the last ") and count == limit
    assert "pictures; of good ones a quarter is (now " in line


def test_a_fifth_of_defective_parts_is_not_told(pool):
    bands, good, _, bad = pool
    rng = np.random.default_rng(0)
    assert told(bands, [(bad if rng.random() < 0.2 else good)[rng.integers(20)] for _ in range(1000)]) == []


def test_of_10_000_good_pictures_at_most_two_reports(pool):
    bands, good, *_ = pool
    assert len(told(bands, [good[number] for number in np.random.default_rng(0).integers(60, size=10_000)])) <= 2


def test_of_10_000_parts_that_differ_much_at_most_two_reports(unlike):
    learned, good, _ = unlike
    stream = [good[number] for number in np.random.default_rng(0).integers(400, size=10_000)]
    assert len(told(drift.bands(learned), stream)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("n", [60, 300])
def test_of_10_000_good_pictures_each_drawn_anew_few_bands_raise_a_report(n):
    """100 bands of four values: on average less than one report, and nearly all bands at most two."""
    rng, reports, names = np.random.default_rng(0), [], (*LIGHT, drift.MAP)
    for _ in range(100):
        values = rng.exponential(size=(n + 10_000, 4))
        bands = drift.bands(dict(zip(names, values[:n].T, strict=True)))
        # The same counts as `Watch`, for all windows at once: whether any of them is over its limit at all.
        if not any((np.convolve(beyond, np.ones(50)) >= end["limit"]).any() for number, name in enumerate(names)
                   for end in (bands[name], bands[name]["quarter"]) if end
                   for beyond in (values[n:, number] < end["low"], values[n:, number] > end["high"])):
            reports.append(0)
            continue
        reports.append(len(told(bands, (dict(zip(names, row, strict=True)) for row in values[n:]))))
    assert np.mean(reports) < 1 and np.mean(np.array(reports) > 2) <= 0.03, reports


@pytest.mark.slow
def test_of_10_000_good_pictures_at_most_two_reports_with_the_median_of_the_map():
    """The medians of the band by folds, those of other pictures by the detector, as on a device."""
    pictures = [synthetic.render("weave", seed=5, index=index, size=64)[0] for index in range(500)]
    detector = PatchCore(weights="bundled", layers=(1,), bank=200)
    mean, std = (torch.tensor(one)[:, None, None] for one in (drift.IMAGENET_MEAN, drift.IMAGENET_STD))
    images = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255 - mean) / std

    def medians(numbers, learned):
        detector.fit(images[list(learned)].split(25))
        return crossfit.scores_and_medians(map(detector.predict, images[list(numbers)].split(25)))[:, 1]

    folds = np.array_split(np.arange(100), 20)
    held = np.concatenate([medians(fold, np.setdiff1d(np.arange(100), fold)) for fold in folds])
    others = medians(range(100, 500), range(100))
    values = [drift.of_picture(image.numpy()) | {drift.MAP: median}
              for image, median in zip(images, [*held, *others], strict=True)]
    bands = drift.bands({name: [one[name] for one in values[:100]] for name in values[0]})
    assert all(bands[name]["quarter"] for name in LIGHT)
    stream = np.random.default_rng(0).integers(100, 500, size=10_000)
    assert len(told(bands, [values[number] for number in stream])) <= 2


@pytest.mark.parametrize(("n", "name"), [(20, "limit"), (60, "limit"), (60, "quarter")])
def test_bands_of_many_draws_report_less_than_one_in_10_000_windows(n, name):
    """Values of any distribution: 200 000 bands, and of each a window of 50."""
    rng = np.random.default_rng(1)
    one = drift.bands(dict.fromkeys(LIGHT, rng.normal(size=n)))[LIGHT[0]]
    limit, place = (one["limit"], n) if name == "limit" else (one["quarter"]["limit"], n + 1 - (n + 1) // 4)
    highest = np.sort(rng.exponential(size=(200_000, n)), axis=1)[:, place - 1]
    over = (rng.exponential(size=(200_000, 50)) > highest[:, None]).sum(axis=1)
    assert (over >= limit).mean() < 2 * drift.CHANCE / 12
    assert (over >= limit - 3).mean() > drift.CHANCE / 12, "the limit is higher than it need be"


@pytest.mark.parametrize(("share", "n"), [(drift.QUARTER, 4), (drift.QUARTER, 61), (drift.SHARE, 61)])
def test_the_limit_of_an_end_is_that_of_its_share(share, n):
    rank = max(1, int(share * (n + 1)))
    chances = [betabinom.sf(k - 1, 50, rank, n + 1 - rank) for k in range(1, 51)]
    assert drift.limit(n, 16, share) == next((k for k, chance in enumerate(chances, 1) if chance < 1e-4 / 16), None)


# ---- neighbours

def wandering(rng, n, kind):
    if kind == "trend":
        return np.linspace(0, 2, n) + rng.normal(size=n)
    if kind == "lots":                                      # of ten, each in a light of its own
        return np.repeat(rng.normal(size=-(-n // 10)), 10)[:n] + rng.normal(size=n)
    values = [rng.normal()]
    for _ in range(n - 1):
        values.append(0.9 * values[-1] + rng.normal(0, np.sqrt(1 - 0.9**2)))
    return np.array(values)


@pytest.mark.parametrize("n", [60, 300])
@pytest.mark.parametrize("kind", ["trend", "lots", "autoregressive"])
def test_values_that_resemble_their_neighbours_wander(kind, n):
    rng = np.random.default_rng(0)
    assert sum(drift.wanders(wandering(rng, n, kind)) for _ in range(10)) >= (5 if n == 60 else 9)


def test_values_in_no_order_wander_as_seldom_as_chance_has_it():
    rng = np.random.default_rng(0)
    assert sum(drift.wanders(rng.exponential(size=60)) for _ in range(200)) <= 6
    assert not drift.wanders([]) and not drift.wanders([1.0, 2.0]) and not drift.wanders(np.zeros(60))


def test_of_values_that_wander_the_quartiles_are_not_counted_and_export_says_so():
    rng = np.random.default_rng(0)
    bands = drift.bands({"mean grey": wandering(rng, 300, "autoregressive"), "contrast": rng.normal(size=300)})
    assert bands["mean grey"]["quarter"] is None and bands["contrast"]["quarter"]
    assert drift.lines(bands)[-1] == ("neighbouring pictures resemble each other, so that only what leaves these ends "
                                      "is told: mean grey")
    among = {"mean grey": bands["mean grey"]["high"] - 0.01, "contrast": 0.0}
    assert told(bands, [among] * 100) == [] and told(bands, [{**among, "contrast": 1.0}] * 100) == [29]




@pytest.mark.parametrize("n", [4, 20, 60, 400, 3000])
def test_the_limit_is_the_first_count_that_is_rare_enough(n):
    rank = max(1, int(0.005 * (n + 1)))
    chances = [1 - sum(betabinom.pmf(j, 50, rank, n + 1 - rank) for j in range(k)) for k in range(1, 51)]
    expected = next(k for k, chance in enumerate(chances, 1) if chance < 1e-4 / 8)
    assert drift.limit(n, 8) == expected


def test_too_few_pictures_can_tell_nothing_and_say_so():
    bands = drift.bands({"mean grey": [1.0, 2.0], "contrast": np.arange(60.0) % 7})
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


def test_both_counts_of_a_side_are_one_change():
    """It is said once, by whichever count reaches its limit, and is over when neither count has half of its own."""
    bands = {"mean grey": BANDS["mean grey"] | {"quarter": {"low": 0.3, "high": 0.7, "limit": 10}}}
    watch = drift.Watch(bands)
    lines = [watch.see({"mean grey": value}) for value in (*[0.8] * 12, *[2.0] * 4)]
    assert [number for number, line in enumerate(lines, 1) if line] == [10]
    assert lines[9] == ["the light has changed: mean grey above 0.7 in 10 of the last 10 pictures; of good ones a "
                        "quarter is (now 0.8)"]
    assert not any(watch.see({"mean grey": 0.5}) for _ in range(48)) and ("mean grey", "above") in watch.told
    watch.see({"mean grey": 0.5})                           # one of the 50 is left
    assert not watch.told


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
