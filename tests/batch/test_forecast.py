"""How long a batch will take, by records that are written here by hand."""

import json

import pytest
import yaml

from tests.batch.test_run import write
from thesis_lib.batch import forecast
from thesis_lib.batch.plan import plan

TRAINED = ('category: str = "granulate"\nseeds: int = 2\nsteps: int = 10\nepochs: int = 0\n'
           'teacher_steps: int = 5\nrate: float = 0.1')
PICTURES = {"granulate": 100, "screw": 450}
SECONDS = 720.0             # of every execution that is on record


@pytest.fixture
def planned(tmp_path):
    """planned(profile) -> its tasks: a training, a notebook that collects, and one that is never on record."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write(folder, "01_training", "print(seeds)", parameters=TRAINED)
    write(folder, "02_collects", "print(seeds)", parameters='seeds: int = 2\ndata: str = "demo"')
    write(folder, "03_new", "print(seeds)", parameters=TRAINED)
    profiles = {"here": {}, "screw": {"category": "screw"}, "seeds": {"seeds": 5}, "steps": {"steps": 70},
                "teacher": {"teacher_steps": 10}, "epochs": {"epochs": 4}, "rate": {"rate": 0.5},
                "all": {"category": "screw", "seeds": 5, "steps": 70}}
    (folder / "runs.yml").write_text(yaml.safe_dump({name: {"timeout_s": 60, "defaults": given}
                                                     for name, given in profiles.items()}), encoding="utf-8")
    return lambda profile: plan(profile, notebooks=folder)


def recorded(tasks, **facts):
    """The first two of them, as if they had been executed."""
    for task in tasks[:2]:
        task.record.parent.mkdir(parents=True, exist_ok=True)
        task.output.write_text("{}", encoding="utf-8")
        task.record.write_text(json.dumps({"state": "done", "key": task.key, "parameters": task.effective,
                                           "seconds": SECONDS, "peak_memory_gb": 1.5} | facts), encoding="utf-8")
    return tasks


@pytest.mark.parametrize(("profile", "training", "collecting"), [
    ("here", 1, 1), ("screw", 4.5, 1), ("seeds", 2.5, 2.5), ("steps", 7, 1), ("teacher", 2, 1), ("rate", 1, 1),
    ("epochs", 1, 1), ("all", 4.5 * 2.5 * 7, 2.5)])
def test_hours_grow_with_pictures_seeds_and_steps(planned, profile, training, collecting):
    """The rate costs nothing; of no epochs (the notebook then chooses by itself) nothing can be said."""
    found = forecast.hours(planned(profile), recorded(planned("here")), PICTURES)
    assert list(found) == ["01_training", "02_collects", "03_new"]
    assert found["01_training"] == pytest.approx(0.2 * training)
    assert found["02_collects"] == pytest.approx(0.2 * collecting)
    assert found["03_new"] is None, "it was never executed"


def test_an_execution_that_failed_says_nothing(planned):
    found = forecast.hours(planned("all"), recorded(planned("here"), state="failed"), PICTURES)
    assert set(found.values()) == {None}


def test_a_category_on_record_as_it_is_planned(planned):
    """Every category of a profile is told by the one that was executed."""
    wanted, measured = planned("screw"), recorded(planned("screw"))
    assert forecast.hours(wanted, measured, PICTURES)["01_training"] == pytest.approx(0.2)
    assert forecast.hours(planned("here"), measured, PICTURES)["01_training"] == pytest.approx(0.2 / 4.5)


def test_the_estimate_is_one_line(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast.memory, "usable_bytes", lambda: 8e9)
    tasks = planned("here")
    assert forecast.estimate(tasks) == ("3 notebooks, 0 up to date; to run 3: 3 never timed here; 0 pictures in demo; "
                                        "1000 GB free on disk")
    recorded(tasks)
    assert forecast.estimate(tasks) == ("3 notebooks, 2 up to date; to run 1: 1 never timed here; 0 pictures in demo; "
                                        "1000 GB free on disk")
    assert forecast.estimate(tasks[:2]) == "2 notebooks, 2 up to date"
    recorded(tasks, key="of other code")
    for folder, count in (("train/good", 3), ("ground_truth/hole", 2)):
        place = tmp_path / "data/demo/pad" / folder
        place.mkdir(parents=True)
        for number in range(count):
            (place / f"{number}.png").touch()
    told = ("3 notebooks, 0 up to date; to run 3: about {} min by their last times and 1 never timed here; "
            "memory up to {} GB of 8; 3 pictures in demo; 1000 GB free on disk")
    assert forecast.estimate(tasks) == told.format(24, 1.5)
    assert forecast.estimate(tasks, jobs=2) == told.format(12, "3.0")
    assert forecast.estimate(tasks, jobs=8) == told.format(8, "3.0"), "as many at a time as there are"


def test_force_asks_for_all_of_them_again(planned):
    tasks = recorded(planned("here"))[:2]
    assert forecast.estimate(tasks, force=True).startswith("2 notebooks, 0 up to date; to run 2: about 24 min by their")
