"""Lines of a study: AUROC and milliseconds of each rung of its ladder, all on the same pictures.

Rungs and a category go in, lines come out, the cheapest first. Finished rows are taken from outputs/results.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thesis_lib.core.preprocess import Preprocess
from thesis_lib.data.folders import Category
from thesis_lib.evaluation import on_pi, wins
from thesis_lib.evaluation.folded import evaluate_folded, wins_of
from thesis_lib.evaluation.ladder import Rung
from thesis_lib.evaluation.on_pi import Predicted
from thesis_lib.evaluation.scores import evaluate_many
from thesis_lib.evaluation.stage_times import measure_times
from thesis_lib.evaluation.wins import Wins
from thesis_lib.methods.base import Detector

log = logging.getLogger("thesis_lib")


@dataclass(frozen=True)
class Times:
    """Milliseconds of one picture, all pictures and repetitions together: the median, and the quartiles around it."""

    ms: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Times":
        """Of a row of `measure_times`."""
        low, ms, high = np.percentile(1e3 * np.sum(row["raw_s"], axis=2), [25, 50, 75]).tolist()
        return cls(ms, low, high)


@dataclass(frozen=True)
class Line:
    """One configuration: AUROC and its interval as shares, NaN without defective pictures; milliseconds a picture."""

    rung: Rung
    won: Wins | None
    low: float
    high: float
    here: Times                 # measured on this machine
    pi4: Predicted | None       # not measured
    ms: float                   # of the device that was asked for; NaN where it has no prediction
    seeds: int

    @property
    def auroc(self) -> float:
        return self.won.auroc if self.won else math.nan

    @property
    def pictures(self) -> tuple[int, int]:
        """Good and defective ones that the AUROC is of."""
        good, defective = self.won.won.shape if self.won else (0, 0)
        return good, defective


def measured(rungs: Sequence[Rung], category: Category, device: str, *, seeds: int, batch_size: int, force: bool,
           pictures: int, threads: int | None) -> list[Line]:
    """All rungs, the cheapest first; those of one size together, so that its features are computed once."""
    found: dict[str, Line] = {}
    for preprocess in dict.fromkeys(rung.preprocess for rung in rungs):
        group = {rung.name: rung for rung in rungs if rung.preprocess == preprocess}
        detectors = {name: rung.detector for name, rung in group.items()}
        log.info("study: %s", ", ".join(group))
        won = _won(detectors, category, preprocess, seeds, batch_size, force)
        times = measure_times(detectors, category, preprocess, pictures=pictures, threads=threads, force=force)
        for name, rung in group.items():
            here, there = Times.of(times[name]), on_pi.predict(rung.detector, preprocess.shape, len(category.train))
            low, high = wins.interval(won[name]) if name in won else (math.nan, math.nan)
            ms = here.ms if device == "here" else there.ms if there else math.nan
            count = seeds if rung.detector.seeded else 1
            found[name] = Line(rung, won.get(name), low, high, here, there, ms, count)
    return sorted(found.values(), key=lambda line: (math.isnan(line.ms), line.ms))


def _won(detectors: Mapping[str, Detector], category: Category, preprocess: Preprocess, seeds: int, batch_size: int,
         force: bool) -> dict[str, Wins]:
    """By name what the rows of a detector say; nothing without defective pictures."""
    labels = category.labels
    if not labels.any():
        return {}
    if category.cross_fitted:
        folded = evaluate_folded(detectors, category, preprocess, seeds=seeds, batch_size=batch_size, force=force)
        return {name: wins_of(rows) for name, rows in folded.items()}
    tables = evaluate_many(detectors, category, preprocess, seeds=seeds, pixels=False, batch_size=batch_size,
                           force=force)
    found = {}
    for name, rows in tables.items():
        scores = np.array(rows["scores"].tolist())
        found[name] = Wins.of(scores[:, labels == 0], scores[:, labels == 1])
    return found
