"""python -m benchmarks.compare_rows BEFORE AFTER: do two folders of result rows hold the same numbers?

Rows of AUROC are matched by configuration, category, pictures and seed. The same are an image AUROC within 0.1 points
and scores within 1e-4 of the largest score of their row. A line per method; the exit code is 1 where a row differs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from thesis_lib.core import results

POINTS, SCORES = 0.1, 1e-4
KEY = ("configuration", "category", "data", "seed")


def rows_of(folder: Path) -> dict[tuple, dict]:
    """Rows of AUROC in and below a folder, by what they measure: the newest of each."""
    found = [row for file in folder.rglob("auroc-*.json") for row in results.read(file)]
    return {tuple(row[name] for name in KEY): row for row in sorted(found, key=lambda row: row["finished"])}


def compare(before: dict[tuple, dict], after: dict[tuple, dict]) -> pd.DataFrame:
    """A line per row that both hold: AUROC points between them, and the largest difference of a score as a share of the
    largest score.
    """
    lines = []
    for key in sorted(before.keys() & after.keys()):
        old, new = before[key], after[key]
        first, second = np.asarray(old["scores"]), np.asarray(new["scores"])
        lines.append({"method": old["method"], "id": new["id"],
                      "points": 100 * abs(old["image_auroc"] - new["image_auroc"]),
                      "scores": np.abs(first - second).max() / np.abs(first).max()})
    return pd.DataFrame(lines, columns=["method", "id", "points", "scores"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_rows", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args(argv)
    before, after = rows_of(options.before), rows_of(options.after)
    lines = compare(before, after)
    if lines.empty:
        print(f"{options.before} and {options.after}: hold no row of the same configuration, category and seed",
              file=sys.stderr)
        return 1
    table = lines.groupby("method").agg(rows=("id", "size"), points=("points", "max"), scores=("scores", "max"))
    print(table.rename(columns={"points": "largest AUROC difference, points", "scores": "largest score difference"}))
    print(f"{len(lines)} rows of {len(before)} and {len(after)} measure the same")
    differing = lines[(lines["points"] > POINTS) | (lines["scores"] > SCORES)]
    for line in differing.itertuples():
        print(f"differs: {line.method} {line.id}: {line.points:.2f} points, scores {line.scores:.1e}")
    return int(len(differing) > 0)


if __name__ == "__main__":
    sys.exit(main())
