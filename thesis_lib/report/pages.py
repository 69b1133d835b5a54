"""Copy executed notebooks to outputs/rendered, refusing what must not be shown.

The name of a profile goes in; copies of its executed notebooks come out, the text of one as `page` for the site.
"""

import json
import re
from pathlib import Path

import nbformat

from thesis_lib.batch.plan import Task, plan, read_json
from thesis_lib.batch.run import up_to_date
from thesis_lib.core import files, paths
from thesis_lib.core.errors import ThesisError

LIMIT_MB = 1.5
DIRTY = re.compile(r"commit +[0-9a-f]{12}-dirty")       # as core.stamp.show prints it


class PageError(ThesisError):
    """Names the notebook and why it cannot be shown."""


def publish(profile: str) -> list[Path]:
    """Copies of all notebooks of the profile, see `shown`; raises PageError before the first one when one is stale,
    failed, larger than 1.5 MB or shows a folder of this machine. Links between notebooks keep working.
    """
    pages = {task.output.name: page(task) for task in plan(profile)}
    target = paths.rendered()
    for old in target.glob("*.ipynb"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        files.write(target / name, text)
    return [target / name for name in pages]


def page(task: Task) -> str:
    """The executed copy as it may be shown; PageError names the notebook and why it may not."""
    record = read_json(task.record)
    if record is None or (record["state"] == "done" and not task.output.is_file()):
        raise PageError(f"{task.name}: was not executed; `thesis run` does it")
    if record["state"] != "done":
        raise PageError(f"{task.name}: its last execution ended as {record['state']} ({record['message']})")
    if not up_to_date(task):
        raise PageError(f"{task.name}: stale, its source, parameters, data, packages or the library have changed "
                          "since it was executed; `thesis run` does it again")
    text = shown(task.name, nbformat.read(task.output, as_version=4))
    if DIRTY.search(text):
        raise PageError(f"{task.name}: its stamp says -dirty, so tracked files differed from the commit that it names: "
                        f"commit them, then `thesis run --only {task.name.partition('@')[0]} --force`")
    return text


def shown(name: str, notebook: nbformat.NotebookNode) -> str:
    """The text of an executed notebook without what went to stderr; PageError says what its author must change.

    Warnings and progress of libraries go to stderr. They depend on the machine, often name its folders, and say
    nothing to a reader; the executed copy keeps them.
    """
    folders = [str(folder) for folder in (paths.root(), paths.data(), paths.outputs(), Path.home())]
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "error":
                    raise PageError(f"{name}: cell {number} shows the error {output.ename}")
        found = re.search("|".join(map(re.escape, folders)), json.dumps(cell, ensure_ascii=False))
        if found:
            raise PageError(f"{name}: cell {number} shows the folder {found[0]} of this machine: show the path "
                            "relative to it, or the name alone")
    text = nbformat.writes(notebook)
    if len(text.encode()) > LIMIT_MB * 1e6:
        raise PageError(f"{name}: {len(text.encode()) / 1e6:.1f} MB, the limit is {LIMIT_MB}: show less")
    return text
