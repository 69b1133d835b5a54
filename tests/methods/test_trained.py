"""A training that is killed goes on to the same row; what of the code and the machine its numbers depend on."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from thesis_lib.core import identity, paths, results
from thesis_lib.evaluation import scores
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.methods import METHODS
from thesis_lib.methods.trained import Trained

# One line for every trained method: options that make it last some seconds and no longer.
COMMANDS = {
    "efficientad": ["--weights=random", "--steps=60", "--penalty=procedural", "--snapshots=2"],
    "simplenet": ["--weights=random", "--layers=1", "--hidden=64", "--epochs=60", "--passes=2", "--snapshots=2"],
    "uninformed_students": ["--weights=random", "--layers=1", "--patch-sizes=33", "--channels=4", "--source=nominal",
                            "--teacher-steps=20", "--teacher-batch=16", "--epochs=20", "--snapshots=2"],
}
TIMES = {"fit_s", "peak_memory_gb", "finished", "stamp"}


@pytest.mark.parametrize("method", [pytest.param(name, marks=pytest.mark.slow) if name == "efficientad" else name
                                    for name in COMMANDS])
def test_killed_and_started_again_ends_with_the_same_row(method, make_category, tmp_path):
    root = make_category(train=4, good=3, bad=3)

    def start(outputs):
        command = [sys.executable, "-m", "thesis_lib.commands.main", "evaluate", method, "--data", str(root),
                   "--category", "pad", "--image-size=64", "--seeds=1", "--threads=1", "--checkpoint-s=0",
                   *COMMANDS[method]]
        return subprocess.Popen(command, env=os.environ | {"THESIS_OUTPUTS": str(tmp_path / outputs)},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def row(outputs):
        (file,) = (tmp_path / outputs / "results").glob("auroc-*.json")
        found = json.loads(file.read_text())
        found["training"].pop("seconds")
        return {key: value for key, value in found.items() if key not in TIMES}

    whole = start("whole")
    killed = start("parts")
    checkpoints = tmp_path / "parts" / "checkpoints"
    while not list(checkpoints.glob("*.checkpoint")) and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it must not have ended by itself"
    assert not (tmp_path / "parts" / "results").exists()
    again = start("parts")
    errors = again.communicate()[1]
    assert again.returncode == 0 and "going on after step" in errors, errors
    assert whole.communicate() and whole.returncode == 0
    assert row("parts") == row("whole")


def test_every_trained_method_is_here():
    assert set(COMMANDS) == {name for name, method in METHODS.items() if issubclass(method, Trained)}


@pytest.fixture
def edit(tmp_path, monkeypatch):
    """edit(module, "Class.method" or "function") puts a line into a copy of the library, where code is read from."""
    package = tmp_path / "thesis_lib"
    shutil.copytree(paths.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "weights", "reference"))
    monkeypatch.setattr(paths, "PACKAGE", package)
    identity._file.cache_clear()

    def change(module, part, line="edited = 1", place=-1):
        file = package.joinpath(*module.split(".")).with_suffix(".py")
        text = file.read_text(encoding="utf-8")
        node, lines = ast.parse(text), text.splitlines()
        for name in part.split("."):
            (node,) = (inner for inner in node.body if getattr(inner, "name", None) == name)
        statement = node.body[place]
        lines.insert(statement.lineno - 1, " " * statement.col_offset + line)
        file.write_text("\n".join(lines), encoding="utf-8")

    yield change
    identity._file.cache_clear()


def codes():
    """Method -> what the steps of its training run through."""
    return {method: METHODS[method](weights="random", **{} if method == "efficientad" else {"layers": (1,)}).code()
            for method in COMMANDS}


def stale(before):
    return {method for method, code in codes().items() if code != before[method]}


@pytest.mark.parametrize(("method", "part"), [
    ("simplenet", "SimpleNet.losses"), ("simplenet", "SimpleNet.architecture"), ("simplenet", "SimpleNet.optimizers"),
    ("simplenet", "SimpleNet.gather"), ("simplenet", "pictures_of"), ("simplenet", "measure_norm"),
    ("efficientad", "EfficientAD.losses"), ("efficientad", "EfficientAD.prepare"),
    ("efficientad", "EfficientAD._taken"), ("efficientad", "EfficientAD.calibrate"),
    ("efficientad", "hard_loss"), ("efficientad", "_differences"),
    ("uninformed_students", "UninformedStudents.losses"), ("uninformed_students", "UninformedStudents._teacher"),
    ("uninformed_students", "UninformedStudents._compared"), ("uninformed_students", "describe")])
def test_an_edit_of_what_the_steps_run_through_is_other_code(edit, method, part):
    before = codes()
    edit(f"methods.{method}", part)
    assert stale(before) == {method}
    assert identity.unlike(before[method], codes()[method]) == [f"thesis_lib.methods.{method}"]


@pytest.mark.parametrize(("method", "part"), [
    ("simplenet", "SimpleNet.stages"), ("simplenet", "fold"), ("efficientad", "EfficientAD._score"),
    ("efficientad", "EfficientAD.stages"), ("efficientad", "EfficientAD.on"), ("efficientad", "EfficientAD._outputs"),
    ("uninformed_students", "UninformedStudents._score"), ("uninformed_students", "UninformedStudents.stages"),
    ("trained", "Trained.at"), ("trained", "Trained.restore"),
    ("base", "Detector.predict"), ("base", "blur")])
def test_an_edit_of_what_only_scores_is_not(edit, method, part):
    before = codes()
    edit(f"methods.{method}", part)
    assert not stale(before)


@pytest.mark.parametrize("method", COMMANDS)
@pytest.mark.parametrize("line", ['"""Another docstring."""', "# another comment"])
def test_a_docstring_and_a_comment_are_not(edit, method, line):
    before = codes()
    edit(f"methods.{method}", f"{METHODS[method].__name__}.losses", line, place=0)
    assert not stale(before)


@pytest.mark.parametrize(("module", "part", "methods"), [
    ("methods.trained", "Trained.train", set(COMMANDS)), ("training.descent", "descend", set(COMMANDS)),
    ("methods.trained", "standard", {"efficientad", "uninformed_students"}),
    ("methods.trained", "held_out", {"efficientad", "uninformed_students"}),
    ("methods.base", "PatchDetector.embed_of", {"simplenet"}),
    ("patches.embedding", "Pooled.width", set(COMMANDS)),
    ("training.teachers", "cut", {"uninformed_students"}), ("networks.backbones", "load", set(COMMANDS)),
    ("networks.autoencoder", "build", {"efficientad"})])
def test_an_edit_below_is_other_code_for_whoever_runs_through_it(edit, module, part, methods):
    before = codes()
    edit(module, part)
    assert stale(before) == methods


@pytest.mark.parametrize("method", COMMANDS)
def test_torch_devices_never_share_a_row(method, pad, small):
    """The CPU is neutral: rows that were measured before there was a choice stay."""
    options = {"source": "nominal"} if method == "uninformed_students" else {}
    subjects = {torch_device: scores.subject(METHODS[method](weights="random", torch_device=torch_device, **options),
                                             pad, small, seed=0) for torch_device in ("cpu", "cuda", "cuda:1")}
    for kind in ("auroc", "time"):
        assert len({results.row_id(kind, about) for about in subjects.values()}) == 3
    row = json.loads(json.dumps(subjects["cpu"]))
    del row["parameters"]["torch_device"]
    assert Configuration.from_row(row).id == subjects["cpu"]["configuration"]
