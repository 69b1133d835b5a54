"""What the table of robustness says is what a detector says of pictures that were changed by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from thesis_lib import data
from thesis_lib.commands import main
from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import robustness as room
from thesis_lib.evaluation.robustness import STEPS, robustness
from thesis_lib.methods import PaDiM, PatchCore
from thesis_lib.patches.embedding import OUTSIDE

pytestmark = pytest.mark.usefixtures("networks_built_once")
DETECTOR = PatchCore(weights="random", layers=(1,), bank=20)


@pytest.fixture
def category(make_category):
    return data.scan(make_category(train=6, good=4, bad=3, size=80), "pad")


def scores(detector, samples, preprocess):
    return detector.predict(torch.cat(list(data.Pictures(samples, preprocess)))).score.double().numpy()


def changed(samples, folder, change):
    """The samples with files that were changed by a function of an array (H, W, 3) of floats."""
    made = []
    for number, sample in enumerate(samples):
        values = change(np.asarray(Image.open(sample.path)).astype(float), number)
        file = folder / f"{number}.png"
        Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).save(file)
        made.append(replace(sample, path=file))
    return made


def test_a_row_for_each_change_and_step_by_hand_for_light_and_shift(category, small, tmp_path):
    detector = replace(DETECTOR).fit(data.Pictures(category.train, small))
    good = category.labels == 0
    plain = scores(detector, category.test, small)
    threshold = float(plain[good].max())
    table = robustness(detector, category.test, small, threshold, batch_size=3)
    assert len(table) == 1 + sum(map(len, STEPS.values())) + 2
    rows = table.set_index(["change", "step"])
    spread = np.subtract(*np.quantile(plain[good], [0.75, 0.25]))

    def inner(values, number, share):       # 2 % of 80 pixels are 2, and a border of 2 * 2 % of the side and a pixel
        right, down = np.array(room.DIRECTIONS[number % 4]) * round(share * 80)
        start = (80 - (int(80 * 0.96) - 2)) // 2
        return values[start + down:80 - start + down, start + right:80 - start + right]

    cases = {("brightness", 0.1): (lambda values, _: values * 1.1, None),
             ("contrast", -0.2): (lambda values, _: values.mean() + 0.8 * (values - values.mean()), None),
             ("shift", 0.02): (lambda values, number: inner(values, number, 0.02),
                               lambda values, number: inner(values, number, 0))}
    for key, (change, untouched) in cases.items():
        after = scores(detector, changed(category.test, tmp_path, change), small)
        before = scores(detector, changed(category.test, tmp_path, untouched), small) if untouched else plain
        row = rows.loc[key]
        assert row["shift"] == pytest.approx(np.median((after - before)[good]), abs=1e-6)
        assert row["shift_iqr"] == pytest.approx(row["shift"] / spread)
        assert row["false_alarms"] == (after > threshold)[good].mean() and row["n_good"] == 4
        assert row["recall"] == (after > threshold)[~good].mean() and row["n_defective"] == 3
    first = table.iloc[0]
    assert (first["label"], first["shift"], first["false_alarms"], first["recall"]) == ("untouched", 0, 0, 1)
    # Of 80 pixels 0.2 % are 0.16: no grey level changes by such a blur.
    nothing = [("untouched", 0), ("rotation", 0), ("shift", 0), ("blur", 0.001), ("blur", 0.002)]
    assert (rows["shift"].drop(nothing).abs() > 1e-6).all(), "no change"


def test_the_same_seed_gives_the_same_noise_and_defects_are_not_needed(category, small):
    detector = replace(DETECTOR).fit(data.Pictures(category.train, small))
    good = [sample for sample in category.test if not sample.label]
    first, again, other = (robustness(detector, good, small, 1.0, steps={"noise": (5,)}, seed=seed, spread=2.0)
                           for seed in (0, 0, 1))
    assert first.equals(again) and not first.equals(other)
    assert first["recall"].isna().all() and (first["n_defective"] == 0).all()
    assert first["shift_iqr"].tolist() == (first["shift"] / 2).tolist()


@pytest.mark.parametrize("change", room.GEOMETRIC)
@pytest.mark.parametrize("number", range(4))
def test_nothing_is_invented_at_a_border(change, number):
    """A picture without a black pixel has none afterwards, whatever its shape; and the cut has its aspect."""
    for size in ((90, 240), (200, 120)):
        picture = Image.fromarray(np.full((*size[::-1], 3), 200, dtype=np.uint8))
        for step in (0, *STEPS[change]):
            moved, _ = room._moved(picture, data.Preprocess(), change, step, max(STEPS[change]), number)
            assert np.asarray(moved).min() == 200
            assert moved.width / moved.height == pytest.approx(size[0] / size[1], rel=0.03)
            assert min(moved.width / size[0], moved.height / size[1]) > 0.85


def test_rotations_turn_the_picture():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 200, 3))
    slopes = []
    for number in (0, 1):
        picture = Image.fromarray(np.ascontiguousarray(ramp))
        moved, _ = room._moved(picture, data.Preprocess(), "rotation", 2.0, 2.0, number)
        grey = np.asarray(moved).astype(float)[..., 0]
        slopes.append((grey[:, -1] - grey[:, 0]).mean() / (grey.shape[1] - 1))
    assert sorted(slopes) == pytest.approx([-np.tan(np.radians(2)), np.tan(np.radians(2))], rel=0.1)


def test_a_region_of_interest_stays_where_the_camera_is(category, small, tmp_path):
    """A rectangle is what the picture is cut to before; of a mask the same part is cut as of the picture."""
    picture = Image.open(category.test[0].path)
    moved, prepared = room._moved(picture, replace(small, roi=(10, 10, 60, 50)), "shift", 0, 0.02, 0)
    assert prepared.roi is None and moved.size == (int(60 * 0.96) - 2, int(50 * 0.96) - 2)
    mask = np.zeros((80, 80), dtype=np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for preprocess in (replace(small, roi=str(tmp_path / "mask.png")), replace(small, roi=(10, 10, 60, 50)),
                       replace(small, resize="pad", image_size=(64, 96))):
        detector = replace(DETECTOR).fit(data.Pictures(category.train, preprocess))
        table = robustness(detector, category.test, preprocess, 1.0,
                           steps={"rotation": (1,), "shift": (0.02,), "brightness": (0.1,)})
        assert np.isfinite(table[["shift", "shift_iqr", "false_alarms", "recall"]].to_numpy(float)).all()
    masked = replace(small, roi=str(tmp_path / "mask.png"))
    for batch in room._changed(category.test, masked, "shift", 0.02, 0.02, 0, 8):
        assert batch.shape[1:] == (4, 64, 64) and 0.4 < batch[:, 3].mean() < 0.6
        detector = replace(DETECTOR).fit(data.Pictures(category.train, masked))
        assert (detector.predict(batch).map[..., :7] == OUTSIDE).all()


@pytest.mark.parametrize(("options", "told"), [
    ({"steps": {"fog": (1,)}}, "'fog' is no change; there are brightness"),
    ({"steps": {"rotation": (60,)}}, "rotation by 60; needs 0 to 45"),
    ({"steps": {"shift": (0.25,), "rotation": (44,)}}, None), ({"samples": "bad"}, "good parts, there is none")])
def test_what_cannot_be_done_is_named(category, small, options, told):
    detector = replace(DETECTOR).fit(data.Pictures(category.train, small))
    samples = [sample for sample in category.test if sample.label] if "samples" in options else category.test
    if told is None:
        robustness(detector, samples, small, 1.0, steps=options["steps"])
        return
    with pytest.raises(ThesisError, match=told):
        robustness(detector, samples, small, 1.0, steps=options.get("steps", STEPS))


def test_a_picture_that_a_change_leaves_nothing_of_is_named(category, small):
    detector = PaDiM(weights="random", layers=(1,), channels=4).fit(data.Pictures(category.train, small))
    preprocess = replace(small, roi=(0, 0, 20, 20))
    with pytest.raises(ThesisError, match=r"000.png: its 20x20 pixels leave 8x8 after a shift by 0.25; needs a larger"):
        robustness(detector, category.test, preprocess, 1.0, steps={"shift": (0.25,)})


def test_the_command_prints_the_table_and_refuses_without_good_test_pictures(make_category, capsys):
    root = make_category(train=10, good=3, bad=2)
    command = ["robustness", "patchcore", "--data", str(root), "--category", "pad", "--weights", "random", "--layers",
               "1", "--image-size", "64", "--bank", "20", "--false-alarms", "10%"]
    assert main.main([*command, "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    answer = json.loads(printed[-1])
    assert len(answer["robustness"]) == 26 and answer["robustness"][0]["label"] == "untouched"
    (line,) = [line for line in printed[:-1] if "brightness +10 %" in line]
    assert "IQR  flagged " in line and " of 3 good  found " in line and line.endswith(" of 2")
    for file in (root / "pad/test/good").iterdir():
        file.unlink()
    assert main.main(command) == 2
    assert "pad: robustness needs good test pictures, there is none" in capsys.readouterr().err
