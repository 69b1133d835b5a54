"""Which configuration is enough for these pictures, and how sure is that? A ladder of them on one category.

A category goes in, a `Study` comes out: a line for each configuration with AUROC and milliseconds, the recommended one,
and what a page has to show of it (`report.study`). The same from the shell: `thesis study`.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import one_of
from thesis_lib.core.preprocess import Preprocess, in_pixels
from thesis_lib.data.folders import Category
from thesis_lib.evaluation import wins
from thesis_lib.evaluation.examined import Examined, examine
from thesis_lib.evaluation.ladder import fitting, ladder, sizes_of, usable
from thesis_lib.evaluation.lines import Line, measured
from thesis_lib.evaluation.recommendation import recommend, usual
from thesis_lib.evaluation.robustness import STEPS

DEVICES = ("here", "pi4")
FEWEST = 5              # good pictures: one in each fold
QUICK = {"train": 60, "test": 60}       # pictures at most, evenly spaced
# Of `robustness`; those that move a picture are left out.
QUICK_STEPS = {"brightness": (-0.1, 0.1), "blur": (0.002,), "noise": (5,), "jpeg": (70,)}
log = logging.getLogger("thesis_lib")


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
    notes: tuple[str, ...]

    @property
    def ranked(self) -> bool:
        """Whether there were defective pictures to rank by."""
        return self.best is not None

    def table(self) -> pd.DataFrame:
        """One configuration a line, the cheapest first: what `rows.csv` holds. AUROC as shares."""
        return pd.DataFrame([_row(line, self) for line in self.lines])

    def per_defect(self) -> pd.DataFrame:
        """For each kind of defect: pictures, AUROC of the configuration looked at with its interval, and how many it
        flags at the usual threshold.
        """
        rows, kinds, won = [], np.array(self.kinds), self.looked_at.won
        flagged = self.examined.bad > self.examined.usual.threshold
        for kind in sorted(set(self.kinds)):
            assert won is not None
            own = kinds == kind
            low, high = wins.interval(won.only(own))
            rows.append({"defect": kind, "pictures": int(own.sum()), "image_auroc": won.only(own).auroc,
                         "image_auroc_low": low, "image_auroc_high": high, "flagged": int(flagged[own].sum())})
        return pd.DataFrame(rows, columns=["defect", "pictures", "image_auroc", "image_auroc_low", "image_auroc_high",
                                           "flagged"])


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
    rungs, left_out = usable(ladder(category, shaped, backbone=backbone, weights=weights, engine=engine, tiles=tiles,
                                    trained=trained, quick=quick, squeezed=asked if squeezed else None), category)
    # 2. AUROC and time of each rung.
    lines = measured(rungs, category, device, seeds=seeds or (1 if quick else 3), batch_size=batch_size, force=force,
                     pictures=pictures or (2 if quick else 5), threads=threads)
    # 3. What to take.
    chosen, reference, best = recommend(lines, budget_ms, device)
    won = [line.won for line in lines if line.won]
    behind = (math.nan,) * 3
    if chosen and reference and chosen.won and reference.won:
        behind = wins.difference(chosen.won, reference.won)
    # 4. A closer look at it.
    looked_at = chosen or (lines[0] if won else usual(lines))
    log.info("study: a closer look at %s", looked_at.rung.name)
    close = examine(looked_at.rung.detector, category, looked_at.rung.preprocess,
                    steps=QUICK_STEPS if quick else STEPS, batch_size=batch_size, force=force)
    if squeezed:
        told, _, _ = squeezed.rpartition("; ")
        squeezed = (f"{told}; the study has taken {in_pixels(shaped.shape)}{' padded' * (shaped.resize == 'pad')} and "
                    f"sizes of that shape, and tried the square of {in_pixels(asked.shape)} beside them.")
    notes = _notes(category, squeezed, quick, trained) + _own_weights(lines, weights) + left_out
    return Study(category, tuple(lines), device, budget_ms, chosen, looked_at, reference, best, behind,
                 wins.optimism(won) if won else math.nan, close,
                 tuple(sample.defect for sample in category.test if sample.label), tuple(notes))


def _notes(category: Category, squeezed: str, quick: bool, trained: bool) -> list[str]:
    """What a reader of the numbers should know beside them."""
    notes = []
    if squeezed:
        notes.append(squeezed)
    if category.cross_fitted:
        notes.append("There are no good test pictures. In each of five folds the good pictures that were held out and "
                     "all defective ones were scored by a detector that had learned from the other good ones; the "
                     "AUROC is the mean over the folds."
                     + (" A trained method learns once, and has fewer good pictures to be tested with: those that it "
                        "kept back." if trained else ""))
    if quick:
        notes.append(f"A quick look: one seed, at most {QUICK['train']} pictures to learn from and {QUICK['test']} to "
                     "test. The sizes are those of the full study.")
    if trained:
        notes.append("The trained methods had a short training, a small part of their papers': that they lose here "
                     "says little about them.")
    return notes


def _own_weights(lines: Sequence[Line], weights: str) -> list[str]:
    """Which methods have another network than the one that was asked for."""
    return [f"{title} has a network of its own, {detector.backbone} with {detector.weights} weights: --weights "
            f"{Path(weights).name} and --backbone are those of the others."
            for title, detector in {line.rung.title: line.rung.detector for line in lines}.items()
            if detector.weights != weights]


def _row(line: Line, whole: Study) -> dict[str, Any]:
    detector = line.rung.detector
    return {"method": detector.name, "image_size": line.rung.size, "image_auroc": line.auroc,
            "image_auroc_low": line.low, "image_auroc_high": line.high, "milliseconds": line.ms,
            "name": line.rung.name, "layers": "+".join(map(str, detector.layers)),
            "resize": line.rung.preprocess.resize, "seeds": line.seeds, "n_good": line.pictures[0],
            "n_defective": line.pictures[1], "milliseconds_here": line.here.ms, "here_low": line.here.low,
            "here_high": line.here.high, "milliseconds_pi4_predicted": line.pi4.ms if line.pi4 else math.nan,
            "pi4_low": line.pi4.low if line.pi4 else math.nan, "pi4_high": line.pi4.high if line.pi4 else math.nan,
            "within_budget": whole.budget_ms is None or line.ms <= whole.budget_ms,
            "recommended": whole.ranked and line is whole.chosen}
