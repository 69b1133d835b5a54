"""Execute the numbered notebooks: everything checked first, each in a fresh process, atomic, resumable.

`plan` makes tasks of a profile of notebooks/runs.yml, `run` executes those that are not up to date. Beside an
executed copy lies its record (.json); the copy is up to date while the record's key equals the task's.
"""

import json
import os
import platform
import re
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone

import psutil

from thesis_lib import stamp
from thesis_lib.batch_worker import execute, one_line
from thesis_lib.plan import BatchError, Task, parameters_of, plan, read_json

__all__ = ["BatchError", "Outcome", "Task", "describe", "parameters_of", "plan", "run", "table", "up_to_date"]

# In the name of a temporary file: a shared folder may hold another machine's, whose processes we cannot see.
OWNER = f"{platform.node().partition('.')[0]}-{os.getpid()}"


@dataclass(frozen=True)
class Outcome:
    """state: done, skipped, failed, killed, timeout, interrupted or not started; message on one line."""

    task: Task
    state: str
    seconds: float = 0.0
    message: str = ""


def run(tasks, *, jobs=1, force=False, report=print) -> list[Outcome]:
    """Execute the tasks that are not up to date (all with `force`), `jobs` at a time; outcomes in that order.

    A failure does not stop the others. SIGINT and SIGTERM kill what runs and keep what is done. With jobs > 1
    notebooks share the processor: the times that they measure are then not comparable with the thesis.
    """
    if type(jobs) is not int or jobs < 1:
        raise BatchError(f"jobs: notebooks at a time, a whole number from 1, not {jobs!r}")
    for folder in {task.output.parent for task in tasks}:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
    if any(task.effective.get("data") == "demo" for task in tasks):
        from thesis_lib import data
        data.demo()     # now: a minute that no notebook's limit nor two jobs should pay for
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    stop, lock = threading.Event(), threading.Lock()

    def one(number, task):
        def say(text):
            with lock:
                report(f"[{number}/{len(tasks)}] {task.name}  {text}")
                sys.stdout.flush()

        if stop.is_set():
            return Outcome(task, "not started")
        try:
            outcome = _run_task(task, force, max(1, cores // jobs), stop, say)
        except (BatchError, OSError) as error:        # the notebook was broken meanwhile, or the disk is full
            outcome = Outcome(task, "failed", message=one_line(f"{type(error).__name__}: {error}"))
        say(f"{outcome.state}  {outcome.seconds:.0f} s  {outcome.message}".rstrip())
        return outcome

    futures = {}
    with _on_signals(stop.set), ThreadPoolExecutor(jobs) as pool:
        try:
            for collecting in (False, True):        # what collects results starts when the others have ended
                futures |= {number: pool.submit(one, number, task) for number, task in enumerate(tasks, 1)
                            if bool(task.after) == collecting}
                wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            stop.set()                  # whatever broke here: no notebook runs on without its batch
    return [futures[number].result() for number in sorted(futures)]


def table(outcomes) -> str:
    """All states, a line each, and their counts."""
    rows = [(o.task.name, o.state, f"{o.seconds:.0f} s", o.message) for o in outcomes]
    counts = Counter(o.state for o in outcomes)
    total = ", ".join(f"{number} {state}" for state, number in counts.items())
    return _aligned([("notebook", "state", "time", "message"), *rows]) + f"\n{len(rows)} notebooks: {total}"


def describe(tasks, *, force=False) -> str:
    """What `run` would do: state, time of the last execution, parameters unlike the notebook's own."""
    rows, total = [], 0.0
    for task in tasks:
        seconds, current = (read_json(task.record) or {}).get("seconds"), not force and up_to_date(task)
        total += 0 if current else seconds or 0
        own = parameters_of(task.notebook)
        changed = [f"{name}={value!r}" for name, value in task.parameters.items() if value != own[name][0]]
        rows.append((task.name, "up to date" if current else "would run",
                     "?" if seconds is None else f"{seconds:.0f} s", ", ".join(changed)))
    head = ("notebook", "state", "last time", "parameters")
    return _aligned([head, *rows]) + f"\nto run: {total:.0f} s or more"


def _run_task(task, force, threads, stop, say) -> Outcome:
    key, effective = task.key, task.effective         # now: the notebook may be edited while it runs
    if not force and up_to_date(task, key):
        return Outcome(task, "skipped", message="up to date")
    say("started")
    part = task.output.with_name(f".{task.name}.{OWNER}.ipynb")     # same folder: os.replace is atomic
    rows = part.with_suffix(".rows")
    rows.write_text("", encoding="utf-8")
    began = time.monotonic()
    try:
        for _ in range(2):                                            # a second try only if no kernel came up
            state, message = execute(task.notebook, task.parameters, part, timeout_s=task.timeout_s,
                                     threads=threads, stop=stop, rows=rows)
            if state != "no kernel":
                break
        seconds = round(time.monotonic() - began, 1)
        if state == "interrupted":
            return Outcome(task, state, seconds)
        state, target = "failed" if state == "no kernel" else state, task.failed_copy
        executed = read_json(part)
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
        _replace(task.record, part, {
            "name": task.name, "state": state, "message": message, "seconds": seconds, "key": key,
            "parameters": effective, "library": stamp.library_hash(),
            "rows": sorted(set(rows.read_text(encoding="utf-8").split())),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds")})
        return Outcome(task, state, seconds, message)
    finally:
        part.unlink(missing_ok=True)
        rows.unlink(missing_ok=True)


def _replace(file, part, content, **options) -> None:
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False, **options) + "\n", encoding="utf-8")
    os.replace(part, file)


def up_to_date(task, key=None) -> bool:
    """True when the executed copy is there and was made by exactly this task (key: computed before, or now)."""
    record = read_json(task.record) or {}
    return (record.get("state") == "done" and record.get("key") == (key or task.key)
            and read_json(task.output) is not None)


def _sweep(folder) -> None:
    """Remove temporary files of this machine's dead batches (our own id: of an earlier process)."""
    for file in folder.glob(f".*.{OWNER.rpartition('-')[0]}-*"):
        pid = int(re.search(r"-(\d+)\.(?:ipynb|rows)$", file.name)[1])
        if pid == os.getpid() or not psutil.pid_exists(pid):
            file.unlink(missing_ok=True)


@contextmanager
def _on_signals(action):
    main = threading.current_thread() is threading.main_thread()      # only there can handlers be set
    before = {n: signal.signal(n, lambda *_: action()) for n in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _aligned(rows) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [[*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)
