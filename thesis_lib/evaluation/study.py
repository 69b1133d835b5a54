"""Which configuration is enough for these pictures, and how sure is that? A ladder of them on one category.

A category goes in, a `Study` comes out: a line for each configuration with AUROC and milliseconds, the recommended one,
and what a page has to show of it (`report.study`). The same from the shell: `thesis study`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import one_of
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.data.folders import Category
from thesis_lib.evaluation import on_pi, wins
from thesis_lib.evaluation.examined import Examined, examine
from thesis_lib.evaluation.folded import evaluate_folded, wins_of
from thesis_lib.evaluation.ladder import Rung, fitting, ladder, sizes_of
from thesis_lib.evaluation.on_pi import Predicted
from thesis_lib.evaluation.robustness import STEPS, robustness
from thesis_lib.evaluation.scores import evaluate_many
from thesis_lib.evaluation.stage_times import measure_times
from thesis_lib.evaluation.wins import Wins
from thesis_lib.methods.base import Detector

DEVICES = ("here", "pi4")
BUNDLED = ("patchcore", "simplenet", "efficientad")     # what `device.export` can write
FEWEST = 5              # good pictures: one in each fold
QUICK = {"train": 60, "test": 60}       # pictures at most, evenly spaced
# Of `robustness`; those that move a picture are left out.
QUICK_STEPS = {"brightness": (-0.1, 0.1), "blur": (0.002,), "noise": (5,), "jpeg": (70,)}
log = logging.getLogger("thesis_lib")


@dataclass(frozen=True)
class Line:
    """One configuration: AUROC and its interval as shares, NaN without defective pictures; milliseconds a picture."""

    rung: Rung
    won: Wins | None
    low: float
    high: float
    here_ms: float              # measured on this machine
    pi4: Predicted | None       # not measured
    ms: float                   # of the device that was asked for; NaN where it has no prediction
    seeds: int

    @property
    def auroc(self) -> float:
        return self.won.auroc if self.won else math.nan


@dataclass(frozen=True)
class Study:
    """What came out. `chosen` is recommended, or, where `ranked` is False, merely the usual one; None only where the
    budget leaves nothing, then `examined` is of the fastest.
    """

    category: Category
    lines: tuple[Line, ...]             # the cheapest first
    device: str
    budget_ms: float | None
    chosen: Line | None
    looked_at: Line                     # whose pictures and thresholds these are
    reference: Line | None              # the best of those that the chosen one is held against
    best: Line | None                   # the best of all
    behind: tuple[float, float, float]  # AUROC of the chosen minus that of the reference, with its paired interval
    optimism: float                     # see `wins.optimism`
    examined: Examined
    kinds: tuple[str, ...]              # of the defective test pictures, one each
    robustness: pd.DataFrame | None
    notes: tuple[str, ...]

    @property
    def ranked(self) -> bool:
        """Whether there were defective pictures to rank by."""
        return self.best is not None

    def table(self) -> pd.DataFrame:
        """One configuration a line, the cheapest first: what `rows.csv` holds. AUROC as shares."""
        return pd.DataFrame([_row(line, self) for line in self.lines])

    def per_defect(self) -> pd.DataFrame:
        """For each kind of defect: pictures, AUROC of the configuration looked at, and how many it flags at the usual
        threshold.
        """
        rows, kinds, won = [], np.array(self.kinds), self.looked_at.won
        flagged = self.examined.bad > self.examined.usual.threshold
        for kind in sorted(set(self.kinds)):
            assert won is not None
            own = kinds == kind
            rows.append({"defect": kind, "pictures": int(own.sum()), "image_auroc": won.only(own).auroc,
                         "flagged": int(flagged[own].sum())})
        return pd.DataFrame(rows, columns=["defect", "pictures", "image_auroc", "flagged"])


def study(category: Category, preprocess: Preprocess | None = None, *, backbone: str = "resnet18",
          weights: str = "imagenet", engine: str = "eager", tiles: tuple[int, int] | None = None,
          budget_ms: float | None = None, device: str = "here", quick: bool = False, trained: bool = False,
          seeds: int | None = None, batch_size: int = 8, pictures: int | None = None, threads: int | None = None,
          force: bool = False) -> Study:
    """Evaluate the ladder on the category, and recommend the cheapest configuration within the budget of which it
    cannot be told that the best one is better (paired interval of the AUROCs).

    budget_ms: milliseconds a picture on `device`: here (measured) or pi4 (predicted). quick: one seed and few pictures,
    the same sizes. seeds: memory banks and draws of channels, 3 by default. Finished rows are taken from
    outputs/results.
    Raises ThesisError or DataError in one line for pictures and parameters that give no study.
    """
    one_of("device", device, DEVICES)
    if budget_ms is not None and not budget_ms > 0:
        raise ThesisError(f"budget={budget_ms:g} ms: needs a time above 0")
    if len(category.train) < FEWEST:
        raise ThesisError(f"{category.name}: {len(category.train)} good picture{'s' * (len(category.train) != 1)} to "
                          f"learn from; a study needs at least {FEWEST}, one for each fold, and 50 say much more")
    # 1. The pictures and their shape.
    if quick:
        category = category.subset(min(QUICK["train"], len(category.train)), min(QUICK["test"], len(category.test)))
    sizes = sizes_of(category)
    asked = preprocess or Preprocess()
    shaped, squeezed = fitting(asked, sizes)
    rungs = ladder(category, shaped, backbone=backbone, weights=weights, engine=engine, tiles=tiles, trained=trained,
                   quick=quick, squeezed=asked if squeezed else None)
    # 2. AUROC and time of each rung.
    lines = _lines(rungs, category, device, seeds=seeds or (1 if quick else 3), batch_size=batch_size, force=force,
                   pictures=pictures or (2 if quick else 5), threads=threads)
    # 3. What to take.
    chosen, reference, best = recommend(lines, budget_ms, device)
    won = [line.won for line in lines if line.won]
    behind = (math.nan,) * 3
    if chosen and reference and chosen.won and reference.won:
        behind = wins.difference(chosen.won, reference.won)
    # 4. A closer look at it.
    looked_at = chosen or (lines[0] if won else _usual(lines))
    log.info("study: a closer look at %s", looked_at.rung.name)
    close = examine(looked_at.rung.detector, category, looked_at.rung.preprocess, batch_size=batch_size)
    # 5. What light, blur and the like do to it, on pictures that it has not learned from.
    shown = None
    if (category.labels == 0).any():
        shown = robustness(close.detector, category.test, looked_at.rung.preprocess, close.usual.threshold,
                           steps=QUICK_STEPS if quick else STEPS, spread=close.usual.spread, batch_size=batch_size)
    return Study(category, tuple(lines), device, budget_ms, chosen, looked_at, reference, best, behind,
                 wins.optimism(won) if won else math.nan, close,
                 tuple(sample.defect for sample in category.test if sample.label), shown,
                 tuple(_notes(category, squeezed, quick, trained)))


def recommend(lines: Sequence[Line], budget_ms: float | None,
              device: str) -> tuple[Line | None, Line | None, Line | None]:
    """The recommended line, the best of those that it is held against, and the best of all; None where there is none.

    Recommended is the cheapest within the budget whose paired interval to the best of all includes 0. Where none within
    the budget is as good, the best of these takes the place of the best of all. On a Pi only what has a bundle counts.
    """
    ranked = [line for line in lines if line.won]
    if not ranked:
        return None, None, None
    best = max(ranked, key=lambda line: line.auroc)             # of equal ones the cheapest, which stands first
    allowed = [line for line in ranked if (budget_ms is None or line.ms <= budget_ms)
               and (device == "here" or (line.pi4 and line.rung.detector.name in BUNDLED))]
    if not allowed:
        return None, None, best
    for reference in (best, max(allowed, key=lambda line: line.auroc)):
        for line in sorted(allowed, key=lambda line: line.ms):
            if line is reference or _as_good(line, reference):
                return line, reference, best
    raise AssertionError("the best of those allowed is as good as itself")


def _as_good(line: Line, reference: Line) -> bool:
    """Whether the paired interval of their difference includes 0; one that cannot be had tells nothing apart."""
    assert line.won and reference.won
    _, _, high = wins.difference(line.won, reference.won)
    return not high < 0


def _lines(rungs: Sequence[Rung], category: Category, device: str, *, seeds: int, batch_size: int, force: bool,
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
            here, there = times[name]["total_ms"], on_pi.predict(rung.detector, preprocess.shape, len(category.train))
            low, high = wins.interval(won[name]) if name in won else (math.nan, math.nan)
            ms = here if device == "here" else there.ms if there else math.nan
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


def _usual(lines: Sequence[Line]) -> Line:
    """What is looked at where nothing can be ranked: PatchCore, of the sizes the middle one, of its levels the last."""
    cores = [line for line in lines if line.rung.detector.name == "patchcore"]
    level = max(line.rung.detector.layers for line in cores)
    deep = sorted((line for line in cores if line.rung.detector.layers == level),
                  key=lambda line: math.prod(line.rung.preprocess.shape))
    return deep[len(deep) // 2]


def _notes(category: Category, squeezed: str, quick: bool, trained: bool) -> list[str]:
    """What a reader of the numbers should know beside them."""
    notes = []
    if squeezed:
        notes.append(f"{squeezed}. The study has tried both.")
    if category.cross_fitted:
        notes.append("There are no good test pictures. In each of five folds the good pictures that were held out and "
                     "all defective ones were scored by a detector that had learned from the other good ones; the "
                     "AUROC is the mean over the folds.")
    if quick:
        notes.append(f"A quick look: one seed, at most {QUICK['train']} pictures to learn from and {QUICK['test']} to "
                     "test. The sizes are those of the full study.")
    if trained:
        notes.append("The trained methods had a short training, a small part of their papers': that they lose here "
                     "says little about them.")
    return notes


def _row(line: Line, whole: Study) -> dict[str, Any]:
    detector = line.rung.detector
    return {"method": detector.name, "image_size": line.rung.size, "image_auroc": line.auroc,
            "image_auroc_low": line.low, "image_auroc_high": line.high, "milliseconds": line.ms,
            "name": line.rung.name, "layers": "+".join(map(str, detector.layers)),
            "resize": line.rung.preprocess.resize, "seeds": line.seeds, "milliseconds_here": line.here_ms,
            "milliseconds_pi4_predicted": line.pi4.ms if line.pi4 else math.nan,
            "pi4_low": line.pi4.low if line.pi4 else math.nan, "pi4_high": line.pi4.high if line.pi4 else math.nan,
            "within_budget": whole.budget_ms is None or line.ms <= whole.budget_ms,
            "recommended": whole.ranked and line is whole.chosen}
