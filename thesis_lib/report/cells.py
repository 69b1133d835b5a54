"""Links of the guides to single cells of pages: anchors on the site, and what the tests hold them to.

In Markdown such a link is ``[03-05](../outputs/rendered/03_resnet_layers.ipynb "top-1 error")``: the id of a cell, the
page, and words that stand in the cell. On a code host it leads to the page, on the site to the cell. A link to a file
of the library or of the tests has words of it, too; the site, which has no such files, shows its path.
"""

import html
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

LINK = re.compile(r'\[(?P<cell>[\w-]+)\]\((?:\.\./)+outputs/rendered/(?P<page>\w+)\.ipynb(?: "(?P<words>[^"]*)")?\)')

FILE = re.compile(r'\[[\w.]+\]\((?:\.\./)+(?P<path>(?:tests|thesis_lib)/[\w./]+)(?: "(?P<words>[^"]*)")?\)')
TAGS = re.compile(r"<style.*?</style>|<[^>]+>", re.DOTALL)


@dataclass(frozen=True)
class Link:
    """One link: a page without its suffix, the id of a cell, and words of that cell ("" for none)."""

    page: str
    cell: str
    words: str = ""


def links(text: str) -> Iterator[Link]:
    """Every link of a Markdown text to a cell, in its order.

    >>> next(links('see [03-05](../outputs/rendered/03_resnet_layers.ipynb "top-1 error")'))
    Link(page='03_resnet_layers', cell='03-05', words='top-1 error')
    """
    return (Link(found["page"], found["cell"], found["words"] or "") for found in LINK.finditer(text))


def rows(text: str) -> list[list[str]]:
    """Cells of every row of the tables of a Markdown text, without their heads.

    >>> rows("| a | b |\\n|---|---|\\n| 1 | 2 |")
    [['1', '2']]
    """
    lines = [line.strip() for line in text.splitlines()]
    body = [line for line, after in zip(lines, [*lines[1:], ""], strict=True)
            if line.startswith("|") and not line.startswith("|--") and not after.startswith("|--")]
    return [[part.strip() for part in line[1:-1].split("|")] for line in body]


def says(cell: Mapping) -> str:
    """Source and printed text of a notebook's cell on one line, each run of spaces as one; of tables the text alone."""
    texts = ["".join(cell["source"])]
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        texts += ["".join(part) for part in (output.get("text", ""), data.get("text/plain", ""),
                                             data.get("text/markdown", ""))]
        texts.append(html.unescape(TAGS.sub(" ", "".join(data.get("text/html", "")))))
    return " ".join(" ".join(texts).split())


def anchored(text: str, known: Container[str]) -> str:
    """The text with every link to a cell of `known` pages as one to its anchor; others, and files, as plain code."""
    def one(found: re.Match) -> str:
        return f"[{found['cell']}](#{anchor(found['cell'])})" if found["page"] in known else f"`{found['cell']}`"
    return FILE.sub(r"`\g<path>`", LINK.sub(one, text))


def anchor(cell: str) -> str:
    """Name of a cell's anchor on the site."""
    return f"cell-{cell}".lower()
