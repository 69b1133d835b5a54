"""The batch: mistakes are found before the start, failures stay alone, nothing is lost and nothing runs on."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import nbformat
import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from thesis_lib.batch import run as runner
from thesis_lib.batch import worker
from thesis_lib.batch.forecast import estimate
from thesis_lib.batch.plan import BatchError, parameters_of, plan
from thesis_lib.core import identity, paths
from thesis_lib.data import synthetic

PARAMETERS = 'seeds: int = 5  # memory banks\nrate: float = 0.1\ncategory: str | None = "granulate"  # "#" or folder'
SHOW = "print(seeds, rate, repr(category))"


def write(folder, name, *sources, parameters=PARAMETERS):
    head = [new_code_cell(parameters, metadata={"tags": ["parameters"]})] if parameters is not None else []
    cells = [new_markdown_cell("# title"), *head, *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")


def profile(folder, **settings):
    text = yaml.safe_dump({"smoke": {"timeout_s": 60, **settings}})
    (folder / "runs.yml").write_text(text, encoding="utf-8")


def output_of(file):
    """What an executed notebook printed."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return ["".join(out["text"]) for cell in cells if cell["cell_type"] == "code" for out in cell["outputs"]]


def left_since(before):
    """Processes that were started below this one and live on; a browser of other tests was there before."""
    return [p for p in psutil.Process().children(recursive=True)
            if p not in before and p.status() != psutil.STATUS_ZOMBIE]


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two notebooks in a folder whose name papermill would take for a template."""
    monkeypatch.setenv("THESIS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path / "outputs"))
    folder = tmp_path / "note{books}"
    folder.mkdir()
    write(folder, "01_one", SHOW)
    write(folder, "02_two", "print(seeds, names)", parameters="seeds: int = 5\nnames: list[str] = []")
    profile(folder)
    return folder


def tasks_of(folder, **options):
    return plan("smoke", notebooks=folder, **options)


# plan

def test_parameters_are_read_with_type_and_help(folder):
    assert parameters_of(folder / "01_one.ipynb") == {
        "seeds": (5, "int", "memory banks"), "rate": (0.1, "float", ""),
        "category": ("granulate", "str | None", '"#" or folder')}
    write(folder, "03_long", parameters="seeds: int = 5  # one |\n# two,\n#   of three\nnames: list = []\n# all")
    assert parameters_of(folder / "03_long.ipynb") == {
        "seeds": (5, "int", "one | two, of three"), "names": ([], "list", "all")}


@pytest.mark.parametrize(("source", "told"), [
    (None, "0 cells"), ("seeds = 5", "`seeds = 5`"), ("a: int = 1\nb: int = a * 2", "`b: int = a \\* 2`"),
    ("a: int = 1\na: int = 2", "a is assigned twice"), ("a: int = 'x'", "a: must be int"), ("a: int", "`a: int`"),
    ("a: float = None", "a: must be float"), ("a: Path = 'x'", "type Path"), ("a: int = (", "line 1"),
    ("import os", "`import os`"), ("a: bool = 1", "must be bool"), ("a: list = (1, 2)", "must be list")])
def test_parameters_cell_holds_typed_literals_only(folder, source, told):
    write(folder, "03_bad", parameters=source)
    with pytest.raises(BatchError, match=rf"03_bad.*{told}"):
        tasks_of(folder)


def test_two_parameter_cells_and_no_notebook_are_refused(folder):
    file = folder / "01_one.ipynb"
    nb = nbformat.read(file, 4)
    nb.cells.append(new_markdown_cell("x", metadata={"tags": ["parameters"]}))
    nbformat.write(nb, file)
    with pytest.raises(BatchError, match=r"01_one.*2 cells"):
        tasks_of(folder)
    file.write_text("{half", encoding="utf-8")
    with pytest.raises(BatchError, match=r"01_one.*not a notebook"):
        tasks_of(folder)


@pytest.mark.parametrize(("settings", "told"), [
    ({"defaults": {"seed": 1}}, "'seed'; did you mean seeds"),
    ({"defaults": {"seeds": "1"}}, "01_one: seeds: must be int, not '1'"),
    ({"defaults": {"seeds": True}}, "must be int, not True"),
    ({"defaults": {"seeds": 1.0}}, "must be int, not 1.0"),
    ({"notebooks": {"01_one": {"seeds": None}}}, "must be int, not None"),
    ({"notebooks": {"01_one": {"names": []}}}, "01_one has no parameter 'names'"),
    ({"notebooks": {"01_one": {"rate": float("nan")}}}, "must be float, not nan"),
    ({"notebooks": {"01_one": {"category": 3}}}, r"must be str \| None, not 3"),
    ({"notebooks": {"02_two": [{"names": "a"}]}}, r"must be list\[str\]"),
    ({"notebooks": {"01_one": [3]}}, "01_one: 3 is not a mapping"),
    ({"notebooks": {"01_on": {}}}, "'01_on'; did you mean 01_one"),
    ({"skip": ["02_too"]}, "'02_too'; did you mean 02_two"),
    ({"skip": "02_two"}, "skip cannot be"),
    ({"only": ["02_too"]}, "'02_too'; did you mean 02_two"),
    ({"default": {}}, "'default'; did you mean defaults"),
    ({"timeout_s": None}, "timeout_s is missing"),
    ({"timeout_s": 0}, "timeout_s cannot be 0")])
def test_mistakes_in_runs_yml_are_refused(folder, settings, told):
    profile(folder, **settings)
    with pytest.raises(BatchError, match=told):
        tasks_of(folder)


@pytest.mark.parametrize(("options", "told"), [
    ({"overrides": {"seed": "1"}}, "-p: .*'seed'; did you mean seeds"),
    ({"overrides": {"names": "[a]"}, "only": ["01"]}, "no selected notebook has the parameter 'names'"),
    ({"overrides": {"seeds": "one"}}, "-p seeds, 01_one: must be int, not 'one'"),
    ({"overrides": {"seeds": "true"}}, "must be int, not True"),
    ({"overrides": {"names": "a: ["}}, r"must be list\[str\]"),
    ({"overrides": {"rate": ".nan"}}, "must be float, not nan"),
    ({"only": ["07"]}, "--only '07' fits nothing; there are: 01_one, 02_two"),
    ({"only": ["0"]}, "--only '0' fits 01_one, 02_two"),
    ({"only": [""]}, "--only '' fits")])
def test_mistakes_on_the_command_line_are_refused(folder, options, told):
    with pytest.raises(BatchError, match=told):
        tasks_of(folder, **options)


def test_unknown_profile_missing_or_broken_runs_yml_and_empty_folder(folder, tmp_path):
    with pytest.raises(BatchError, match="'smok'; did you mean smoke"):
        plan("smok", notebooks=folder)
    for text in ("smoke: [", "3", "smoke:"):
        (folder / "runs.yml").write_text(text, encoding="utf-8")
        with pytest.raises(BatchError, match=r"runs\.yml"):
            tasks_of(folder)
    (folder / "runs.yml").unlink()
    with pytest.raises(BatchError, match=r"runs\.yml: not found"):
        tasks_of(folder)
    with pytest.raises(BatchError, match="no notebook"):
        tasks_of(tmp_path)
    for jobs in (0, 1.5, True):
        with pytest.raises(BatchError, match="jobs"):
            runner.run([], jobs=jobs)


def test_defaults_variants_overrides_and_selection(folder, tmp_path):
    profile(folder, defaults={"seeds": 2, "rate": 1},
            notebooks={"01_one": [{"category": "a/b"}, {"category": None}, {"category": "a/b", "rate": 0.5}]})
    tasks = tasks_of(folder)
    assert [(t.name, t.parameters) for t in tasks] == [
        ("01_one@rate1.0-a-b", {"seeds": 2, "rate": 1.0, "category": "a/b"}),
        ("01_one@rate1.0-categoryNone", {"seeds": 2, "rate": 1.0, "category": None}),
        ("01_one@rate0.5-a-b", {"seeds": 2, "rate": 0.5, "category": "a/b"}), ("02_two", {"seeds": 2})]
    assert type(tasks[0].parameters["rate"]) is float and tasks[0].timeout_s == 60
    assert tasks[3].output == tmp_path / "outputs/notebooks/smoke/02_two.ipynb"
    assert tasks[3].effective == {"seeds": 2, "names": []}
    typed = {"category": "7", "rate": "1e-3", "seeds": "4"}
    assert [t.parameters for t in tasks_of(folder, only=["01"], overrides=typed)] == [
        {"seeds": 4, "rate": 0.001, "category": "7"}]            # equal variants become one
    assert tasks_of(folder, only="01", overrides={"category": "null"})[0].parameters["category"] is None
    assert [t.name for t in tasks_of(folder, only=["02_t"])] == ["02_two"]
    profile(folder, notebooks={"02_two": [{"names": ["a", "b"]}, {"names": ["a-b"]}]}, skip=["01_one"])
    names = [t.name for t in tasks_of(folder)]
    assert len(set(names)) == 2 and all(name.startswith("02_two@") for name in names)
    with pytest.raises(BatchError, match="fits nothing; there are: 02_two"):
        tasks_of(folder, only=["01"])
    profile(folder, only=["01_one"])
    assert {t.notebook.stem for t in tasks_of(folder)} == {"01_one"}


def test_a_notebook_runs_once_for_each_category(folder, tmp_path):
    write(folder, "02_two", "print(category)", parameters='data: str = "set"\ncategory: str = "nut"')
    profile(folder, every_category=["02_two"], notebooks={"02_two": [{"data": "set"}]}, defaults={"category": "nut"})
    assert [task.name for task in tasks_of(folder, only=["02"])] == ["02_two"]          # no data: the one that is named
    for name in ("bolt", "nut"):
        (tmp_path / "data" / "set" / name / "train" / "good").mkdir(parents=True)
    assert [task.name for task in tasks_of(folder, only=["02"])] == ["02_two@bolt", "02_two@nut"]
    assert [task.parameters["category"] for task in tasks_of(folder, only=["02"])] == ["bolt", "nut"]
    profile(folder, every_category=["01_one"])
    write(folder, "01_one", SHOW, parameters="seeds: int = 5")
    with pytest.raises(BatchError, match="every_category: 01_one has no parameter 'category'"):
        tasks_of(folder)


def test_the_estimate_knows_what_is_done(folder, tmp_path):
    tasks = tasks_of(folder)
    assert estimate(tasks).startswith("2 notebooks, 0 up to date; to run 2: 2 never timed here; ")
    runner.run(tasks[:1], report=lambda line: None)
    record = json.loads(tasks[0].record.read_text())
    assert 0.02 < record["peak_memory_gb"] < 0.3, "of a kernel that imports nothing"
    assert "2 notebooks, 1 up to date; to run 1: 1 never timed here" in estimate(tasks)
    told = estimate(tasks, force=True)
    assert "to run 2: about 0 min by their last times and 1 never timed here; memory up to 0." in told
    assert told.endswith("GB free on disk")
    assert estimate(tasks[:1]) == "1 notebooks, 1 up to date"


HOLDS = """
from thesis_lib.core.memory import Peak
held = bytearray(b"1") * 500_000_000
del held
print(Peak().gb)"""


def test_the_memory_of_an_execution_is_that_of_its_kernel(folder):
    """Each in a process of its own, so the small one after the large one tells its own; a kernel that had the system
    forget its peak is not told too small.
    """
    write(folder, "01_one", HOLDS)
    runner.run(tasks_of(folder), report=lambda line: None)
    large, small = (json.loads(task.record.read_text())["peak_memory_gb"] for task in tasks_of(folder))
    assert 0.5 < large < 0.8 and 0.02 < small < 0.3
    (told,) = output_of(tasks_of(folder)[0].output)
    assert told == "None\n" or float(told) < 0.3


def test_key_follows_everything_an_execution_depends_on(folder, tmp_path, monkeypatch):
    def key(**options):
        return tasks_of(folder, only=["01"], **options)[0].key

    keys = [key(), key(overrides={"seeds": 4})]
    assert key(overrides={"seeds": 5}) == keys[0]                 # given or default: the same execution
    monkeypatch.setattr(identity, "version_of", lambda package: "another")
    keys.append(key())
    write(folder, "01_one", SHOW + " ")
    keys.append(key())
    write(folder, "01_one", SHOW, parameters='data: str = "mine"\nweights: str = "w.safetensors"')
    keys.append(key())
    (tmp_path / "data/mine").mkdir(parents=True)
    keys.append(key())
    for name, text in (("mine/a.png", "1"), ("mine/a.png", "22"), ("mine/b.png", ""), ("w.safetensors", "1")):
        (tmp_path / "data" / name).write_text(text)
        keys.append(key())
    (tmp_path / "data/demo").mkdir()
    for text in ("seed 1", "seed 2"):                             # same size: the demo set is known by its description
        (tmp_path / "data/demo/dataset.json").write_text(text)
        keys.append(key(overrides={"data": "demo"}))
    assert len(set(keys)) == len(keys) and key() == keys[-3]


# run

def test_failures_stay_alone_and_are_told(folder, tmp_path):
    """One batch of good and bad notebooks on two jobs, then the same again with one of them repaired."""
    before = psutil.Process().children(recursive=True)
    write(folder, "03_raises", "raise ValueError('two\\nlines')", SHOW)
    write(folder, "04_shot", "import os", "os.kill(os.getpid(), 9)", SHOW)
    write(folder, "05_sleeps", "import time\ntime.sleep(90)")
    write(folder, "06_exits", "import sys\nsys.exit(0)", SHOW)     # papermill: exit code 0, all cells `completed`
    profile(folder, notebooks={"01_one": {"category": 'a "quote"\n\\ ü'}})
    tasks = [dataclasses.replace(t, timeout_s=8) if t.name == "05_sleeps" else t for t in tasks_of(folder)]
    lines = []
    outcomes = runner.run(tasks, jobs=2, report=lines.append)
    out = tmp_path / "outputs/notebooks/smoke"

    assert [o.state for o in outcomes] == ["done", "done", "failed", "killed", "timeout", "failed"]
    assert [o.message.partition(" -> ")[0] for o in outcomes[2:]] == [
        "ValueError: two lines (In [2])", "kernel died (signal 9: out of memory?)", "longer than 8 s",
        "SystemExit: 0 (cell 3)"]
    assert 8 <= outcomes[4].seconds < 80, "it would have slept for 90"
    for outcome in outcomes[2:]:
        assert not outcome.task.output.exists() and outcome.task.failed_copy.exists()
        assert outcome.message.endswith(f"{outcome.task.name}.failed.ipynb")
        assert json.loads(outcome.task.record.read_text())["state"] == outcome.state
    assert output_of(out / "01_one.ipynb") == ["5 0.1 'a \"quote\"\\n\\\\ ü'\n"]
    assert not [file for file in out.iterdir() if file.name.startswith(".")]
    assert not left_since(before)
    for file in out.glob("*.ipynb"):
        facts = json.loads(file.read_text(encoding="utf-8"))["metadata"]["papermill"]
        assert (facts["input_path"], facts["output_path"]) == (file.name.replace(".failed", ""), file.name)
    assert str(tmp_path) not in (out / "01_one.ipynb").read_text() + (out / "01_one.json").read_text()

    assert "[4/6] 04_shot  started" in lines and not any("\n" in line for line in lines)
    assert len([line for line in lines if "  at: " not in line]) == 12
    text = runner.table(outcomes)
    assert len(text.splitlines()) == 8 and "04_shot" in text and text.endswith("1 timeout")
    assert "up to date" not in runner.describe(tasks, force=True)
    told = runner.describe(tasks).splitlines()
    assert "up to date" in told[1] and "category=" in told[1] and "would run" in told[3]

    write(folder, "03_raises", SHOW)
    again = runner.run(tasks_of(folder, only=["01", "02", "03"]), report=lines.append)
    assert [o.state for o in again] == ["skipped", "skipped", "done"]
    assert again[2].task.output.exists() and not again[2].task.failed_copy.exists()


def test_a_collecting_notebook_runs_last_and_when_another_did(folder, monkeypatch):
    """01 collects: it starts after 02 has ended, also with two jobs, and again whenever 02 was executed anew."""
    monkeypatch.setattr(runner, "execute", lambda notebook, _, part, **options: (
        order.append(notebook.stem), part.write_text('{"metadata": {"papermill": {}}}'), ("done", ""))[-1])
    profile(folder, last=["01_one"])
    for states, redone in [(["done"] * 2, None), (["skipped"] * 2, None), (["done"] * 2, "02_two")]:
        order = []
        if redone:
            time.sleep(1.1)         # a record tells whole seconds
            write(folder, redone, "print(seeds, names, 'changed')", parameters="seeds: int = 5\nnames: list[str] = []")
        outcomes = runner.run(tasks_of(folder), jobs=2)
        assert [outcome.task.name for outcome in outcomes] == ["02_two", "01_one"]
        assert [outcome.state for outcome in outcomes] == states
        assert order == (["02_two", "01_one"] if states[0] == "done" else [])
    one, two = (tasks_of(folder, only=[number])[0].record for number in ("01", "02"))
    assert tasks_of(folder, only=["01"])[0].after == (two,)
    write(folder, "03_three", SHOW)
    profile(folder, last=["02_two", "01_one"])
    assert [task.name for task in tasks_of(folder)] == ["03_three", "02_two", "01_one"]
    assert tasks_of(folder)[2].after == (tasks_of(folder, only=["03"])[0].record, two)
    order = []
    runner.run(tasks_of(folder), jobs=2)
    assert order == ["03_three", "02_two", "01_one"] and one.exists()


def test_what_makes_an_execution_run_again(folder, monkeypatch):
    """Force, a changed parameter, a failure over a good copy, a damaged copy; jobs=2 gives what jobs=1 gave."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    write(folder, "02_two", "import os\nprint(os.environ['OMP_NUM_THREADS'])\n"
                            "print([os.path.relpath(os.environ[n]) for n in ('IPYTHONDIR', 'JUPYTER_RUNTIME_DIR')])")
    tasks = tasks_of(folder)
    outputs = [task.output for task in tasks]
    first = runner.run(tasks)
    assert [o.state for o in first] == ["done", "done"]
    serial = list(map(output_of, outputs))
    assert serial == [["5 0.1 'granulate'\n"], ["3\n['ipython', 'runtime']\n"]]
    stamps = [file.stat().st_mtime_ns for file in outputs]
    assert [o.state for o in runner.run(tasks)] == ["skipped", "skipped"]
    assert [file.stat().st_mtime_ns for file in outputs] == stamps

    assert [o.state for o in runner.run(tasks, jobs=2, force=True)] == ["done", "done"]
    assert list(map(output_of, outputs)) == serial
    assert all(file.stat().st_mtime_ns > before for file, before in zip(outputs, stamps, strict=True))

    good = outputs[0].read_bytes()
    write(folder, "01_one", "1 / 0")
    outputs[1].write_text("{half", encoding="utf-8")
    assert [o.state for o in runner.run(tasks, jobs=2)] == ["failed", "done"]
    assert outputs[0].read_bytes() == good and output_of(outputs[1]) == serial[1]
    write(folder, "01_one", SHOW)                     # the old copy fits again, but its record says failed
    assert "would run" in runner.describe(tasks[:1])
    assert [o.state for o in runner.run(tasks_of(folder, only=["01"], overrides={"seeds": "7"}))] == ["done"]
    assert output_of(outputs[0]) == ["7 0.1 'granulate'\n"]


def test_kernel_that_does_not_start_gets_one_more_try(folder, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter/kernels/python3"
    spec.mkdir(parents=True)
    script = spec / "start.py"
    script.write_text("import os, sys\nfrom pathlib import Path\ntries = Path(__file__).with_name('tries')\n"
                      "if tries.exists():\n"
                      "    os.execv(sys.executable, [sys.executable, '-m', 'ipykernel_launcher', *sys.argv[1:]])\n"
                      "tries.touch()\n")
    (spec / "kernel.json").write_text(json.dumps({
        "argv": [sys.executable, str(script), "-f", "{connection_file}"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    tasks = tasks_of(folder)
    assert runner.run(tasks[:1])[0].state == "done" and (spec / "tries").exists()

    calls = []
    monkeypatch.setattr(runner, "execute", lambda *a, **k: calls.append(a) or ("no kernel", "RuntimeError: no"))
    assert [(o.state, o.message) for o in runner.run(tasks[1:])] == [("failed", "RuntimeError: no")]
    assert len(calls) == 2


DRIVER = """
import sys
from thesis_lib.batch.plan import plan
from thesis_lib.batch.run import run
outcomes = run(plan("smoke", notebooks=sys.argv[1]))
print([o.state for o in outcomes], flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_batch_that_is_stopped_can_go_on(folder, tmp_path, number):
    """The second of three notebooks sleeps the first time; then the whole batch gets a signal."""
    mark = tmp_path / "pids"
    sleeper = ("import os, pathlib, subprocess, time\nmark = pathlib.Path(os.environ['THESIS_DATA']).parent / 'pids'\n"
               "if not mark.exists():\n    helper = subprocess.Popen(['sleep', '80'])\n"
               "    mark.with_suffix('.part').write_text(f'{os.getppid()} {os.getpid()} {helper.pid}')\n"
               "    mark.with_suffix('.part').rename(mark)\n    time.sleep(80)\nprint('awake')")
    write(folder, "02_two", sleeper)
    write(folder, "03_three", SHOW)
    if number == signal.SIGTERM:                      # the part that differs only: no notebook before the sleeper
        profile(folder, skip=["01_one"])
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        alive = [psutil.Process(int(pid)) for pid in wait_for(lambda: mark.exists() and mark.read_text().split())]
        out = tmp_path / "outputs/notebooks/smoke"
        before = {file.name: file.read_bytes() for file in out.glob("[!.]*")}
        assert len(list(out.glob(".*"))) == 2         # the half-written copy and the ids of its rows, hidden
        driver.send_signal(number)
        told = driver.communicate(timeout=15)[0].splitlines()
    finally:
        driver.kill()
    # worker, kernel and the kernel's own child
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in alive), seconds=5)
    assert {file.name: file.read_bytes() for file in out.glob("[!.]*")} == before
    assert sorted(before) == ([] if number == signal.SIGTERM else ["01_one.ipynb", "01_one.json"])
    if number != signal.SIGKILL:
        assert told[-1].endswith("'interrupted', 'not started']") and driver.returncode == 0
        assert not list(out.glob(".*"))
    if number == signal.SIGTERM:
        return
    states = [o.state for o in runner.run(tasks_of(folder, only=["01", "02"]))]
    assert states == ["skipped", "done"] and output_of(out / "02_two.ipynb") == ["awake\n"]
    assert not list(out.glob(".*"))


PAGE = """
from thesis_lib.methods import PatchCore
from thesis_lib.report import figures
print(figures.__file__)"""
LOOK = """
import sys
from thesis_lib.batch.plan import plan
from thesis_lib.batch.run import run, up_to_date
(task,) = plan("smoke", only=["01"], notebooks=sys.argv[1])
if "execute" in sys.argv:
    run([task], report=lambda line: None)
print(up_to_date(task))
"""
COMMENTED, CODED = "\n# Nothing but a comment.\n", "\nADDED = 1\n"


@pytest.fixture
def page(folder, tmp_path):
    """(copy of the package, up_to_date(...) of a page that was executed with it): both in processes of their own."""
    package = tmp_path / "copy" / "thesis_lib"
    shutil.copytree(paths.PACKAGE, package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    write(folder, "01_one", PAGE, parameters="seeds: int = 5")
    # From the folder of the copy: Python looks into the current one first.
    environment = os.environ | {"PYTHONPATH": str(package.parent)}

    def up_to_date(*how):
        done = subprocess.run([sys.executable, "-c", LOOK, str(folder), *how], cwd=package.parent, env=environment,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip() == "True"

    assert up_to_date("execute")
    (out,) = (tmp_path / "outputs/notebooks/smoke").glob("*.ipynb")
    assert output_of(out) == [f"{package / 'report' / 'figures.py'}\n"]
    return package, up_to_date


def test_a_page_is_stale_when_code_changed_that_it_runs_through(page):
    """Its cells import report.figures and PatchCore: what stands there as code counts, what is only said does not."""
    package, up_to_date = page
    sources = {file: file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    rooms = [file for room in ("report", "commands") for file in sorted((package / room).glob("*.py"))]
    assert len(rooms) > 10

    for file in rooms:                      # comments and docstrings, all at once
        text = sources[file].replace('"""', '"""Said otherwise: ', 1)
        file.write_text(text + COMMENTED, encoding="utf-8")
    assert up_to_date()
    for name in ("methods/efficientad.py", "commands/main.py", "report/site.py"):      # code of others
        (package / name).write_text(sources[package / name] + CODED, encoding="utf-8")
    assert up_to_date()
    for name in ("report/figures.py", "patches/coreset.py"):
        file = package / name
        file.write_text(sources[file] + CODED, encoding="utf-8")
        assert not up_to_date(), name
        file.write_text(sources[file], encoding="utf-8")
        assert up_to_date(), name


def test_a_crash_between_copy_and_record_leaves_nothing_that_claims_to_be_current(folder, monkeypatch):
    def execute(notebook, parameters, part, **_):
        part.write_text(json.dumps({"cells": [], "metadata": {"papermill": parameters}}))
        return "done", ""

    def crash(file, *args, **options):
        replace(file, *args, **options)
        if file.suffix == ".ipynb":
            raise OSError("disk full")

    replace = runner._replace
    monkeypatch.setattr(runner, "execute", execute)
    before, after = (tasks_of(folder, only=["01"], overrides={"seeds": n}) for n in (1, 2))
    assert runner.run(before)[0].state == "done" and runner.run(before)[0].state == "skipped"
    monkeypatch.setattr(runner, "_replace", crash)
    assert runner.run(after)[0].message == "OSError: disk full"
    assert not runner.up_to_date(before[0], before[0].key)        # the copy is that of seeds=2
    assert not runner.up_to_date(after[0], after[0].key)


MEASURE = """
from thesis_lib.evaluation import scores, stage_times
from thesis_lib.data import Preprocess, scan
from thesis_lib.methods import EfficientAD, PaDiM, PatchCore
pictures = scan(data, "pad")
detectors = {"bank": PatchCore(weights="random", layers=(1,), bank=30),
             "gaussians": PaDiM(weights="random", channels=10),
             "trained": EfficientAD(weights="random", steps=3)}
scores.evaluate_many(detectors, pictures, Preprocess(image_size=size), seeds=2)
stage_times.measure_time(detectors["bank"], pictures, Preprocess(image_size=size), pictures=1)"""


@pytest.mark.slow
def test_two_at_a_time_measure_the_same_numbers(folder, make_category, tmp_path, monkeypatch):
    """On half the threads each, but for trainings: rows of the same names with the same scores, those of what is
    trained bit for bit; times are named by their threads.
    """
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    profile(folder, timeout_s=600)
    for number, size in ((1, 64), (2, 96)):
        write(folder, f"0{number}_" + ("one", "two")[number - 1], MEASURE,
              parameters=f"data: str = {str(make_category())!r}\nsize: int = {size}")
    rows = {}
    for jobs in (1, 2):
        monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path / f"jobs{jobs}"))
        outcomes = runner.run(tasks_of(folder), jobs=jobs, report=lambda line: None)
        assert [outcome.state for outcome in outcomes] == ["done", "done"], outcomes
        files = (tmp_path / f"jobs{jobs}" / "results").glob("*.json")
        rows[jobs] = {file.name: json.loads(file.read_text()) for file in files}
    alone, together = ({name: row for name, row in rows[jobs].items() if row["kind"] == "auroc"} for jobs in (1, 2))
    assert len(alone) == 12 and set(alone) == set(together)
    trained = [name for name, row in alone.items() if row["method"] == "efficientad"]
    assert len(trained) == 4 and all(alone[name]["training"]["losses"] == together[name]["training"]["losses"]
                                     for name in trained)
    for name, row in alone.items():
        for number in ("scores", "image_auroc", "image_auroc_low", "image_auroc_high", "pixel_auroc", "pro"):
            assert row[number] == pytest.approx(together[name][number], rel=1e-5), (name, number)
        assert [one["stamp"]["threads"]["torch"] for one in (row, together[name])] == [2, 1]
    times = [[row["protocol"]["threads"] for row in rows[jobs].values() if row["kind"] == "time"] for jobs in (1, 2)]
    assert times == [[2, 2], [1, 1]] and not {*rows[1]} & {*rows[2]} - {*alone}


@pytest.mark.parametrize(("jobs", "own", "expected"), [
    (1, None, ["2", "2", "100"]), (2, None, ["1", "2", "0"]), (2, "3", ["3", None, "100"])])
def test_threads_of_a_notebook_and_of_its_trainings(folder, monkeypatch, jobs, own, expected):
    """Side by side, half of two processors for all but trainings, which then wait without work."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    names = ["OMP_NUM_THREADS", "THESIS_TRAINING_THREADS", "GOMP_SPINCOUNT"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "100")
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    for name in ("01_one", "02_two"):
        write(folder, name, f"import os\nprint([os.environ.get(name) for name in {names}])")
    tasks = tasks_of(folder)
    assert [outcome.state for outcome in runner.run(tasks, jobs=jobs, report=lambda line: None)] == ["done", "done"]
    assert [output_of(task.output) for task in tasks] == [[f"{expected}\n"]] * 2


def test_demo_pictures_are_made_once_before_any_notebook(folder, tmp_path, monkeypatch):
    """Made by the first notebook, they would count as changed data at the next run, and two jobs would make them."""
    def make(root):
        calls.append(root)
        root.mkdir(parents=True, exist_ok=True)
        (root / "dataset.json").write_text("{}")

    calls = []
    monkeypatch.setattr(synthetic, "write", make)
    monkeypatch.setattr(runner, "execute", lambda *a, **k: calls.append("notebook") or ("failed", "x"))
    runner.run(tasks_of(folder))
    assert calls == ["notebook"] * 2
    write(folder, "01_one", parameters='data: str = "demo"')
    outcomes = runner.run(tasks_of(folder))
    assert calls[2:] == [tmp_path / "data/demo", "notebook", "notebook"]
    assert json.loads(outcomes[0].task.record.read_text())["key"] == tasks_of(folder)[0].key


def test_only_temporary_files_of_dead_batches_are_removed(tmp_path):
    node = runner.OWNER.rpartition("-")[0]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".a.{node}-{os.getppid()}.ipynb", f".a.other-{node}-{dead.pid}.ipynb", "a.ipynb", ".mine.ipynb"]
    for name in [*names, f".a@x1.5.{node}-{dead.pid}.ipynb", f".a.{node}-{dead.pid}.rows"]:
        (tmp_path / name).write_text("{}")
    runner._sweep(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)


def test_a_broken_report_stops_the_batch_and_its_notebooks(folder):
    write(folder, "01_one", "import time\ntime.sleep(60)")

    def report(text):
        if "02_two  done" in text:                    # 01_one is under way
            raise BrokenPipeError("head has gone")

    before, threads, began = psutil.Process().children(recursive=True), threading.active_count(), time.monotonic()
    with pytest.raises(BrokenPipeError):
        runner.run(tasks_of(folder), jobs=2, report=report)
    assert time.monotonic() - began < 55 and threading.active_count() == threads, "it would have slept for 60"
    assert not left_since(before)


def test_complete_means_every_cell_ran_with_the_parameters():
    def cell(source, tags=(), count=1, duration=0.1, outputs=()):
        return {"cell_type": "code", "source": source, "execution_count": count, "outputs": list(outputs),
                "metadata": {"tags": list(tags), "papermill": {"duration": duration}}}

    injected = cell("# Parameters\nseeds = 3\nrate = -0.5\nnames = [\"a\"]\n", ["injected-parameters"])
    given = {"seeds": 3, "rate": -0.5, "names": ["a"]}
    fine = [injected, cell("1"), cell(" ", count=None), cell("x", ["skip-execution"], count=None)]
    assert worker.incomplete(fine, given) is None
    assert "not with" in worker.incomplete(fine, {**given, "seeds": 4})
    assert "not with" in worker.incomplete(fine[1:], given)
    assert worker.incomplete([*fine, cell("1", count=None)], given) == "cell 5 was not executed"
    assert worker.incomplete([*fine, cell("1", duration=None)], given) == "cell 5 was not executed"
