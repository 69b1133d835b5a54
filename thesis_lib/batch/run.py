"""Execute the numbered notebooks: everything checked first, each in a fresh process, atomic, resumable.

`plan` makes tasks of a profile of notebooks/runs.yml, `run` executes those that are not up to date; executed copies and
outcomes come out. Beside an executed copy lies its record (.json); the copy is up to date while the record's key equals
the task's.
Where one machine is too small the same tasks run on a Dask cluster (thesis_lib.batch.cluster).
"""

import json
import os
import platform
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from thesis_lib.batch import cluster, live
from thesis_lib.batch.plan import Task, parameters_of, read_json
from thesis_lib.batch.values import BatchError, check_pictures
from thesis_lib.batch.worker import Stop, execute, one_line
from thesis_lib.core.threads import usable_cpus

# In the name of a temporary file: a shared folder may hold another machine's, whose processes we cannot see.
OWNER = f"{platform.node().partition('.')[0]}-{os.getpid()}"


@dataclass(frozen=True)
class Outcome:
    """state: done, skipped, failed, killed, timeout, interrupted or not started; message on one line."""

    task: Task
    state: str
    seconds: float = 0.0
    message: str = ""


def run(tasks: Sequence[Task], *, jobs: int = 1, scheduler: str | None = None, force: bool = False,
        report: Callable[[str], None] = print) -> list[Outcome]:
    """Execute the tasks that are not up to date (all with `force`), `jobs` at a time; outcomes in that order.

    Pictures that are not here are refused before the start; a failure does not stop the others. SIGINT and SIGTERM kill
    what runs and keep what is done. With jobs > 1 notebooks share the processor: the times that they measure are then
    not comparable with the thesis.
    scheduler: address of a Dask scheduler, tcp://host:8786, whose workers execute the tasks instead.
    """
    if type(jobs) is not int or jobs < 1:
        raise BatchError(f"jobs: notebooks at a time, a whole number from 1, not {jobs!r}")
    for task in tasks:
        check_pictures(task.name, task.effective)
    for folder in {task.output.parent for task in tasks}:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
    if any(task.effective.get("data") == "demo" for task in tasks):
        from thesis_lib.data.folders import demo
        demo()     # now: a minute that no notebook's limit nor two jobs should pay for
    with _local(jobs) if scheduler is None else cluster.connect(scheduler, tasks, report) as place:
        return _run(tasks, place, force, report)


@contextmanager
def _local(jobs: int) -> Iterator[cluster.Place]:
    """This machine: a thread per job, each waits for a process of its own."""
    with ThreadPoolExecutor(jobs) as pool:
        yield cluster.Place(pool, threading.Event(), jobs, max(1, usable_cpus() // jobs))


def _run(tasks: Sequence[Task], place: cluster.Place, force: bool, report: Callable[[str], None]) -> list[Outcome]:
    """All tasks at a place; each is known by its number, from 1 on."""
    waiting = {number: (read_json(task.record) or {}).get("seconds") for number, task in enumerate(tasks, 1)}
    outcomes: dict[int, Outcome] = {}
    board = live.Board([task.name for task in tasks], report)

    try:
        with _on_signals(place.stop.set):
            # What collects results starts when all that it collects from has ended.
            for collected in sorted({len(task.after) for task in tasks}):
                wave: dict[Future[Outcome], int] = {}
                for number, task in enumerate(tasks, 1):
                    if len(task.after) == collected:
                        # A worker elsewhere can say nothing meanwhile, but has to find the same key.
                        how = (None, partial(board.say, number), partial(board.at, number)) if place.local else (
                            task.key,)
                        future = place.pool.submit(attempt, task, force, place.threads, place.stop, *how)
                        wave[future] = number
                for future in as_completed(wave):
                    number = wave[future]
                    outcome = outcomes[number] = _outcome(future, tasks[number - 1])
                    del waiting[number]
                    board.end(number)
                    if outcome.state != "not started":
                        board.say(number, f"{outcome.state}  {outcome.seconds:.0f} s  {outcome.message}".rstrip()
                                  + _progress(outcomes.values(), waiting.values(), place.slots))
    finally:
        place.stop.set()                # whatever broke here: no notebook runs on without its batch
    return [outcomes[number] for number in sorted(outcomes)]


def attempt(task: Task, force: bool, threads: int, stop: Stop, expected: str | None,
            say: Callable[[str], None] = lambda text: None, at: Callable[[str], None] = lambda text: None) -> Outcome:
    """One task, here or on a worker of a cluster; whatever is wrong with it is told in its outcome.

    expected: key of the task on another machine that started the batch; here it must be the same.
    say, at: told what happens, and the heading of each cell that runs.
    """
    if stop.is_set():
        return Outcome(task, "not started")
    try:
        key = task.key
        if expected not in (None, key):
            raise BatchError("the worker that took it sees another notebook, code or data than the batch")
        return _run_task(task, key, force, threads, stop, say, at)
    except (BatchError, OSError) as error:        # the notebook was broken meanwhile, or the disk is full
        return Outcome(task, "failed", message=one_line(f"{type(error).__name__}: {error}"))


def _outcome(future: Future[Outcome], task: Task) -> Outcome:
    """Of a task that has ended, by itself or with its worker."""
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ != "KilledWorker":
            raise
        return Outcome(task, "killed", message="every worker that took it died (out of memory?)")


def _progress(outcomes: Collection[Outcome], waiting: Collection[float | None], slots: int) -> str:
    """Counts, and what the last executions of the tasks that are still waiting took together, in seconds each."""
    if not waiting:
        return ""
    bad = sum(outcome.state not in ("done", "skipped") for outcome in outcomes)
    known = [seconds for seconds in waiting if seconds is not None]
    remaining = ""
    if len(known) == len(waiting):
        remaining = f", about {sum(known) / min(slots, len(waiting)) / 60:.0f} min"
    return f"  ({len(outcomes)} ended, {bad} of them badly; {len(waiting)} left{remaining})"


def table(outcomes: Sequence[Outcome]) -> str:
    """All states, a line each, and their counts."""
    rows = [(o.task.name, o.state, f"{o.seconds:.0f} s", o.message) for o in outcomes]
    counts = Counter(o.state for o in outcomes)
    total = ", ".join(f"{number} {state}" for state, number in counts.items())
    return _aligned([("notebook", "state", "time", "message"), *rows]) + f"\n{len(rows)} notebooks: {total}"


def describe(tasks: Sequence[Task], *, force: bool = False) -> str:
    """What `run` would do: state, time and memory of the last execution, parameters unlike the notebook's own.

    BatchError for pictures that are not here, as `run` would raise it.
    """
    rows = []
    for task in tasks:
        check_pictures(task.name, task.effective)
        record, current = read_json(task.record) or {}, not force and up_to_date(task)
        declared = parameters_of(task.notebook)
        changed = [f"{name}={value!r}" for name, value in task.parameters.items() if value != declared[name][0]]
        seconds, peak = record.get("seconds"), record.get("peak_memory_gb")
        last = "?" if seconds is None else f"{seconds:.0f} s"
        if peak:
            last += f", {peak:.1f} GB"
        rows.append((task.name, "up to date" if current else "would run", last, ", ".join(changed)))
    return _aligned([("notebook", "state", "last time", "parameters"), *rows])


def _run_task(task: Task, key: str, force: bool, threads: int, stop: Stop, say: Callable[[str], None],
              at: Callable[[str], None]) -> Outcome:
    """Execute a task beside its output, then put copy and record in their place."""
    effective = task.effective                        # now, as the key: the notebook may be edited while it runs
    if not force and up_to_date(task, key):
        return Outcome(task, "skipped", message="up to date")
    say("started")
    part = task.output.with_name(f".{task.name}.{OWNER}.ipynb")     # same folder: os.replace is atomic
    rows = part.with_suffix(".rows")
    rows.write_text("", encoding="utf-8")
    before, began = read_json(task.record) or {}, time.monotonic()
    same = before.get("state") == "done" and before.get("parameters") == effective
    look = live.watch(part, before["seconds"] if same else None, say, at)
    try:
        for _ in range(2):                                            # a second try only if no kernel came up
            state, message = execute(task.notebook, task.parameters, part, timeout_s=task.timeout_s,
                                     threads=threads, stop=stop, rows=rows, look=look)
            if state != "no kernel":
                break
        seconds = round(time.monotonic() - began, 1)
        if state == "interrupted":
            return Outcome(task, state, seconds)
        if state == "no kernel":
            state = "failed"
        target, executed = task.failed_copy, read_json(part)
        if state == "done":
            task.record.unlink(missing_ok=True)       # a crash before the new record means: run again
            task.failed_copy.unlink(missing_ok=True)
            target = task.output
        if executed:
            # names instead of this machine's folders
            executed["metadata"]["papermill"].update(input_path=task.notebook.name, output_path=target.name)
            _replace(target, part, executed, sort_keys=True)
        if state != "done" and executed:
            message += f" -> {min(str(target), os.path.relpath(target), key=len)}"
        papermill = (executed or {}).get("metadata", {}).get("papermill", {})
        _replace(task.record, part, {
            "name": task.name, "state": state, "message": message, "seconds": seconds, "key": key,
            "parameters": effective, "code": task.code, "peak_memory_gb": papermill.get("peak_memory_gb"),
            "rows": sorted(set(rows.read_text(encoding="utf-8").split())),
            "finished": datetime.now(UTC).isoformat(timespec="seconds")})
        return Outcome(task, state, seconds, message)
    finally:
        part.unlink(missing_ok=True)
        rows.unlink(missing_ok=True)


def _replace(file: Path, part: Path, content: Any, **options: Any) -> None:
    """Write JSON to `part`, which becomes `file`; options are those of `json.dumps`."""
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False, **options) + "\n", encoding="utf-8")
    os.replace(part, file)


def up_to_date(task: Task, key: str | None = None) -> bool:
    """True when the executed copy is there and was made by exactly this task (key: computed before, or now)."""
    record = read_json(task.record) or {}
    return (record.get("state") == "done" and record.get("key") == (key or task.key)
            and read_json(task.output) is not None)


def _sweep(folder: Path) -> None:
    """Remove temporary files of this machine's dead batches (our own id: of an earlier process)."""
    for file in folder.glob(f".*.{OWNER.rpartition('-')[0]}-*"):
        owner = re.search(r"-(\d+)\.(?:ipynb|rows)$", file.name)
        pid = int(owner[1]) if owner else None
        if pid is not None and (pid == os.getpid() or not psutil.pid_exists(pid)):
            file.unlink(missing_ok=True)


@contextmanager
def _on_signals(action: Callable[[], None]) -> Iterator[None]:
    """The action in place of what SIGINT and SIGTERM do; afterwards all is as before."""
    main = threading.current_thread() is threading.main_thread()      # only there can handlers be set
    before = {n: signal.signal(n, lambda *_: action()) for n in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _aligned(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """A line for each row, the first three columns as wide as their widest text."""
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [[*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)
