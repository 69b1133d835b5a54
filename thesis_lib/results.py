"""One JSON file per measured row: (configuration, category, seed) named by a readable slug and a hash of all of it."""

import hashlib
import json
import os
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from thesis_lib import paths
from thesis_lib.stamp import library_hash, stamp

if TYPE_CHECKING:
    import pandas as pd


def identity(kind: str, subject: dict) -> str:
    """Hash of everything that decides the numbers of a row, the sources of this library included."""
    text = json.dumps({"kind": kind, "library": library_hash(), **subject}, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def find(kind: str, subject: dict) -> dict | None:
    """The finished row of this subject, measured on this machine, or None. ValueError names a damaged file."""
    files = list(paths.results().glob(f"*-{identity(kind, subject)}.json"))
    return _noted(_read(files[0])) if files else None


def files(ids: Iterable[str]) -> list[Path]:
    """Where the rows of these ids lie, sorted by name. KeyError with the first that is not there."""
    there = {file.stem.rpartition("-")[2]: file for file in paths.results().glob("*.json")}
    return sorted(there[row] for row in ids)


def rows(ids: Iterable[str]) -> list[dict]:
    """Rows of these ids, measured on this machine."""
    return [_read(file) for file in files(ids)]


def save(kind: str, subject: dict, values: dict) -> dict:
    """Write the row atomically with its stamp and return it: subject and values side by side, no nesting added."""
    made = row(kind, subject, values, stamp())
    write_atomically(path(made), line(made))
    return _noted(made)         # exactly what `find` will give back


def row(kind: str, subject: dict, values: dict, measured_with: dict) -> dict:
    """A finished row with its stamp, in JSON's types."""
    made = {"kind": kind, "id": identity(kind, subject), **subject, **values,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"), "stamp": measured_with}
    return json.loads(json.dumps(made, default=list))


def path(row: dict) -> Path:
    """Where a row measured on this machine lies."""
    return paths.results() / f"{_slug(row['kind'], row)}-{row['id']}.json"


def line(row: dict) -> str:
    """A row as a file holds it, one below the other."""
    return json.dumps(row) + "\n"


def load_all() -> "pd.DataFrame":
    """All rows measured here and those published with the project, one line each, nested facts as `parameters.layers`;
    `origin` is own or published. Raises ValueError naming a file that is no row.
    """
    import pandas as pd

    published = paths.published()
    files = [file for file in sorted(paths.results().rglob("*.json*")) if published not in file.parents]
    files += sorted(published.glob("*.json*"))
    return pd.json_normalize([row | {"origin": "published" if published in file.parents else "own"} for file in files
                              if file.suffix in (".json", ".jsonl") for row in _rows(file)])


def devices() -> "pd.DataFrame":
    """Rows of `thesis measure` under outputs/results/devices, one line each; empty where there is none."""
    import pandas as pd

    return pd.json_normalize([row for file in sorted(paths.devices().glob("*.json*")) for row in _rows(file)])


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file is there whole or not at all, also when the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def note(ids: Iterable[str]) -> None:
    """Write ids to the file that the batch names: a page can then show the rows behind it. `find` and `save` do so by
    themselves; a notebook that reads all rows says which of them it shows. Rows that are not of this machine are no
    files here and are left out.
    """
    own = {file.stem.rpartition("-")[2] for file in paths.results().glob("*.json")}
    _note(row for row in ids if row in own)


def _noted(row: dict) -> dict:
    _note([row["id"]])
    return row


def _note(ids: Iterable[str]) -> None:
    if file := os.environ.get("THESIS_ROWS"):
        with open(file, "a", encoding="utf-8") as log:
            log.writelines(f"{row}\n" for row in ids)


def _read(file: Path) -> dict:
    (row,) = _rows(file)
    return row


def _rows(file: Path) -> list[dict]:
    """One a line."""
    try:
        rows = [json.loads(part) for part in file.read_text(encoding="utf-8").splitlines()]
        if not rows:
            raise ValueError("empty")
        for row in rows:
            row["kind"], row["stamp"]
    except (ValueError, KeyError, TypeError) as error:      # ValueError: no JSON, no UTF-8
        raise ValueError(f"{file}: not a result row ({error}); delete it and measure again") from error
    return rows


def _slug(kind: str, subject: dict) -> str:
    p = subject["parameters"]
    parts = [kind, subject["method"], subject["category"], p.get("backbone"),
             "L" + "".join(map(str, p["layers"])) if "layers" in p else None,
             None if p.get("engine") == "eager" else p.get("engine"),
             p.get("embedding"), f"bank{p['bank']}" if "bank" in p else None,
             None if subject.get("seed") is None else f"s{subject['seed']}"]
    return "-".join(str(part) for part in parts if part is not None).replace("%", "pct").replace("/", "_")
