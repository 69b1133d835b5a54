"""One configuration looked at closely: scores that set a threshold, what small changes do, the pictures worth seeing.

A detector, a category and its preprocessing go in. Every nominal score is by a detector that has not learned from the
picture. What comes out is kept: a row, and the maps beside it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thesis_lib.core import files, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess, Sample
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures
from thesis_lib.evaluation import crossfit, scores
from thesis_lib.evaluation.crossfit import Part, Plan
from thesis_lib.evaluation.robustness import STEPS, possible, robustness
from thesis_lib.evaluation.thresholds import Promise
from thesis_lib.methods.base import Detector, Prediction
from thesis_lib.networks.maps import Extracted, Stored

RATES = (0.01, 0.02, 0.05, 0.1)         # of false alarms, as shares
SHOWN = 3               # pictures of a kind


@dataclass(frozen=True)
class Seen:
    """A picture with its score and its map (H, W), at the size that the network sees."""

    sample: Sample
    kind: str               # best: defective, high score; missed: defective, low score; alarm: good, high score
    score: float
    heat: np.ndarray


@dataclass(frozen=True)
class Examined:
    """nominal (n,) decide a threshold, made says how they came about; good and bad are scores of the test pictures."""

    preprocess: Preprocess      # with its grey levels decided
    nominal: np.ndarray
    made: str
    good: np.ndarray
    bad: np.ndarray
    seen: tuple[Seen, ...]
    robustness: pd.DataFrame    # see `robustness.robustness`
    changed: str                # which pictures that table is of, and what of it is left out and why, as sentences

    def promises(self) -> dict[float, Promise | str]:
        """By wanted rate of false alarms what can be promised, or why it cannot; the lowest possible rate first."""
        found: dict[float, Promise | str] = {}
        lowest = 1 / (len(self.nominal) + 1)
        for rate in (lowest, *(rate for rate in RATES if abs(rate - lowest) > 1e-9)):
            try:
                found[rate] = Promise.of(self.nominal, false_alarms=rate, good=self.good, defective=self.bad,
                                         made=self.made)
            except ThesisError as error:
                found[rate] = str(error)
        return dict(sorted(found.items()))

    @property
    def usual(self) -> Promise:
        """At 5 % false alarms, or at the lowest rate that so few pictures can promise."""
        rate = max(0.05, 1 / (len(self.nominal) + 1))
        return Promise.of(self.nominal, false_alarms=rate, good=self.good, defective=self.bad, made=self.made)


def examine(detector: Detector, category: Category, preprocess: Preprocess, *,
            steps: Mapping[str, Sequence[float]] = STEPS, batch_size: int = 8, force: bool = False) -> Examined:
    """Cross-fitted as for a threshold (`crossfit.promise`), then learned from all, with the pictures that say most: the
    best and the worst found defective ones, and the good ones with the highest scores.

    Without good test pictures these are good training pictures, seen by a detector that has not learned from them; and
    one fold's detector and good pictures are what the steps of `robustness` are tried on. What was looked at before is
    read instead (force looks again). ThesisError where so few pictures cannot be learned from.
    """
    preprocess = preprocess.decided(category.train)
    crossfit.check(detector, category.train, preprocess, crossfit.plan(detector, category.train))
    subject = scores.subject(detector, category, preprocess, seed=detector.seed, module=__name__)
    subject |= {"steps": {change: list(sizes) for change, sizes in steps.items()}}
    row = None if force else results.find("look", subject)
    heats = row and _read(_maps_of(row))
    if row is None or heats is None or len(heats) != len(row["seen"]):
        values, heats = _looked(detector, category, preprocess, steps, batch_size)
        row = results.save("look", subject, values)
        with files.replaced(_maps_of(row)) as partial, partial.open("wb") as stream:
            np.save(stream, heats)
    pictures = {"train": category.train, "test": category.test}
    seen = tuple(Seen(pictures[one["split"]][one["number"]], one["kind"], one["score"], heat)
                 for one, heat in zip(row["seen"], heats, strict=True))
    nominal, good, bad = (np.array(row[name], dtype=float) for name in ("nominal", "good", "bad"))
    return Examined(preprocess, nominal, row["made"], good, bad, seen, pd.DataFrame(row["robustness"]), row["changed"])


@dataclass(frozen=True)
class _Learned:
    """A detector that has learned, and what those that have not learned from `held` say of the training pictures."""

    detector: Detector
    nominal: np.ndarray                         # (n,) as in `Examined`
    highest: list[tuple[int, float, np.ndarray]]        # number among the training pictures, score, map
    other: Detector                             # that has not learned from the training pictures `held`
    held: tuple[int, ...]
    predicted: Callable[[Iterable[int]], Iterable[Prediction]]      # of test pictures by number, ascending


def _looked(detector: Detector, category: Category, preprocess: Preprocess, steps: Mapping[str, Sequence[float]],
            batch_size: int) -> tuple[dict[str, Any], np.ndarray]:
    """Values of a row, and the maps (k, H, W) of its k pictures."""
    # 1. Scores of good pictures by detectors that have not learned from them, of test pictures by the detector itself.
    planned = crossfit.plan(detector, category.train)
    learn = _in_folds if planned.folds else _at_once
    learned = learn(detector, category, preprocess, planned, batch_size)
    found = crossfit.scores_of(learned.predicted(range(len(category.test))) if category.test else ())
    # 2. The pictures to look at.
    wanted, good = _worth_seeing(category, found), category.labels == 0
    numbers = sorted(number for _, number in wanted)
    heats = dict(zip(numbers, _heats(learned.predicted(numbers) if numbers else (), preprocess), strict=True))
    seen = [({"split": "test", "number": number, "kind": kind, "score": float(found[number])}, heats[number])
            for kind, number in wanted]
    if not good.any():
        highest = sorted(learned.highest, key=lambda one: -one[1])[:SHOWN]
        seen += [({"split": "train", "number": number, "kind": "alarm", "score": score}, heat)
                 for number, score, heat in highest]
    # 3. What light, blur and the like do, on pictures that have not been learned from.
    tried, samples, told = learned.detector, category.test, "The test pictures were changed."
    if not good.any():
        tried, samples = learned.other, (*(category.train[number] for number in learned.held), *category.test)
        told = (f"There are no good test pictures: {len(learned.held)} good ones were changed, scored by a detector "
                f"that has not learned from them{', that of one fold' if planned.folds else ''}.")
    close = Examined(preprocess, learned.nominal, planned.made, found[good], found[~good], (), pd.DataFrame(), "")
    fitting, left_out = possible(samples, preprocess, steps)
    table = robustness(tried, samples, preprocess, close.usual.threshold, steps=fitting, spread=close.usual.spread,
                       batch_size=batch_size)
    values = {"nominal": close.nominal.tolist(), "made": close.made, "good": close.good.tolist(),
              "bad": close.bad.tolist(), "seen": [one for one, _ in seen], "robustness": table.to_dict("records"),
              "changed": f"{told} {left_out}".strip()}
    return values, np.array([heat for _, heat in seen], dtype=np.float32)


def _in_folds(detector: Detector, category: Category, preprocess: Preprocess, planned: Plan,
              batch_size: int) -> _Learned:
    """The network runs once over all pictures, whatever learns from them."""
    images = Pictures(category.train, preprocess, batch_size)
    network = detector.network(detector.levels, images)
    maps, nominal = Stored(Extracted(network, images)), np.empty(planned.n)
    top: list[tuple[int, float, Prediction, int]] = []          # the last is the row of that batch
    for numbers, predicted in crossfit.left_out(detector, network, maps, planned.folds):
        place = iter(numbers)
        for batch in predicted:
            new = [(next(place), score, batch, row) for row, score in enumerate(batch.score.tolist())]
            for number, score, *_ in new:
                nominal[number] = score
            # No more batches are kept than pictures are shown: a map is worked out when it is asked for.
            top = sorted([*top, *new], key=lambda one: -one[1])[:SHOWN]
    highest = [(number, score, batch.full_map(preprocess.shape)[row].numpy()) for number, score, batch, row in top]
    learned = crossfit.fitted(detector, network, maps)
    other, held = learned, tuple[int, ...]()
    if category.labels.all():
        # One of few folds, so that it has good pictures enough to count.
        coarse = crossfit.plan(detector, category.train, planned.order, crossfit.COARSE)
        ((other, part),) = crossfit.fitted_folds(detector, network, maps, coarse.folds[-1:])
        held = part.numbers
    tested = Stored(Extracted(network, Pictures(category.test, preprocess, batch_size)))
    return _Learned(learned, nominal, highest, other, held,
                    lambda numbers: crossfit.predictions(learned, Part(tested, numbers)))


def _at_once(detector: Detector, category: Category, preprocess: Preprocess, planned: Plan,
             batch_size: int) -> _Learned:
    """One that is trained keeps some of the pictures back."""
    def predicted(samples: Sequence[Sample], numbers: Iterable[int]) -> Iterable[Prediction]:
        return map(learned.predict, Pictures([samples[number] for number in numbers], preprocess, batch_size))

    learned = detector.fit(Pictures([category.train[number] for number in planned.learned], preprocess, batch_size))
    nominal = crossfit.scores_of(predicted(category.train, planned.held))
    found = dict(zip(planned.held, nominal.tolist(), strict=True))
    top = _top(found)
    highest = [(number, found[number], heat)
               for number, heat in zip(top, _heats(predicted(category.train, top), preprocess), strict=True)]
    return _Learned(learned, nominal, highest, learned, planned.held,
                    lambda numbers: predicted(category.test, numbers))


def _maps_of(row: results.Row) -> Path:
    """The file of the maps beside that of the row."""
    return results.path_of(row).with_suffix(".npy")


def _read(file: Path) -> np.ndarray | None:
    """Maps (k, H, W); None where they are not there or cut short."""
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError):
        return None


def _worth_seeing(category: Category, found: np.ndarray) -> list[tuple[str, int]]:
    """Kind and number of the test pictures to look at, by their scores (n,); no picture is of two kinds."""
    anomalous = np.flatnonzero(category.labels == 1)
    order = anomalous[np.argsort(found[anomalous], kind="stable")].tolist()
    extreme = scores.worst(category, found, SHOWN)
    low = [number for number in extreme if category.labels[number]][:len(order) // 2]
    best = [number for number in order[::-1] if number not in low][:SHOWN]
    alarms = [number for number in extreme if not category.labels[number]]
    return [*(("best", number) for number in best), *(("missed", number) for number in low),
            *(("alarm", number) for number in alarms)]


def _top(found: Mapping[int, float]) -> list[int]:
    """Of numbers with their scores those of the highest, ascending."""
    return sorted(sorted(found, key=lambda number: -found[number])[:SHOWN])


def _heats(predicted: Iterable[Prediction], preprocess: Preprocess) -> Iterator[np.ndarray]:
    """Maps (H, W) of all these pictures."""
    for batch in predicted:
        yield from batch.full_map(preprocess.shape).numpy()
