"""Execute the numbered notebooks: everything checked first, each in a fresh process, atomic, resumable.

`plan` makes tasks of a profile of notebooks/runs.yml, `run` executes those that are not up to date. Beside an
executed copy lies its record (.json); the copy is up to date while the record's key equals the task's.
"""

import ast
import difflib
import hashlib
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import psutil
import yaml

from thesis_lib import paths, stamp
from thesis_lib.batch_worker import execute, one_line

TYPES = ("bool", "int", "float", "str", "list", "dict", "None")
SETTINGS = {"about": str, "timeout_s": (int, float), "defaults": dict, "notebooks": dict, "skip": list}
# In the name of a temporary file: a shared folder may hold another machine's, whose processes we cannot see.
OWNER = f"{platform.node().partition('.')[0]}-{os.getpid()}"


class BatchError(ValueError):
    """Names the notebook, parameter or file that is wrong, and what would be right."""


@dataclass(frozen=True)
class Task:
    """One execution: source, name of the executed copy, parameters to inject, where to, limit in seconds."""

    notebook: Path
    name: str
    parameters: dict
    output: Path
    timeout_s: float

    @property
    def effective(self) -> dict:
        own = parameters_of(self.notebook)
        return {name: default for name, (default, _, _) in own.items()} | self.parameters

    @property
    def key(self) -> str:
        """Identity of an execution started now: cells, effective parameters, sources of thesis_lib, data."""
        cells = [[cell["cell_type"], cell["source"], _tags(cell)] for cell in _cells(self.notebook)]
        facts = [cells, self.effective, stamp.library_hash(), _files(self.effective)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def record(self) -> Path:
        return self.output.with_suffix(".json")

    @property
    def failed_copy(self) -> Path:
        return self.output.with_suffix(".failed.ipynb")


@dataclass(frozen=True)
class Outcome:
    """state: done, skipped, failed, killed, timeout, interrupted or not started; message on one line."""

    task: Task
    state: str
    seconds: float = 0.0
    message: str = ""


def parameters_of(notebook) -> dict[str, tuple]:
    """name -> (default, type, help) of the one code cell tagged `parameters`; read, never executed.

    Each of its lines is `name: type = literal  # help`; anything else raises BatchError: what is derived here
    would not follow an injected parameter.
    """
    where = f"{Path(notebook).name}: parameters cell"
    tagged = [cell for cell in _cells(notebook) if "parameters" in _tags(cell)]
    if len(tagged) != 1 or tagged[0]["cell_type"] != "code":
        raise BatchError(f"{where}: {len(tagged)} cells have this tag, it must be exactly one code cell")
    found, lines = {}, tagged[0]["source"].splitlines()
    try:
        nodes = ast.parse(tagged[0]["source"]).body
    except SyntaxError as error:
        raise BatchError(f"{where}, line {error.lineno}: {error.msg}") from None
    for node in nodes:
        line = lines[node.end_lineno - 1]
        try:
            name, annotation = node.target.id, ast.unparse(node.annotation)
            default = ast.literal_eval(node.value)
        except (AttributeError, ValueError, TypeError):
            raise BatchError(f"{where}: write `name: type = literal  # help`, not `{line}`") from None
        if name in found:
            raise BatchError(f"{where}: {name} is assigned twice")
        rest = line.encode()[node.end_col_offset:].decode()             # the offset counts bytes
        found[name] = (_typed(f"{where}: {name}", default, annotation), annotation,
                       rest.partition("#")[2].strip())
    return found


def plan(profile, *, only=(), overrides=None, notebooks=None, outputs=None) -> list[Task]:
    """Tasks of a profile; any mistake in runs.yml, notebooks, `only` and `overrides` raises BatchError here.

    only: each "07", a full name or a unique prefix; default all.
    overrides: name -> text as typed after -p, or value; for the selected notebooks that declare the name.
    notebooks: folder with runs.yml, default paths.notebooks().
    outputs: folder of the executed copies, default paths.executed(profile).
    """
    folder, overrides = Path(notebooks or paths.notebooks()).resolve(), overrides or {}
    sources = {file.stem: file for file in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not sources:
        raise BatchError(f"{folder}: no notebook with a name like 07_patchcore_original.ipynb")
    declared = {stem: parameters_of(file) for stem, file in sources.items()}
    settings, where = _profile(folder / "runs.yml", profile), f"runs.yml, {profile}"
    for name in settings["defaults"]:
        _known(name, set().union(*declared.values()), f"{where}, defaults: no notebook has the parameter")
    for stem in [*settings["notebooks"], *settings["skip"]]:
        _known(stem, sources, f"{where}: there is no notebook")
    picked = _pick(only, [stem for stem in sources if stem not in settings["skip"]])
    for name in overrides:
        _known(name, set().union(*map(declared.get, picked)), "-p: no selected notebook has the parameter")
    outputs, tasks = Path(outputs or paths.executed(profile)).resolve(), []
    for stem, file in sources.items():
        entry, variants = settings["notebooks"].get(stem) or {}, []
        for variant in entry if isinstance(entry, list) else [entry]:
            if not isinstance(variant, dict):
                raise BatchError(f"{where}: {stem}: {variant!r} is not a mapping of parameters")
            for name in variant:
                _known(name, declared[stem], f"{where}: {stem} has no parameter")
            given, typed = settings["defaults"] | variant, overrides if stem in picked else {}
            values = {name: _typed(f"-p {name}, {stem}", _from_text(typed[name], kind), kind) if name in typed
                      else _typed(f"{where}: {stem}: {name}", given[name], kind)
                      for name, (_, kind, _) in declared[stem].items() if name in given | typed}
            if values not in variants:                # -p can make two of them equal
                variants.append(values)
        tasks += [Task(file, stem + suffix, values, outputs / f"{stem}{suffix}.ipynb", settings["timeout_s"])
                  for suffix, values in zip(_suffixes(variants), variants, strict=True) if stem in picked]
    return tasks


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
        from thesis_lib import synthetic
        synthetic.write(paths.demo_data())      # now: a minute that no notebook's limit nor two jobs should pay for
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

    with _on_signals(stop.set), ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, number, task) for number, task in enumerate(tasks, 1)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()                  # whatever broke here: no notebook runs on without its batch
    return [future.result() for future in futures]


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
        seconds, current = (_json(task.record) or {}).get("seconds"), not force and _up_to_date(task, task.key)
        total += 0 if current else seconds or 0
        own = parameters_of(task.notebook)
        changed = [f"{name}={value!r}" for name, value in task.parameters.items() if value != own[name][0]]
        rows.append((task.name, "up to date" if current else "would run",
                     "?" if seconds is None else f"{seconds:.0f} s", ", ".join(changed)))
    head = ("notebook", "state", "last time", "parameters")
    return _aligned([head, *rows]) + f"\nto run: {total:.0f} s or more"


def _run_task(task, force, threads, stop, say) -> Outcome:
    key, effective = task.key, task.effective         # now: the notebook may be edited while it runs
    if not force and _up_to_date(task, key):
        return Outcome(task, "skipped", message="up to date")
    say("started")
    part = task.output.with_name(f".{task.name}.{OWNER}.ipynb")     # same folder: os.replace is atomic
    began = time.monotonic()
    try:
        for _ in range(2):                                            # a second try only if no kernel came up
            state, message = execute(task.notebook, task.parameters, part, timeout_s=task.timeout_s,
                                     threads=threads, stop=stop)
            if state != "no kernel":
                break
        seconds = round(time.monotonic() - began, 1)
        if state == "interrupted":
            return Outcome(task, state, seconds)
        state, target = "failed" if state == "no kernel" else state, task.failed_copy
        executed = _json(part)
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
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds")})
        return Outcome(task, state, seconds, message)
    finally:
        part.unlink(missing_ok=True)


def _replace(file, part, content, **options) -> None:
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False, **options) + "\n", encoding="utf-8")
    os.replace(part, file)


def _up_to_date(task, key) -> bool:
    record = _json(task.record) or {}
    return record.get("state") == "done" and record.get("key") == key and _json(task.output) is not None


def _sweep(folder) -> None:
    """Remove temporary files of this machine's dead batches (our own id: of an earlier process)."""
    for file in folder.glob(f".*.{OWNER.rpartition('-')[0]}-*.ipynb"):
        pid = int(re.search(r"-(\d+)\.ipynb$", file.name)[1])
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


def _json(file):
    """Content, or None where the file is missing or not whole."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _cells(notebook) -> list[dict]:
    content = _json(notebook)
    if not isinstance(content, dict) or "cells" not in content:
        raise BatchError(f"{notebook}: not a notebook (format 4)")
    return [cell | {"source": "".join(cell["source"])} for cell in content["cells"]]


def _tags(cell) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _known(name, known, message) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        raise BatchError(f"{message} {name!r}; " + (f"did you mean {close[0]}?" if close else
                                                    f"there are: {', '.join(sorted(known)) or 'none'}"))


def _profile(file, profile) -> dict:
    try:
        runs = yaml.safe_load(file.read_text(encoding="utf-8"))
        _known(profile, runs, f"{file.name}: there is no profile")
        given = {name: value for name, value in runs[profile].items() if value is not None}
    except OSError:
        raise BatchError(f"{file}: not found; it defines the profiles") from None
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise BatchError(f"{file}: must map profiles to settings; {one_line(str(error))}") from None
    for name, value in given.items():
        _known(name, SETTINGS, f"{file.name}, {profile}: there is no setting")
        if not isinstance(value, SETTINGS[name]) or (name == "timeout_s" and not value > 0):
            raise BatchError(f"{file.name}, {profile}: {name} cannot be {value!r}")
    if "timeout_s" not in given:
        raise BatchError(f"{file.name}, {profile}: timeout_s is missing (seconds for each notebook)")
    return {"defaults": {}, "notebooks": {}, "skip": []} | given


def _pick(only, stems) -> set[str]:
    picked = set()
    for wanted in ([only] if isinstance(only, str) else only) or stems:
        found = [wanted] if wanted in stems else [stem for stem in stems if stem.startswith(wanted)]
        if len(found) != 1:
            fits = ", ".join(found) or "nothing"
            raise BatchError(f"--only {wanted!r} fits {fits}; there are: {', '.join(stems)}")
        picked.add(found[0])
    return picked


def _kinds(annotation: str) -> set[str]:
    """Names of the alternatives: "list[str] | None" -> {"list", "None"}."""
    def walk(node):
        if isinstance(node, ast.BinOp):
            return walk(node.left) | walk(node.right)
        return {ast.unparse(node.value if isinstance(node, ast.Subscript) else node)}
    return walk(ast.parse(annotation, mode="eval").body)


def _from_text(value, annotation):
    """What was typed after -p: kept for a text parameter, else read as YAML."""
    kinds = _kinds(annotation)
    if not isinstance(value, str) or ("str" in kinds and not ("None" in kinds and value == "null")):
        return value
    with suppress(ValueError, yaml.YAMLError):
        loaded = yaml.safe_load(value)
        return float(loaded) if "float" in kinds and isinstance(loaded, str) else loaded  # YAML: 1e-3 is text
    return value


def _typed(where, value, annotation):
    kinds, kind = _kinds(annotation), "None" if value is None else type(value).__name__  # bool is no int
    if not kinds <= set(TYPES):
        raise BatchError(f"{where}: type {annotation} is not made of {', '.join(TYPES)}")
    if kind == "int" and "int" not in kinds and "float" in kinds:
        value, kind = float(value), "float"
    try:
        plain = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        plain = False
    if kind not in kinds or not plain:
        raise BatchError(f"{where}: must be {annotation}, not {value!r} ({kind})")
    return value


def _suffixes(variants) -> list[str]:
    """'' for a single one, else the values in which they differ: '@granulate', '@seeds3-resnet34'."""
    if len(variants) == 1:
        return [""]
    names = [name for name in dict.fromkeys(name for values in variants for name in values)
             if len({json.dumps(values.get(name)) for values in variants}) > 1]
    texts = ["-".join(v[n] if isinstance(v[n], str) else f"{n}{v[n]}" for n in names if n in v)
             for v in variants]
    texts = [re.sub(r"[^\w.+]+", "-", text).strip("-")[:60] or "default" for text in texts]
    clear = len(set(texts)) == len(texts)
    return [f"@{text}" if clear else f"@{number}-{text}" for number, text in enumerate(texts, 1)]


def _files(parameters) -> list:
    """What the parameters `data` and `weights` stand for on this disk: names and sizes, or size and time."""
    facts = []
    for value in filter(None, (parameters.get("data"), parameters.get("weights"))):
        place = paths.data() / Path(str(value)).expanduser()          # a path from / stays what it is
        made = place / "dataset.json"
        if place == paths.demo_data() and made.is_file():
            facts.append(made.read_text(encoding="utf-8"))
        elif place.is_dir():
            files = [(file.relative_to(place).as_posix(), file.stat().st_size)
                     for file in place.rglob("*") if file.is_file()]
            facts.append(hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest())
        elif place.is_file():
            facts.append([place.stat().st_size, place.stat().st_mtime_ns])
    return facts


def _aligned(rows) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [[*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)
