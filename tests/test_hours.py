"""Hours of a profile that was never run, against counts made by hand."""

import json

import pytest

from thesis_lib import backbones, batch, devices, hours, results

ROW = {"method": "patchcore", "category": "granulate", "seed": 0, "configuration": "c",
       "weights": {"source": "bundled"},
       "parameters": {"backbone": "resnet18", "layers": [2], "embedding": "avg_k3_s1_p1", "bank": 1000,
                      "projection": None, "engine": "eager", "weights": "bundled"},
       "preprocess": {"image_size": 256, "crop": None}}
SCORED = {"n_train": 60, "n_test_good": 20, "n_test_defective": 30, "pixel_auroc": None, "labels": [], "scores": []}
START, SECONDS = 10.0, 110.0


@pytest.fixture
def executed(monkeypatch):
    """executed(rows of 07) -> the tasks of the profile demo whose last execution left them, and one that left none."""
    monkeypatch.setattr(results, "stamp", lambda: {})

    def execute(*rows, stem="07"):
        tasks = batch.plan("demo", only=[stem, "15"])
        ids = [results.save(row.pop("kind"), {**ROW, **row.pop("subject", {})}, row)["id"] for row in rows]
        for task in tasks:
            seconds, found = (START, []) if task.name.startswith("15") else (SECONDS, ids)
            task.record.parent.mkdir(parents=True, exist_ok=True)
            task.record.write_text(json.dumps({"state": "done", "seconds": seconds, "rows": found, "parameters":
                                               task.effective, "finished": "2020-01-01T00:00:00+00:00"}))
        return tasks

    return execute


def hour(tasks, profile="mvtec", **options):
    (line,) = hours.estimate(batch.plan(profile, only=[tasks[0].name], **options), tasks, hours.mvtec()).itertuples()
    return line


def test_pictures_are_those_of_table_2_1():
    pictures = hours.mvtec()
    assert len(pictures) == 15 and pictures["screw"] == (320, 160)
    assert [sum(numbers) for numbers in zip(*pictures.values(), strict=True)] == [3629, 467 + 1258]


def test_the_rest_grows_as_the_multiplications(executed):
    """Network, coreset and search of ResNet-18 level 2: 32 x 32 positions of 128 numbers."""
    tasks = executed({"kind": "auroc", **SCORED})
    line = hour(tasks, categories=["screw"])

    def macs(backbone, train, test, dim, seeds):
        return ((train + test) * devices.cut(backbone, (2,), 256).macs
                + seeds * 1000 * 1024 * dim * (train + test))

    ratio = macs("wide_resnet50_2", 320, 160, 512, 1) / macs("resnet18", 60, 50, 128, 1)
    assert backbones.shapes("wide_resnet50_2", (2,))[0] == {2: 512}
    assert line.hours == pytest.approx((START + (SECONDS - START) * ratio) / 3600)
    assert line.training == line.evaluated == line.found == 0


def test_seeds_repeat_what_depends_on_them(executed):
    tasks = executed(*({"kind": "auroc", "subject": {"seed": seed}, **SCORED} for seed in range(3)))
    network, others = 110 * devices.cut("resnet18", (2,), 256).macs, 1000 * 1024 * 128 * 110
    wide, more = 480 * devices.cut("wide_resnet50_2", (2,), 256).macs, 1000 * 1024 * 512 * 480
    ratio = (wide + 5 * more) / (network + 3 * others)
    assert hour(tasks, categories=["screw"]).hours == pytest.approx((START + (SECONDS - START) * ratio) / 3600)


def test_a_training_costs_its_steps_and_pixels(executed):
    """EfficientAD of the profile mvtec: 70000 steps on 256 pixels, whatever the execution itself took."""
    given = batch.plan("demo", only=["13"])[0].effective
    row = {"kind": "auroc", **SCORED, "fit_s": 50.0, "training": {"seconds": 30.0}, "subject": {
        "method": "efficientad", "category": given["category"], "weights": {"source": "random"},
        "parameters": {"backbone": "pdn_small", "weights": "random", "steps": given["steps"], "engine": "eager"},
        "preprocess": {"image_size": given["image_size"], "crop": None}}}
    line = hour(executed(row, stem="13"))
    expected = 30 * 70000 / given["steps"] * (256 / given["image_size"])**2 / 3600
    assert line.training == pytest.approx(expected) and line.hours > expected


def test_rows_that_were_only_read_and_networks_without_weights_are_told(executed, monkeypatch):
    timed = {"kind": "time", "subject": {"configuration": "t", "weights": {"source": "random"},
                                         "protocol": {"pictures": 2, "batch_size": 1}}}
    tasks = executed({"kind": "auroc", **SCORED}, timed)
    record = json.loads(tasks[0].record.read_text())
    tasks[0].record.write_text(json.dumps(record | {"finished": "2199-01-01T00:00:00+00:00"}))
    line = hour(tasks, categories=["screw"])
    assert line.found == 1 and line.evaluated > 0


def test_a_notebook_that_was_not_executed_has_no_hours(executed):
    table = hours.estimate(batch.plan("mvtec", only=["07", "08"], categories=["screw", "pill"]), executed(
        {"kind": "auroc", **SCORED}), hours.mvtec())
    assert list(table["hours"].notna()) == [True, True, False, False]


def test_a_notebook_that_collects_rows_takes_its_time_again(executed):
    tasks = executed({"kind": "auroc", **SCORED}, stem="16")[::-1]          # 16 runs last
    line = hour(tasks)
    assert line.hours == pytest.approx(SECONDS / 3600) and line.training == 0


def test_workers_and_makespan():
    assert hours.makespan([0.6, 0.5, 0.4, 0.3], 2) == pytest.approx(0.9)
    assert hours.workers([0.6, 0.5, 0.4, 0.3]) == 2 and hours.workers([0.5, 1.2]) is None and hours.workers([]) == 1
    for count in (1, 2, 3):
        assert hours.makespan([0.6, 0.5, 0.4, 0.3], count) >= max(0.6, 1.8 / count) - 1e-12
