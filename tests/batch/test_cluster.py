"""The batch on a Dask cluster: processes of this machine stand for machines of their own."""

import json
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from tests.batch.test_run import SHOW, output_of, profile, tasks_of, wait_for, write
from thesis_lib.batch import cluster
from thesis_lib.batch.plan import BatchError
from thesis_lib.batch.run import attempt, run
from thesis_lib.core import paths

pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
SLEEPER = """
import os, pathlib, time
mark = pathlib.Path(os.environ["THESIS_OUTPUTS"]) / "worker"
if not mark.exists():
    mark.write_text(str(os.getpid()))
    time.sleep(60)
print("awake")"""
MEASURE = """
from thesis_lib.core import results
subject = {"method": "patchcore", "category": NAME, "parameters": {}, "seed": seeds}
results.find("auroc", subject) or results.save("auroc", subject, {"image_auroc": 0.5})
print(NAME)"""


def start(*arguments, **environment):
    return subprocess.Popen([sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
                            env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def end(*processes):
    for process in processes:
        for one in [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else ():
            one.kill()
        process.communicate()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path / "outputs"))
    folder = tmp_path / "notebooks"
    folder.mkdir()
    profile(folder)
    return folder


@pytest.fixture
def scheduler(tmp_path, folder):
    file = tmp_path / "scheduler.json"
    process = start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                    "--scheduler-file", str(file))
    try:
        yield wait_for(lambda: file.exists() and file.read_text().strip() and json.loads(file.read_text())["address"])
    finally:
        end(process)


def worker(address, name, **environment):
    """Without a nanny: one that is killed stays dead."""
    return start("dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", name,
                 **environment)


def workers_of(address, count):
    from distributed import Client
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


def test_a_killed_worker_loses_and_doubles_nothing(folder, tmp_path, scheduler):
    """Six notebooks, two workers; one is killed while it works."""
    for number in range(1, 6):
        write(folder, f"0{number}_rows", MEASURE.replace("NAME", f'"part{number}"'))
    write(folder, "06_sleeps", SLEEPER)
    two = {name: worker(scheduler, name) for name in ("one", "two")}
    try:
        workers_of(scheduler, 2)
        lines, outcomes = [], []
        batching = threading.Thread(target=lambda: outcomes.extend(
            run(tasks_of(folder), scheduler=scheduler, report=lines.append)))
        batching.start()
        mark = paths.outputs() / "worker"
        kernel = psutil.Process(int(wait_for(lambda: mark.exists() and mark.read_text(), seconds=120)))
        busy = next(process for process in two.values() if process.pid in [one.pid for one in kernel.parents()])
        busy.send_signal(signal.SIGKILL)
        batching.join(120)
        assert [outcome.state for outcome in outcomes] == ["done"] * 6, lines
        assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE
    finally:
        end(*two.values())
    assert output_of(folder.parent / "outputs/notebooks/smoke/06_sleeps.ipynb") == ["awake\n"]
    rows = [json.loads(file.read_text()) for file in paths.results().glob("*.json")]
    assert sorted(row["category"] for row in rows) == [f"part{number}" for number in range(1, 6)]
    made = sorted(file.name for file in (paths.executed("smoke")).iterdir() if not file.name.startswith("."))
    assert made == sorted(f"{task.name}{end}" for task in tasks_of(folder) for end in (".ipynb", ".json"))
    assert not list(paths.outputs().glob(".*")) and lines[0].startswith("2 workers, 2 notebooks at a time")
    assert any("(5 ended, 0 of them badly; 1 left" in line for line in lines)


def test_a_worker_that_sees_something_else_is_refused(folder, tmp_path, scheduler):
    write(folder, "01_one", SHOW)
    other = worker(scheduler, "astray", THESIS_OUTPUTS=str(tmp_path / "elsewhere"))
    try:
        workers_of(scheduler, 1)
        lines = []
        with pytest.raises(BatchError, match="none of its 1 workers sees the same"):
            run(tasks_of(folder), scheduler=scheduler, report=lines.append)
        assert "is refused: its outputs is not as here" in lines[0] and "elsewhere" in lines[0]
        good = worker(scheduler, "good")
        try:
            workers_of(scheduler, 2)
            assert [one.state for one in run(tasks_of(folder), scheduler=scheduler, report=lines.append)] == ["done"]
        finally:
            end(good)
    finally:
        end(other)
    assert not (tmp_path / "elsewhere" / "results").exists()


def test_a_stop_reaches_the_workers(folder, scheduler):
    """What Ctrl-C does: the running notebook is ended, the waiting one not started, the next run goes on."""
    write(folder, "01_sleeps", SLEEPER)
    write(folder, "02_two", SHOW)
    driver = ("import sys\nfrom thesis_lib.batch.plan import plan\nfrom thesis_lib.batch.run import run\n"
              "tasks = plan('smoke', notebooks=sys.argv[1])\n"
              "print([outcome.state for outcome in run(tasks, scheduler=sys.argv[2])])")
    one = worker(scheduler, "one")
    try:
        workers_of(scheduler, 1)
        running = subprocess.Popen([sys.executable, "-c", driver, str(folder), scheduler], stdout=subprocess.PIPE,
                                   text=True)
        wait_for((paths.outputs() / "worker").exists)
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=30)[0].splitlines()[-1] == "['interrupted', 'not started']"
        outcomes = run(tasks_of(folder), scheduler=scheduler, report=lambda line: None)
        assert [outcome.state for outcome in outcomes] == ["done", "done"]
    finally:
        end(one)


def test_no_scheduler_and_no_worker_are_told(folder, scheduler):
    write(folder, "01_one", SHOW)
    with pytest.raises(BatchError, match=r"tcp://127.0.0.1:9: does not answer.*dask scheduler"):
        next(iter_place("tcp://127.0.0.1:9", tasks_of(folder)))
    with pytest.raises(BatchError, match="has no worker"):
        run(tasks_of(folder), scheduler=scheduler)
    assert not list(paths.outputs().glob(".*"))


def iter_place(address, tasks):
    with cluster.connect(address, tasks, print, patience=1) as place:
        yield place


def test_another_key_on_the_worker_is_a_failure(folder):
    write(folder, "01_one", SHOW)
    (task,) = tasks_of(folder)
    outcome = attempt(task, False, 1, cluster.StopFile(folder / "stop"), "another key")
    assert outcome.state == "failed" and "sees another notebook" in outcome.message


def test_the_slurm_example_prints_its_job_script(tmp_path):
    shown = subprocess.run([sys.executable, str(paths.root() / "examples" / "slurm.py"), "--dry-run"], text=True,
                           capture_output=True, cwd=tmp_path, env=os.environ | {"THESIS_DATA": "/shared/data"})
    assert shown.returncode == 0, shown.stderr
    for wanted in ("#SBATCH --cpus-per-task=4", "#SBATCH --mem=8G", "#SBATCH -t 12:00:00",
                   "distributed.cli.dask_worker", "export THESIS_DATA=/shared/data", "--nthreads 1"):
        assert wanted in shown.stdout, shown.stdout
