"""One JSON file per measured row: (configuration, category, seed) named by a readable slug and a hash of all of it."""

import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from thesis_lib import paths
from thesis_lib.stamp import library_hash, stamp


def identity(kind: str, subject: dict) -> str:
    """Hash of everything that decides the numbers of a row, the sources of this library included."""
    text = json.dumps({"kind": kind, "library": library_hash(), **subject}, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def find(kind: str, subject: dict) -> dict | None:
    """The finished row of this subject, measured on this machine, or None. ValueError names a damaged file."""
    files = list(paths.results().glob(f"*-{identity(kind, subject)}.json"))
    return _noted(_read(files[0])) if files else None


def save(kind: str, subject: dict, values: dict) -> dict:
    """Write the row atomically with its stamp and return it: subject and values side by side, no nesting added."""
    row_id = identity(kind, subject)
    row = {"kind": kind, "id": row_id, **subject, **values,
           "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"), "stamp": stamp()}
    text = json.dumps(row, default=list)
    write_atomically(paths.results() / f"{_slug(kind, subject)}-{row_id}.json", text + "\n")
    return _noted(json.loads(text))     # exactly what `find` will give back


def load_all() -> pd.DataFrame:
    """All rows measured here and those published with the project, one line each, nested facts as `parameters.layers`;
    `origin` is own or published; of those, a .jsonl file has many. Raises ValueError naming a file that is no row.
    """
    published = paths.published()
    own = [file for file in sorted(paths.results().rglob("*.json")) if published not in file.parents]
    given = [row for file in sorted(published.glob("*.json*")) for row in _rows(file)]
    return pd.json_normalize([_read(file) | {"origin": "own"} for file in own]
                             + [row | {"origin": "published"} for row in given])


def devices() -> pd.DataFrame:
    """Rows of `thesis measure` under outputs/results/devices, one line each; empty where there is none."""
    return pd.json_normalize([row for file in sorted(paths.devices().glob("*.json*")) for row in _rows(file)])


def write_atomically(path: Path, text: str) -> None:
    """The file is there whole or not at all, also when the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _noted(row: dict) -> dict:
    """The row, its id written to the file that the batch names: a page can then show the rows behind it."""
    if file := os.environ.get("THESIS_ROWS"):
        with open(file, "a", encoding="utf-8") as log:
            log.write(row["id"] + "\n")
    return row


def _read(file: Path) -> dict:
    (row,) = _rows(file)
    return row


def _rows(file: Path) -> list[dict]:
    """The row of a .json file, or those of a .jsonl file, one a line."""
    try:
        text = file.read_text(encoding="utf-8")
        rows = [json.loads(part) for part in (text.splitlines() if file.suffix == ".jsonl" else [text])]
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
