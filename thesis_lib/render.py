"""Copy executed notebooks to outputs/rendered, refusing what must not be shown."""

import json
import re
from pathlib import Path

from thesis_lib import batch, paths
from thesis_lib.results import write_atomically

LIMIT_MB = 1.5


class RenderError(ValueError):
    """Names the notebook and why it cannot be shown."""


def publish(profile: str) -> list[Path]:
    """Copies of all notebooks of the profile; raises RenderError before the first one when one is stale, failed,
    larger than 1.5 MB or shows a folder of this machine. Links between notebooks keep working.
    """
    pages = {task.output.name: _page(task) for task in batch.plan(profile)}
    target = paths.rendered()
    for old in target.glob("*.ipynb"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        write_atomically(target / name, text)
    return [target / name for name in pages]


def _page(task: batch.Task) -> str:
    if not batch.up_to_date(task):
        raise RenderError(f"{task.name}: no up-to-date executed copy; `thesis run` makes it")
    text = task.output.read_text(encoding="utf-8")
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                raise RenderError(f"{task.name}: shows the error {output['ename']}")
    if len(text.encode()) > LIMIT_MB * 1e6:
        raise RenderError(f"{task.name}: {len(text.encode()) / 1e6:.1f} MB, the limit is {LIMIT_MB}: show less")
    folders = [str(folder) for folder in (paths.root(), paths.data(), paths.outputs(), Path.home())]
    if shown := re.search("|".join(map(re.escape, folders)), text):
        raise RenderError(f"{task.name}: shows the folder {shown[0]} of this machine")
    return text
