"""One configuration looked at closely: scores that set a threshold, and the pictures worth seeing with their maps.

A detector, a category and its preprocessing go in. Every nominal score is by a detector that has not learned from the
picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess, Sample
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures
from thesis_lib.evaluation import crossfit, thresholds
from thesis_lib.evaluation.scores import worst
from thesis_lib.evaluation.thresholds import Promise
from thesis_lib.methods.base import Detector
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

    detector: Detector          # fitted on all that it may learn from
    nominal: np.ndarray
    made: str
    good: np.ndarray
    bad: np.ndarray
    seen: tuple[Seen, ...]

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


def examine(detector: Detector, category: Category, preprocess: Preprocess, *, batch_size: int = 8) -> Examined:
    """Cross-fitted as for a threshold (`crossfit.promise`), then fitted on all, with the pictures that say most: the
    best and the worst found defective ones, and the good ones with the highest scores. Without good test pictures these
    are good training pictures, seen by the detector that has not learned from them.
    """
    preprocess = preprocess.decided(category.train)
    planned = crossfit.plan(detector, category.train)
    crossfit.check(detector, category.train, preprocess, planned)
    thresholds.rank(planned.n, max(0.05, 1 / (planned.n + 1)))
    # 1. Scores of good pictures by detectors that have not learned from them, and the detector itself.
    if planned.folds:
        images = Pictures(category.train, preprocess, batch_size)
        network = detector.network(detector.levels, images)
        maps, nominal, high = Stored(Extracted(network, images)), np.empty(planned.n), []
        for learner, part in crossfit.fitted_folds(detector, network, maps, planned.folds):
            batches = list(crossfit.predictions(learner, part))
            values = crossfit.scores_of(batches)
            nominal[list(part.numbers)] = values
            high += _highest(values, part.samples, (batch.full_map(preprocess.shape).numpy() for batch in batches))
        detector.adopt(crossfit.fitted(detector, network, maps))
    else:
        detector.fit(Pictures([category.train[number] for number in planned.learned], preprocess, batch_size))
        held = [category.train[number] for number in planned.held]
        batches = [detector.predict(batch) for batch in Pictures(held, preprocess, batch_size)]
        nominal = crossfit.scores_of(batches)
        high = _highest(nominal, held, (batch.full_map(preprocess.shape).numpy() for batch in batches))
    # 2. The test pictures, and of them those to look at.
    scores = crossfit.scores_of(map(detector.predict, Pictures(category.test, preprocess, batch_size)))
    alarms = sorted(high, key=lambda seen: -seen.score)[:SHOWN]
    wanted = _worth_seeing(category, scores)
    samples = [category.test[number] for _, number in wanted]
    heats = [heat for batch in Pictures(samples, preprocess, batch_size)
             for heat in detector.predict(batch).full_map(preprocess.shape).numpy()]
    seen = [Seen(category.test[number], kind, float(scores[number]), heat)
            for (kind, number), heat in zip(wanted, heats, strict=True)]
    if (category.labels == 0).any():
        alarms = []
    return Examined(detector, nominal, planned.made, scores[category.labels == 0], scores[category.labels == 1],
                    (*seen, *alarms))


def _worth_seeing(category: Category, scores: np.ndarray) -> list[tuple[str, int]]:
    """Kind and number of the test pictures to look at; no picture is of two kinds."""
    anomalous = np.flatnonzero(category.labels == 1)
    order = anomalous[np.argsort(scores[anomalous], kind="stable")].tolist()
    low = [number for number in worst(category, scores, SHOWN) if category.labels[number]][:len(order) // 2]
    best = [number for number in order[::-1] if number not in low][:SHOWN]
    alarms = [number for number in worst(category, scores, SHOWN) if not category.labels[number]]
    return [*(("best", number) for number in best), *(("missed", number) for number in low),
            *(("alarm", number) for number in alarms)]


def _highest(scores: np.ndarray, samples: Sequence[Sample], heats: Iterator[np.ndarray]) -> list[Seen]:
    """The good pictures with the highest scores of a fold; the maps of the others are not kept."""
    wanted = set(np.argsort(-scores, kind="stable")[:SHOWN].tolist())
    number, found = 0, []
    for batch in heats:
        for heat in batch:
            if number in wanted:
                found.append(Seen(samples[number], "alarm", float(scores[number]), heat.copy()))
            number += 1
    return found
