"""Pieces of a page that needs nothing but itself: figures and tables as HTML, and the only style of such pages."""

import base64
import re
from html import escape

import pandas as pd
from matplotlib.figure import Figure

STYLE = """
body { font: 17px/1.5 system-ui, sans-serif; color: #222; max-width: 64rem; margin: 0 auto; padding: 0 1rem 2rem }
h1, h2, h3 { line-height: 1.2 }
h2 { margin-top: 2.2rem }
.answer { border-left: .4rem solid #2f7d4f; background: #eef6f0; padding: .7rem 1rem; font-size: 1.1rem }
.answer.none { border-color: #b7791f; background: #fdf6e7 }
.note { color: #555; font-size: .9rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 1rem; align-items: end }
figure { margin: 0 }
figcaption { font-size: .85rem; overflow-wrap: anywhere }
img { width: 100%; display: block; margin: 0 auto }
img.wide { max-width: 40rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0 }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
th { font-weight: 600; vertical-align: bottom }
td { white-space: nowrap }
tr.marked td { font-weight: 700 }
pre { background: #f3f3f3; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
footer { color: #555; font-size: .85rem; border-top: 1px solid #ccc; margin-top: 2rem; overflow-wrap: anywhere }
"""


def picture(figure: Figure, alt: str, kind: str = "") -> str:
    """A figure of `report.figures` inside the page; alt says what it shows where it cannot be seen."""
    encoded = base64.b64encode(figure._repr_png_()).decode()        # type: ignore[attr-defined]
    named = f' class="{kind}"' if kind else ""
    return f'<img{named} alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'


def table(frame: pd.DataFrame, marked: int | None = None) -> str:
    """A frame of texts with its columns as head, in a box that scrolls sideways on a narrow screen; marked: a row."""
    head = "".join(f"<th>{escape(str(column))}</th>" for column in frame.columns)
    rows = []
    for number, row in enumerate(frame.itertuples(index=False)):
        cells = "".join(f"<td>{escape(str(value))}</td>" for value in row)
        rows.append(f'<tr{" class=" + chr(34) + "marked" + chr(34) if number == marked else ""}>{cells}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def unbroken(text: str) -> str:
    """The same with spaces that no line breaks at between a number and its unit.

    >>> unbroken("61 ms of 3 s, 5 %") == "61\\u00a0ms of 3\\u00a0s, 5\\u00a0%"
    True
    """
    return re.sub(r"(?<=\d) (?=(?:ms|s)\b|%)", "\u00a0", text)
