"""Rows of one configuration on one category as one: the values of all banks in it, their scores in a file of the set.

Rows of `evaluation.scores` go in. Out come lines for `outputs/results/published` and, for each set, an archive of
float32 scores, small enough to ship; and `verdicts.Scored` from rows of either kind.
Letters: S banks or draws, n test pictures.
"""

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thesis_lib.core import files, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import metrics
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.evaluation.statements import id_of
from thesis_lib.evaluation.verdicts import Scored

NAME = "real"                   # of the files that `thesis reproduce` publishes
VERDICTS = f"{NAME}_verdicts.csv"                                       # records of `evaluation.verdicts` beside them
KIND = "auroc_banks"            # of a row with the values of all banks; "auroc" is that of one bank
EACH = ("image_auroc", "pixel_auroc", "pro")                            # a list of them, one for each bank
SAME = ("configuration", "method", "parameters", "weights", "preprocess", "engine", "category", "data", "n_train",
        "n_test_good", "n_test_defective", "stamp")
LABELS = "labels"               # name in an archive, beside the configurations
SIGNIFICANT = 5                 # digits of a value in a line; the AUROC of 119 by 41 pictures has steps of 0.02 points


def write(rows: Iterable[results.Row], folder: Path, name: str = NAME,
          scores_of: Iterable[str] | None = None) -> list[Path]:
    """NAME.jsonl with a line for each configuration and category, and NAME_CATEGORY.npz with their scores: the files.

    scores_of: ids of sides (`statements.Side.id`) whose scores are kept, of the others the AUROCs alone; None keeps
    all. ThesisError where rows of a category were measured on several data sets.
    """
    wanted = None if scores_of is None else set(scores_of)
    archives: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    written_lines = []
    for (configuration, category), banks in _groups(rows).items():
        line = _line(banks)
        if wanted is None or id_of(Configuration.from_row(banks[0])) in wanted:
            scores = np.array([row["scores"] for row in banks], np.float32)
            archives[category] |= {LABELS: np.array(banks[0]["labels"], np.int8), configuration: scores}
            line["scores"] = {"file": f"{name}_{category}.npz", "sha256": files.digest(scores)}
        written_lines.append(line)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.jsonl"]
    files.write(written[0], "".join(map(results.line, written_lines)))
    for category, arrays in archives.items():
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)          # type: ignore[arg-type]  # of numpy, for allow_pickle
        written.append(folder / f"{name}_{category}.npz")
        files.write(written[-1], content.getvalue())
    return written


def lines(rows: Iterable[results.Row]) -> list[results.Row]:
    """A line for each configuration and category, as `write` writes them but without scores and interval."""
    return [_facts(banks) for banks in _groups(rows).values()]


def read(file: Path) -> dict[tuple[str, str], Scored]:
    """What `verdicts.judge` takes, of the lines of a NAME.jsonl that have scores; ThesisError where an archive beside
    it is not the one that the lines were written with.
    """
    found: dict[tuple[str, str], Scored] = {}
    archives: dict[str, Mapping[str, np.ndarray]] = {}
    for line in results.read(file):
        if line["kind"] != KIND or not line.get("scores"):
            continue
        place = file.parent / line["scores"]["file"]
        if place.name not in archives:
            archives[place.name] = _archive(place)
        scores = archives[place.name].get(line["configuration"])
        if scores is None or files.digest(scores) != line["scores"]["sha256"]:
            raise ThesisError(f"{place}: does not hold the scores of {line['configuration']}, row {line['id']} of "
                              f"{file}; both files belong together, restore them")
        _add(found, line, Scored(archives[place.name][LABELS], scores, (line["id"],)))
    return found


def of_rows(rows: Iterable[results.Row]) -> dict[tuple[str, str], Scored]:
    """The same of rows as they were measured, one for each bank."""
    found: dict[tuple[str, str], Scored] = {}
    for banks in _groups(rows).values():
        _add(found, banks[0], Scored(np.array(banks[0]["labels"]), np.array([row["scores"] for row in banks]),
                                     tuple(row["id"] for row in banks)))
    return found


def _add(found: dict[tuple[str, str], Scored], row: Mapping[str, Any], scored: Scored) -> None:
    key = id_of(Configuration.from_row(row)), row["category"]
    if key in found:
        raise ThesisError(f"row {row['id']}: {row['method']} on {row['category']} was measured with several weights or "
                          "data sets; take the rows of one")
    found[key] = scored


def _groups(rows: Iterable[results.Row]) -> dict[tuple[str, str], list[results.Row]]:
    """The banks of each configuration and category, by seed; of a seed that was measured again the last row."""
    latest: dict[tuple[str, str], dict[int, results.Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row["finished"]):
        if row["kind"] == "auroc":
            latest[row["configuration"], row["category"]][row["seed"]] = row
    groups = {key: [banks[seed] for seed in sorted(banks)] for key, banks in latest.items()}
    first: dict[str, results.Row] = {}          # of each category
    for (_, category), banks in groups.items():
        for row in banks:
            if (row["data"], row["names"]) != (first.setdefault(category, row)["data"], first[category]["names"]):
                raise ThesisError(f"row {row['id']}: its {category} has other pictures than row "
                                  f"{first[category]['id']}; take the rows of one data set")
    return groups


def _line(banks: Sequence[results.Row]) -> results.Row:
    """One row of those of all banks, with the interval of their mean."""
    low, high = metrics.auroc_interval(banks[0]["labels"], np.array([row["scores"] for row in banks]))
    return _facts(banks) | results.plain({"image_auroc_low": _short(low), "image_auroc_high": _short(high)})


def _facts(banks: Sequence[results.Row]) -> results.Row:
    """What the rows of all banks say but for the scores: `rows` are their ids, `fit_s` is the mean."""
    first = banks[0]
    line: results.Row = {"kind": KIND, "id": files.digest(json.dumps([row["id"] for row in banks]))[:12]}
    line |= {name: first[name] for name in SAME} | {"seeds": [row["seed"] for row in banks]}
    line |= {name: [_short(row[name]) for row in banks] for name in EACH if first.get(name) is not None}
    return results.plain(line | {"fit_s": _short(float(np.mean([row["fit_s"] for row in banks]))),
                                 "rows": [row["id"] for row in banks],
                                 "finished": max(row["finished"] for row in banks)})


def _short(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT}g}")


def _archive(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise ThesisError(f"{file}: no readable archive of scores ({error}); restore it") from error
