"""What a batch says while it runs: the heading of the cell, and that a notebook is late; in a log and in a terminal."""

import io
import os
import shutil
import sys

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from thesis_lib.batch import live
from thesis_lib.batch import run as runner
from thesis_lib.batch.plan import plan

WAIT = "import time\ntime.sleep(0.7)"           # long enough to be seen


@pytest.fixture
def folder(tmp_path):
    """Two tiny notebooks, each with a heading above each of two cells."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("01_one", "02_two"):
        cells = [new_markdown_cell(f"# Title of {name}"),
                 new_code_cell("seeds: int = 5", metadata={"tags": ["parameters"]}),
                 new_markdown_cell(f"Text.\n\n## First of {name}\n\nMore text."), new_code_cell(WAIT),
                 new_markdown_cell("No heading."), new_code_cell(WAIT),
                 new_markdown_cell(f"### Second of {name}"), new_code_cell(WAIT)]
        nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    (folder / "runs.yml").write_text(yaml.safe_dump({"smoke": {"timeout_s": 60}}), encoding="utf-8")
    return folder


def cell(kind, source, status=None):
    return {"cell_type": kind, "source": source, "metadata": {"papermill": {"status": status}}}


@pytest.mark.parametrize(("states", "expected"), [
    (("running", "pending"), "Second  part"), (("completed", "running"), "Third"), (("completed", "completed"), None)])
def test_the_heading_is_the_last_one_above_the_cell_that_runs(states, expected):
    """A comment of code in a text is none."""
    cells = [cell("markdown", ["# Title\n", "text\n", "## Second  part \n", "```sh\n", "# a comment\n", "```\n"]),
             cell("markdown", "#nothing"), cell("code", "", states[0]),
             cell("markdown", "### Third"), cell("code", "", states[1])]
    assert live.heading_of(cells) == expected
    assert live.heading_of([*cells[1:2], cell("code", "", "running")]) is None


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_heading_is_told_once_and_in_its_order(folder, jobs, capsys):
    runner.run(plan("smoke", notebooks=folder), jobs=jobs)
    shown = capsys.readouterr().out
    for number, name in enumerate(("01_one", "02_two"), 1):
        own = [line for line in shown.splitlines() if line.startswith(f"[{number}/2] {name}  at: ")]
        told = [line.partition("  at: ")[2] for line in own]
        assert [text for text in told if not text.startswith("Title")] == [f"First of {name}", f"Second of {name}"]
    assert "\r" not in shown and "\x1b" not in shown, "a log file knows no terminal"
    assert "late" not in shown, "they were never here before"


def test_a_notebook_is_late_by_its_last_time_here(folder, monkeypatch):
    """Once, and only against the same parameters."""
    tasks = plan("smoke", notebooks=folder, only="01")
    (first,) = runner.run(tasks, report=lambda line: None)
    monkeypatch.setattr(live, "LATE_S", -first.seconds)
    lines = []
    runner.run(tasks, force=True, report=lines.append)
    assert [line for line in lines if "late" in line] == [
        f"[1/1] 01_one  late: its last time here took {first.seconds:.0f} s"]
    lines.clear()
    runner.run(plan("smoke", notebooks=folder, only="01", overrides={"seeds": 1}), report=lines.append)
    assert not any("late" in line for line in lines)


def test_not_before_a_minute_has_passed(tmp_path, monkeypatch):
    said, clock = [], iter([0.0, 70.0, 71.0, 72.0])
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    look = live.watch(tmp_path / "none.ipynb", 10.5, said.append, said.append)
    look()
    assert not said
    look()
    look()
    assert said == ["late: its last time here took 10 s"]


def test_in_a_terminal_one_line_changes(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda **_: os.terminal_size((30, 24)))
    board = live.Board(["01_one", "02_two"])
    board.at(2, "The pictures")
    board.at(1, "A long heading")
    board.say(2, "done")
    board.end(2)
    board.end(1)
    assert screen.getvalue().split(live.ERASE)[1:] == [
        "02_two: The pictures", "01_one: A long heading | 02_t", "[2/2] 02_two  done\n",
        "01_one: A long heading | 02_t", "01_one: A long heading", ""], "a line is cut before it would wrap"
