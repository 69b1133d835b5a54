"""The documentation site: executed notebooks, guides and result rows, built by Sphinx, readable from disk."""

import html
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from thesis_lib.batch.plan import Task, plan, read_json
from thesis_lib.core import paths, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import literature
from thesis_lib.evaluation.verdicts import NOT_MEASURED
from thesis_lib.report import cells, tables
from thesis_lib.report.pages import page

CHAPTERS = {"Begin here": ("00",), "Chapter 2, foundations": ("01", "02", "03", "04", "05", "06"),
            "Chapter 3, PatchCore": ("07", "08", "09", "10", "11"),
            "Chapters 4 and 5, trained detectors": ("12", "13", "14"),
            "The small computer, summary, limits": ("15", "16", "17"), "Your own pictures": ("18",)}
COLUMNS = {"kind": "kind", "method": "method", "category": "category", "parameters.backbone": "network",
           "parameters.layers": "levels", "parameters.embedding": "embedding", "parameters.engine": "engine",
           "weights.source": "weights", "seed": "seed", "image_auroc": "image AUROC", "total_ms": "ms"}


class SiteError(ThesisError):
    """Names the page or the package that is missing, or what Sphinx did not like."""


def build(profile: str) -> Path:
    """outputs/site/_build/html/index.html of all notebooks of the profile, and of docs/.

    Raises PageError before anything is written when a notebook is unexecuted, stale or failing; SiteError where a
    result row behind a page is gone, or where Sphinx warns (a broken link, an unlisted page).
    """
    # 1. Everything that can be wrong, before anything is written.
    tasks = plan(profile)
    pages = {task.name: json.loads(page(task)) for task in tasks}
    return assemble(pages, {task.name: _rows(task) for task in tasks})


def assemble(pages: dict[str, dict], rows: dict[str, list[Path]]) -> Path:
    """The site of these notebooks by their names, each with the files of its result rows; SiteError as in `build`."""
    # 2. The guides, with a table of contents that names every page.
    source = paths.site() / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(paths.guides(), source)
    for guide in source.rglob("*.md"):
        guide.write_text(cells.anchored(guide.read_text(encoding="utf-8"), pages), encoding="utf-8")
    (source / "extra" / "rows").mkdir(parents=True)
    (source / "rows").mkdir()
    with open(source / "index.md", "a", encoding="utf-8") as index:
        for caption, numbers in CHAPTERS.items():
            index.write(_contents(caption, [name for name in pages if name.startswith(numbers)]))
        index.write(_contents("The thesis", ["figures", "errors", "glossary", "statements"]))
        index.write(_contents("How to", sorted(f"guides/{file.stem}" for file in (source / "guides").glob("*.md"))))
    (source / "statements.md").write_text(_statements(), encoding="utf-8")
    # 3. The pages, each with a link to the rows that it shows, and these as files.
    for name, content in pages.items():
        content["cells"] = _anchored(content["cells"])
        if rows[name]:
            link = f"---\nThe numbers of this page: [{len(rows[name])} result rows](rows/{name}.md)."
            content["cells"].append({"cell_type": "markdown", "id": "rows", "metadata": {}, "source": link})
            (source / "rows" / f"{name}.md").write_text(_table(name, rows[name]), encoding="utf-8")
        (source / f"{name}.ipynb").write_text(json.dumps(content), encoding="utf-8")
        for file in rows[name]:
            shutil.copy(file, source / "extra" / "rows" / file.name)
    target = paths.site() / "_build" / "html"
    shutil.rmtree(target, ignore_errors=True)       # a page of another profile must not stay
    _sphinx(source, target)
    return target / "index.html"


def _rows(task: Task) -> list[Path]:
    """Files of the rows that an execution measured or read."""
    try:
        return results.files_of((read_json(task.record) or {}).get("rows", []))
    except KeyError as row:
        raise SiteError(f"{task.name}: its result row {row.args[0]} is no longer in {paths.results()}; "
                        f"`thesis run --only {task.name.partition('@')[0]} --force` measures it again") from None


def _anchored(page_cells: list[dict]) -> list[dict]:
    """The cells of a page, each with the anchor that the guides link to."""
    found = []
    for cell in page_cells:
        target = f"({cells.anchor(cell['id'])})=\n"
        if cell["cell_type"] == "markdown":
            found.append(cell | {"source": target + "".join(cell["source"])})
        else:
            found += [{"cell_type": "markdown", "id": f"to-{cell['id']}", "metadata": {}, "source": target}, cell]
    return found


def _contents(caption: str, names: list[str]) -> str:
    listed = "\n".join(names)
    return f"\n```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n\n{listed}\n```\n" if names else ""


def _statements() -> str:
    """Page of what the rows that ship say of the statements of chapters 2 and 3, and of others' values."""
    judged = tables.published_verdicts()
    measured = literature.measured(tables.published_lines())
    told = {f"# Chapters 2 and 3 on real pictures\n\n{tables.counted(judged)} How they are judged is told in "
            "[What was measured](guides/measurements.md). Differences are points of image AUROC with their interval.":
                tables.verdicts(judged).drop(columns="statement"),
            "## Beside published values\n\nImage AUROC, pixel AUROC and PRO in %, with the settings.":
                tables.literature(literature.beside(measured)).reset_index(),
            "## What a setting changes\n\nPoints of image AUROC, against the usual configuration here.":
                literature.experiments(measured).reset_index()}
    shown = [f"{text}\n\n{table.to_html(index=False, na_rep=NOT_MEASURED, float_format='{:+.2f}'.format, border=0)}"
             for text, table in told.items()]
    return "\n\n".join(shown) + "\n"


def _table(name: str, files: list[Path]) -> str:
    """Page that lists the rows behind another one, each linked to its whole content."""
    rows = pd.json_normalize([json.loads(file.read_text(encoding="utf-8")) for file in files])
    if "parameters.layers" in rows:
        rows["parameters.layers"] = rows["parameters.layers"].map(lambda levels: ",".join(map(str, levels)),
                                                                  na_action="ignore")
    shown = rows.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS).dropna(axis=1, how="all")
    shown.insert(0, "row", [f'<a href="{html.escape(file.name)}">{row}</a>'
                            for file, row in zip(files, rows["id"], strict=True)])
    table = shown.to_html(index=False, escape=False, na_rep="", float_format="{:.4g}".format, border=0)
    return (f"---\norphan: true\n---\n# Result rows of {name}\n\nBack to [the page](../{name}.ipynb). A row holds all "
            f"parameters, hashes, scores, raw times and the stamp of the machine.\n\n{table}\n")


def _sphinx(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No module named sphinx" in done.stderr:
        raise SiteError("sphinx is not installed: `make install`, or pip install -e '.[docs]'")
    if done.returncode:
        faults = [line for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line] or [done.stderr]
        raise SiteError(f"Sphinx found {len(faults)} faults: " + "\n".join(faults[:20]))
