"""The documentation site: executed notebooks, guides and result rows, built by Sphinx, readable from disk."""

import base64
import html
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from PIL import Image

from thesis_lib.batch.plan import Task, plan, read_json
from thesis_lib.core import paths, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import literature
from thesis_lib.evaluation.verdicts import NOT_MEASURED
from thesis_lib.report import cells, tables
from thesis_lib.report.pages import page

CHAPTERS = {"Begin here": ("00",), "Chapter 2, foundations": ("01", "02", "03", "04", "05", "06"),
            "Chapter 3, PatchCore": ("07", "08", "09", "10", "11"), "Chapters 2 and 3 on real pictures": ("19",),
            "Chapters 4 and 5, trained detectors": ("12", "13", "14"),
            "The small computer, summary, limits": ("15", "16", "17"), "Your own pictures": ("18",)}
RELATED = {"00": ("16", "18"), "01": ("02", "18"), "02": ("01", "18"), "03": ("10", "11", "17"),
           "04": ("13", "15", "17"), "05": ("06", "07"), "06": ("05", "07"), "07": ("05", "08", "09"),
           "08": ("07", "17"), "09": ("03", "07"),
           "10": ("03", "11"), "11": ("10", "13"), "12": ("11", "13"), "13": ("04", "11", "12"), "14": ("07", "13"),
           "15": ("04", "16", "17"), "16": ("00", "15"), "17": ("08", "15"), "18": ("02", "16"),
           "19": ("03", "09", "16")}
THESIS = {"figures": "Figures and tables of the thesis", "errors": "What it gets wrong", "glossary": "Glossary"}
CARD = (480, 320)           # pixels of a picture on the opening page, at most
FOLDED = {"parameters": "Parameters", "injected-parameters": "Parameters of this execution"}
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
    heads = {name: tables.head("".join(content["cells"][0]["source"])) for name, content in pages.items()}
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
            chapter = [name for name in pages if name.startswith(numbers)]
            index.write(_cards(caption, {name: pages[name] for name in chapter}, heads,
                               source / "extra" / "thumbnails"))
            index.write(_contents(caption, chapter, ":hidden:"))
        index.write(_contents("The thesis", [*THESIS, "statements"]))
        index.write(_contents("How to", sorted(f"guides/{file.stem}" for file in (source / "guides").glob("*.md"))))
    (source / "statements.md").write_text(_statements(), encoding="utf-8")
    # 3. The pages, each with a link to the rows that it shows, and these as files.
    for name, content in pages.items():
        shown = _anchored(map(_folded, content["cells"]))
        link = "---\n" + _related(name, heads)
        if rows[name]:
            link += f" The numbers of this page: [{len(rows[name])} result rows](rows/{name}.md)."
            (source / "rows" / f"{name}.md").write_text(_table(name, rows[name]), encoding="utf-8")
        shown.append({"cell_type": "markdown", "id": "links", "metadata": {}, "source": link})
        (source / f"{name}.ipynb").write_text(json.dumps(content | {"cells": shown}), encoding="utf-8")
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


def _cards(caption: str, chapter: dict[str, dict], heads: dict[str, tuple], folder: Path) -> str:
    """The pages of a chapter for the opening page, each with one of its own figures."""
    cards = []
    for name, content in chapter.items():
        title, _, question = map(html.escape, heads[name])
        shown = _thumbnail(content)
        if shown:
            folder.mkdir(exist_ok=True)
            shown.save(folder / f"{name}.png")
            title = f'<img src="thumbnails/{name}.png" alt="">{title}'
        cards.append(f'<a class="page-card" href="{name}.html"><b>{title}</b><span>{question}</span></a>')
    listed = "\n".join(cards)
    return f'\n## {caption}\n\n<div class="page-cards">\n{listed}\n</div>\n' if cards else ""


def _thumbnail(content: dict) -> Image.Image | None:
    """The figure of a page whose shape is nearest to that of a card, made small; None where it has none."""
    figures = [output["data"]["image/png"] for cell in content["cells"] for output in cell.get("outputs", [])
               if "image/png" in output.get("data", {})]
    opened = [Image.open(io.BytesIO(base64.b64decode("".join(figure)))) for figure in figures]
    if not opened:
        return None
    shown = min(opened, key=lambda figure: abs(figure.width / figure.height - CARD[0] / CARD[1])).convert("RGB")
    shown.thumbnail(CARD, Image.Resampling.LANCZOS)
    return shown


def _related(name: str, heads: dict[str, tuple]) -> str:
    """The line of links below a page; before and after it are linked by the theme."""
    near = [f"[{heads[other][0]}]({other}.ipynb)" for number in RELATED.get(name[:2], ())
            for other in heads if other.startswith(number)]
    return f"Related: {', '.join([*near, *(f'[{title}]({page}.md)' for page, title in THESIS.items())])}."


def _folded(cell: dict) -> dict:
    """The cell, closed where it holds parameters, or imports and the stamp: so a page begins with its idea."""
    tags = cell["metadata"].get("tags", [])
    title = next((title for tag, title in FOLDED.items() if tag in tags), None)
    if cell["cell_type"] == "code" and "".join(cell["source"]).rstrip().endswith("stamp.show()"):
        title = "Imports, and the stamp of the machine"
    if title is None:
        return cell
    prompts = {"code_prompt_show": title, "code_prompt_hide": title}
    return cell | {"metadata": cell["metadata"] | {"tags": [*tags, "hide-cell"], "mystnb": prompts}}


def _anchored(page_cells: Iterable[dict]) -> list[dict]:
    """The cells of a page, each with the anchor that the guides link to."""
    found = []
    for cell in page_cells:
        target = f"({cells.anchor(cell['id'])})=\n"
        if cell["cell_type"] == "markdown":
            found.append(cell | {"source": target + "".join(cell["source"])})
        else:
            found += [{"cell_type": "markdown", "id": f"to-{cell['id']}", "metadata": {}, "source": target}, cell]
    return found


def _contents(caption: str, names: list[str], option: str = "") -> str:
    listed = "\n".join([*([option] if option else []), "", *names])
    return f"\n```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n{listed}\n```\n" if names else ""


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
