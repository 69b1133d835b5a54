"""One JSON file per measured row: (configuration, category, seed) named by a readable slug and a hash of all of it.

A subject, what was measured, goes in and finds the row of an earlier run; with its values it becomes a new one.
"""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from thesis_lib.core import files, paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.stamp import stamp

Row = dict[str, Any]
TOLD = ("parameters", "preprocess", "weights")      # of a configuration: its id stands for them


def row_id(kind: str, subject: Mapping[str, Any]) -> str:
    """Hash of everything that decides the numbers of a row; the code that they ran through is part of its subject.

    Where the subject has the id of a configuration, that counts in place of all that it was made of.
    """
    implied = TOLD if "configuration" in subject else ()
    deciding = {"kind": kind} | {name: value for name, value in subject.items() if name not in implied}
    return files.digest(json.dumps(deciding, sort_keys=True, default=list))[:12]


def find(kind: str, subject: Mapping[str, Any]) -> Row | None:
    """The finished row of this subject, measured on this machine, or None. ThesisError names a damaged file."""
    stored = list(paths.results().glob(f"*-{row_id(kind, subject)}.json"))
    return _noted(_only_row(stored[0])) if stored else None


def files_of(ids: Iterable[str]) -> list[Path]:
    """Where the rows of these ids lie, sorted by name. KeyError with the first that is not there."""
    by_id = {file.stem.rpartition("-")[2]: file for file in paths.results().glob("*.json")}
    return sorted(by_id[row] for row in ids)


def save(kind: str, subject: Mapping[str, Any], values: Mapping[str, Any]) -> Row:
    """Write the row atomically with its stamp and return it: subject and values side by side, no nesting added."""
    row = make_row(kind, subject, values, stamp())
    files.write(path_of(row), line(row))
    return _noted(row)          # exactly what `find` will give back


def make_row(kind: str, subject: Mapping[str, Any], values: Mapping[str, Any], measured_with: Mapping[str, Any]) -> Row:
    """A finished row with its stamp, in JSON's types; not stored."""
    row = {"kind": kind, "id": row_id(kind, subject), **subject, **values,
           "finished": datetime.now(UTC).isoformat(timespec="seconds"), "stamp": measured_with}
    return plain(row)


def plain(values: Any) -> Any:
    """The same in JSON's types; NaN and infinity, which JSON lacks, become None."""
    return json.loads(json.dumps(values, default=list), parse_constant=lambda number: None)


def path_of(row: Row) -> Path:
    """Where a row measured on this machine lies."""
    return paths.results() / f"{_slug(row['kind'], row)}-{row['id']}.json"


def line(row: Row) -> str:
    """A row as a file holds it, one below the other."""
    return json.dumps(row) + "\n"


def read(file: Path) -> list[Row]:
    """The rows of a file, one a line. ThesisError names a file that holds something else."""
    try:
        rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
        if not rows:
            raise ValueError("empty")
        for row in rows:
            row["kind"], row["stamp"]
    except (ValueError, KeyError, TypeError) as error:      # ValueError: no JSON, no UTF-8
        raise ThesisError(f"{file}: not a result row ({error}); delete it and measure again") from error
    return rows


def note(ids: Iterable[str]) -> None:
    """Write ids to the file that the batch names: a page can then show the rows behind it. `find` and `save` do so by
    themselves; a notebook that reads all rows says which of them it shows. Rows that are not of this machine are no
    files here and are left out.
    """
    measured_here = {file.stem.rpartition("-")[2] for file in paths.results().glob("*.json")}
    _note(row for row in ids if row in measured_here)


def _noted(row: Row) -> Row:
    """The row, its id noted."""
    _note([row["id"]])
    return row


def _note(ids: Iterable[str]) -> None:
    if file := os.environ.get("THESIS_ROWS"):
        with open(file, "a", encoding="utf-8") as log:
            log.writelines(f"{row}\n" for row in ids)


def _only_row(file: Path) -> Row:
    (row,) = read(file)
    return row


def _slug(kind: str, subject: Mapping[str, Any]) -> str:
    """What a reader of file names looks for; the id after it is what makes them unique."""
    given = subject["parameters"]
    parts = [kind, subject["method"], subject["category"], given.get("backbone"),
             "L" + "".join(map(str, given["layers"])) if "layers" in given else None,
             None if given.get("engine") == "eager" else given.get("engine"),
             given.get("embedding"), f"bank{given['bank']}" if "bank" in given else None,
             None if subject.get("seed") is None else f"s{subject['seed']}"]
    return "-".join(str(part) for part in parts if part is not None).replace("%", "pct").replace("/", "_")
