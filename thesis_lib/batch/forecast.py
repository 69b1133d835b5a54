"""How long a batch will take: by its own last times, or, where it was never run, by those of another profile.

Tasks go in, a line or hours come out. Nothing is executed: the times stand in the records of earlier executions.
"""

import math
import shutil
from collections.abc import Mapping, Sequence

from thesis_lib.batch.plan import Task, pictures_below, read_json
from thesis_lib.batch.run import up_to_date
from thesis_lib.core import memory, paths

LENGTHS = ("seeds", "steps", "epochs", "passes", "teacher_steps")      # parameters that an execution grows with


def estimate(tasks: Sequence[Task], *, jobs: int = 1, force: bool = False) -> str:
    """One line before the start: what is done, and what the rest needs by the records of earlier runs."""
    waiting = [read_json(task.record) or {} for task in tasks if force or not up_to_date(task)]
    seconds = [record["seconds"] for record in waiting if record.get("seconds") is not None]
    peaks = sorted((record.get("peak_memory_gb") or 0 for record in waiting), reverse=True)[:jobs]
    parts = [f"{len(tasks)} notebooks, {len(tasks) - len(waiting)} up to date"]
    if waiting:
        new = len(waiting) - len(seconds)
        known = f"about {sum(seconds) / min(jobs, len(waiting)) / 60:.0f} min by their last times" if seconds else ""
        unknown = f"{new} never timed here" if new else ""
        parts.append(f"to run {len(waiting)}: " + " and ".join(filter(None, (known, unknown))))
        if any(peaks):
            parts.append(f"memory up to {sum(peaks):.1f} GB of {memory.usable_bytes() / 1e9:.0f}")
        folders = sorted({str(task.effective["data"]) for task in tasks if "data" in task.effective})
        parts += [f"{pictures_below(folder)} pictures in {folder}" for folder in folders]
        parts.append(f"{shutil.disk_usage(paths.root()).free / 1e9:.0f} GB free on disk")
    return "; ".join(parts)


def hours(wanted: Sequence[Task], measured: Sequence[Task], pictures: Mapping[str, int]) -> dict[str, float | None]:
    """Task of `wanted` -> hours on this machine, by the last execution of its notebook in `measured`; None without one.

    An execution is taken to grow with its pictures (by category), its seeds and the steps of its trainings. That is
    rough: another network or a larger bank count nothing.
    """
    records = {}                                                # by notebook, the last one of several
    for task in measured:
        record = read_json(task.record) or {}
        if record.get("state") == "done":
            records[task.notebook.stem] = record
    forecasts: dict[str, float | None] = {}
    for task in wanted:
        if task.notebook.stem not in records:
            forecasts[task.name] = None
            continue
        record = records[task.notebook.stem]
        before, after = record["parameters"], task.effective
        growth = math.prod(after[name] / before[name] for name in LENGTHS if before.get(name) and after.get(name))
        # A notebook without a category collects what the others measured.
        then, now = (pictures.get(str(parameters.get("category")), 1) for parameters in (before, after))
        forecasts[task.name] = record["seconds"] * growth * now / then / 3600
    return forecasts
