"""Links to single cells of pages, and the tables of docs/ that consist of them."""

import json
import re
from collections import Counter

import pytest

from thesis_lib.core import paths
from thesis_lib.evaluation.thesis import bars_of
from thesis_lib.report import cells
from thesis_lib.report.cells import Link

GUIDES = sorted((paths.root() / "docs").rglob("*.md"))


def page(name, folder="notebooks"):
    """Cells of a page by their ids; none where there is no such page."""
    file = paths.root() / folder / f"{name}.ipynb"
    found = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.is_file() else []
    return {cell["id"]: cell for cell in found}


def table(name):
    return cells.rows((paths.root() / "docs" / name).read_text(encoding="utf-8"))


def test_a_link_is_read_and_leads_to_its_anchor():
    text = 'see [03-05](../outputs/rendered/03_x.ipynb "words"), [a-b](../../outputs/rendered/04_y.ipynb), [no](b.md)'
    assert list(cells.links(text)) == [Link("03_x", "03-05", "words"), Link("04_y", "a-b")]
    assert cells.anchored(text, {"03_x"}) == "see [03-05](#cell-03-05), `a-b`, [no](b.md)"
    assert cells.anchored('[t.py](../tests/a/t.py "def x")', {}) == "`tests/a/t.py`"


def test_rows_of_tables_only():
    text = "word\n\n| a | b |\n|---|---|\n| 1 | |\n| 2 | x |\n\nword\n\n| c |\n|---|\n| 3 |\n"
    assert cells.rows(text) == [["1", ""], ["2", "x"], ["3"]]


def test_a_cell_says_its_source_and_what_it_printed():
    table = {"text/plain": "a table", "text/html": ["<style>p {}\n</style><td>1 &amp;\n", " 2</td>"]}
    cell = {"source": ["two\n", "lines"], "outputs": [{"text": ["and  more\n"]}, {"data": table}]}
    assert cells.says(cell) == "two lines and more a table 1 & 2"


@pytest.mark.parametrize("file", GUIDES, ids=lambda file: file.name)
def test_every_link_leads_to_a_cell_with_its_words(file):
    for link in cells.links(file.read_text(encoding="utf-8")):
        source = page(link.page)
        assert source, f"{link}: there is no such notebook"
        both = [each[link.cell] for each in (source, page(link.page, "outputs/rendered")) if link.cell in each]
        words = " ".join(link.words.split())
        elsewhere = [name for name, cell in source.items() if words in cells.says(cell)]
        assert link.cell in source, f"{link}: no such cell; these have its words: {elsewhere}"
        assert any(words in cells.says(cell) for cell in both), f"{link}: it does not say so; these do: {elsewhere}"


@pytest.mark.parametrize("file", GUIDES, ids=lambda file: file.name)
def test_every_link_to_a_file_leads_to_its_words(file):
    for found in cells.FILE.finditer(file.read_text(encoding="utf-8")):
        assert found["words"] and found["words"] in (paths.root() / found["path"]).read_text(encoding="utf-8"), found[0]


def test_every_error_of_the_thesis_has_what_is_right_and_where():
    errors = table("errors.md")
    assert [int(number) for number, *_ in errors] == list(range(1, 45))
    for number, wrong, right, where in errors:
        found = [link.words for link in cells.links(where)] + [file["words"] for file in cells.FILE.finditer(where)]
        assert wrong and right and found and all(found), number


def test_the_glossary_has_each_term_once_with_its_cell_and_section():
    terms = table("glossary.md")
    assert len(terms) >= 60
    for column in (0, 1):
        names = Counter(name.strip().casefold() for row in terms for name in row[column].split(","))
        assert not [name for name, count in names.items() if count > 1 or not name]
    for german, *_, where, section in terms:
        (link,) = cells.links(where)
        assert link.words, german
        assert re.fullmatch(r"[1-6](\.\d)*(, [1-6](\.\d)+)*(, later state)?", section), german


FIGURES = {2: 5, 3: 25, 4: 5, 5: 1}         # of each chapter of the thesis, its later state included
TABLES = {2: 4}
SHOWN = ("Measured: ", "Times measured; AUROC of the thesis only", "The thesis' values only",
         "Another author's. In its place: ")


def test_every_figure_and_table_of_the_thesis_is_in_the_index():
    index = table("figures.md")
    assert [row[0] for row in index] == [
        f"{kind} {chapter}.{number}" for kind, counts in (("Fig.", FIGURES), ("Table", TABLES))
        for chapter, count in counts.items() for number in range(1, count + 1)]
    for name, title, where, shown in index:
        (link,) = cells.links(where)
        assert title and link.words and shown.startswith(SHOWN), name
        whole = " ".join(cells.says(cell) for folder in ("notebooks", "outputs/rendered")
                         for cell in [page(link.page, folder).get(link.cell, {"source": ""})])
        number = name.split()[1]
        heads = [cells.says(cell) for cell in page(link.page).values()]
        if not shown.startswith("Another"):     # its own cell names it, or the first one does and its words show it
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", whole) or _named(number, heads[0]), name


def test_what_the_index_calls_measured_has_bars_or_is_drawn_anew():
    """Figures whose bars the thesis gives: measured or not, but never another author's."""
    for name, _, _, shown in table("figures.md"):
        kind, number = name.split()
        try:
            bars = len(bars_of(number)) if kind == "Fig." else 0
        except KeyError:
            bars = 0
        assert not bars or not shown.startswith("Another"), name


def _named(number, text):
    """Whether a text names a figure, alone or inside of "3.4 to 3.8"."""
    chapter, count = map(int, number.split("."))
    spans = re.findall(r"(\d)\.(\d+)(?: to (\d)\.(\d+))?", text)
    return any(int(a) == chapter and int(b) <= count <= int(d or b) for a, b, _, d in spans)
