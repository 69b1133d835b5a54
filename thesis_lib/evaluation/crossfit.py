"""Scores of nominal pictures by detectors that have not learned from them: what a threshold can be set by.

A detector and the training pictures go in, a score of each picture comes out. What was learned scores too low, so
PatchCore, PaDiM and SPADE learn once for each of twenty folds, from the others; the network runs once over all
pictures. A fold's detector must score as the final one does: one of five folds, which has learned from four fifths,
does not, and promises broke (docs/guides/measurements.md). PaDiM's scores are worked out without learning anew.
A detector that is trained keeps back a share of the pictures for this and learns once.
"""

import copy
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from thesis_lib.core import memory
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import one_of
from thesis_lib.core.preprocess import Preprocess, Sample
from thesis_lib.core.seeds import seed_of
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures
from thesis_lib.evaluation import gaussians, thresholds
from thesis_lib.evaluation.thresholds import Promise
from thesis_lib.methods.base import Detector, Prediction, blur
from thesis_lib.methods.padim import PaDiM
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.methods.trained import Trained, held_out
from thesis_lib.networks import backbones, engines
from thesis_lib.networks.backbones import Features
from thesis_lib.networks.maps import Extracted, Stored
from thesis_lib.patches.embedding import OUTSIDE

log = logging.getLogger("thesis_lib")
FOLDS = 20              # of a threshold
COARSE = 5              # where the folds' own good pictures must be enough to be counted: an AUROC, changes of light
ORDERS = {"blocks": "blocks of consecutive file names", "shuffled": "pictures drawn at random"}
HELD_OUT = 0.2          # share of the training pictures that is kept back for a trained detector that keeps none itself


@dataclass(frozen=True)
class Plan:
    """Which training pictures give the scores that decide, and who scores them; numbers count in the order given."""

    folds: tuple[tuple[int, ...], ...]      # each is scored after learning from the others; none: `held` decides
    learned: tuple[int, ...]                # what the detector itself learns from
    held: tuple[int, ...]                   # what it keeps back
    made: str                               # in words
    order: str

    @property
    def n(self) -> int:
        """Scores that there will be."""
        return sum(map(len, self.folds)) or len(self.held)


def plan(detector: Detector, samples: Sequence[Sample], order: str = "blocks", most: int = FOLDS) -> Plan:
    """How the scores come about for these training pictures; nothing is read.

    order: blocks takes folds of consecutive file names, numbers counting as numbers: neighbours in a series resemble
    each other, and a picture whose neighbour was learned scores too low. shuffled draws them by the detector's seed.
    Fewer pictures than `most` folds are folds of one. EfficientAD and Uninformed Students keep back what they do anyway
    (`held_out`), SimpleNet a fifth, drawn by its seed. Raises ThesisError where too few are left to learn from.
    """
    one_of("order", order, ORDERS)
    count = len(samples)
    everything = tuple(range(count))
    if isinstance(detector, Trained):
        if count < 2:
            raise ThesisError(f"{count} training picture: one is held out, so it needs at least 2")
        draw = getattr(detector, "split", None)
        shuffled = np.random.default_rng(seed_of("split", detector.seed)).permutation(count).tolist()
        learned, held = draw(count) if draw else held_out(shuffled, HELD_OUT)
        return Plan((), everything if draw else tuple(sorted(learned)), tuple(sorted(held)),
                    f"{len(held)} of {count} training pictures, drawn by the seed, which were not learned from", order)
    if count < 2:
        raise ThesisError(f"{count} training picture: a score of it needs others to learn from, so at least 2")
    numbers = sorted(everything, key=lambda number: natural(samples[number]))
    if order == "shuffled":
        numbers = np.random.default_rng(seed_of("split", detector.seed)).permutation(count).tolist()
    folds = tuple(tuple(sorted(fold.tolist())) for fold in np.array_split(numbers, min(most, count)))
    few = f", as there are fewer than {most}" if count < most else ""
    return Plan(folds, everything, (), f"all {count} training pictures, each scored after learning from the others but "
                f"its fold; {len(folds)} folds of {ORDERS[order]}{few}", order)


def natural(sample: Sample) -> tuple[str, list[tuple[int, str]]]:
    """Folder and name, with digits as numbers: 9.png stands before 10.png."""
    pieces = re.split(r"(\d+)", sample.path.name)
    return str(sample.path.parent), [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def other(order: str) -> str:
    """The order of folds that this one is set beside."""
    return "shuffled" if order == "blocks" else "blocks"


def check(detector: Detector, samples: Sequence[Sample], preprocess: Preprocess, planned: Plan) -> None:
    """ThesisError for what the pictures that are left to learn from cannot give the parameters of the detector."""
    count = len(samples)
    detector.check_training(count if planned.learned == tuple(range(count)) else len(planned.learned), preprocess)
    if planned.folds:
        left = count - max(map(len, planned.folds))
        try:
            detector.check_training(left, preprocess)
        except ThesisError as error:
            raise ThesisError(f"{left} of {count} training pictures, from which one fold after the other is scored, "
                              f"are too few: {error}") from None


def fitted_folds(detector: Detector, network: backbones.Backbone | engines.Exported, maps: Stored,
                 folds: Iterable[Sequence[int]], added: Stored | None = None) -> Iterator[tuple[Detector, "Part"]]:
    """For each fold a detector that has learned from the other pictures, and the feature maps of the fold.

    added: maps of pictures that every fold learns from and none scores. The patches of PatchCore are made once for all
    folds, where every picture has the same number of them.
    """
    learn = _from_patches(detector, network, joined(maps, added)) if _same_patches(detector, maps) else None
    for number, fold in enumerate(folds := list(folds), 1):
        others = set(range(len(maps.samples))) - set(fold)
        log.info("fold %d of %d: learns from %d pictures, scores %d", number, len(folds), len(others), len(fold))
        yield (learn(fold) if learn else fitted(detector, network, joined(Part(maps, others), added))), Part(maps, fold)


def _same_patches(detector: Detector, maps: Stored) -> bool:
    """Whether the patches of a picture do not depend on what else is learned, and all of them count."""
    return (isinstance(detector, PatchCore) and detector.scaling == "none"
            and not (maps.preprocess and maps.preprocess.masked))


def _from_patches(detector: Detector, network: backbones.Backbone | engines.Exported,
                  maps: Stored) -> Callable[[Sequence[int]], Detector]:
    """What gives the detector that has learned from all but the pictures of a fold, from patches gathered once."""
    gathered = replace(detector)
    gathered.backbone_ = network.cut(gathered.levels)
    patches = gathered.gather_nominal(maps)
    places = len(patches) // len(maps.samples)

    def learn(fold: Sequence[int]) -> Detector:
        others = (torch.from_numpy(np.array(patches[number * places:(number + 1) * places]))
                  for number in range(len(maps.samples)) if number not in fold)
        return copy.copy(gathered).learn(memory.on_disk(others))

    return learn


def fitted(detector: Detector, network: backbones.Backbone | engines.Exported, maps: Extracted | Stored) -> Detector:
    """A copy of the detector that has learned from these maps, which are of this network."""
    learner = replace(detector)
    learner.backbone_ = network.cut(learner.levels)
    return learner.learn(learner.gather_nominal(maps))


def left_out(detector: Detector, network: backbones.Backbone | engines.Exported, maps: Stored,
             folds: Sequence[Sequence[int]],
             added: Stored | None = None) -> Iterator[tuple[tuple[int, ...], Iterable[Prediction]]]:
    """Numbers and predictions of pictures by detectors that have not learned from their fold. added: `fitted_folds`.

    Those of PaDiM come at once, without a fit for each fold, where every pixel counts.
    """
    if isinstance(detector, PaDiM) and not (maps.preprocess and maps.preprocess.masked):
        padim = replace(detector)
        heat = gaussians.left_out(padim, padim.gather_nominal(joined(maps, added)), folds)
        scores = blur(heat, detector.sigma).flatten(1).amax(dim=1)
        yield tuple(sorted(itertools.chain.from_iterable(folds))), [Prediction(scores, heat)]
        return
    for learner, part in fitted_folds(detector, network, maps, folds, added):
        yield part.numbers, predictions(learner, part)


def predictions(detector: Detector, maps: Extracted | Stored) -> Iterator[Prediction]:
    """Of all pictures whose feature maps these are, a batch at a time; by all stages but the first, the network."""
    _, *stages = detector.stages.values()
    for features in maps.batches(detector.levels):
        x: Any = features
        for stage in stages:
            x = stage(x)
        yield x


def cross_fitted(detector: Detector, network: backbones.Backbone | engines.Exported, maps: Stored,
                 folds: Iterable[Sequence[int]], added: Stored | None = None,
                 of: Callable[[Iterable[Prediction]], np.ndarray] | None = None) -> np.ndarray:
    """(N,) float64: the score of each picture by a detector that has not learned from its fold. added: `fitted_folds`.

    of: what else is to be known of n predicted pictures, (n, ...); then the result is (N, ...).
    """
    found: dict[int, np.ndarray] = {}
    for numbers, predicted in left_out(detector, network, maps, list(folds), added):
        found |= zip(numbers, (of or scores_of)(predicted), strict=True)
    absent = np.full_like(next(iter(found.values())), np.nan)
    return np.array([found.get(number, absent) for number in range(len(maps.samples))])


def scores_of(predicted: Iterable[Prediction]) -> np.ndarray:
    """(n,) float64."""
    return torch.cat([torch.empty(0).double(), *(prediction.score.double() for prediction in predicted)]).numpy()


def scores_and_medians(predicted: Iterable[Prediction]) -> np.ndarray:
    """(n, 2) float64: score, and median of the map where it counts."""
    return np.array([[score.item(), np.median(heat[heat > OUTSIDE].numpy())] for prediction in predicted
                     for score, heat in zip(prediction.score.double(), prediction.map, strict=True)])


def promise(detector: Detector, category: Category, preprocess: Preprocess, *, false_alarms: float = 0.05,
            recall: float | None = None, order: str = "blocks", batch_size: int = 8) -> Promise:
    """A threshold for the detector, fitted here on the training pictures, and what can be promised of it.

    false_alarms: share of good parts that may be flagged. recall: share of defective test pictures to be found; it
    decides in place of false_alarms. order: see `plan`. Test pictures have no part in the threshold but for a recall,
    for which the defective ones decide. Raises ThesisError before a picture is read, where so few cannot promise it.
    """
    preprocess = preprocess.decided(category.train)
    planned = plan(detector, category.train, order)
    check_asked(category, planned, detector, false_alarms, recall)
    check(detector, category.train, preprocess, planned)
    if planned.folds:
        images = Pictures(category.train, preprocess, batch_size)
        network = detector.network(detector.levels, images)
        maps = Stored(Extracted(network, images))
        nominal = cross_fitted(detector, network, maps, planned.folds)
        detector.adopt(fitted(detector, network, maps))
    else:
        detector.fit(Pictures([category.train[number] for number in planned.learned], preprocess, batch_size))
        held = Pictures([category.train[number] for number in planned.held], preprocess, batch_size)
        nominal = scores_of(map(detector.predict, held))
    good, defective = tested(detector, category, preprocess, batch_size)
    return Promise.of(nominal, false_alarms=false_alarms, recall=recall, defective=defective, good=good,
                      made=planned.made)


def tested(detector: Detector, category: Category, preprocess: Preprocess,
           batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the good and of the defective test pictures by the detector that will be used."""
    scores = scores_of(map(detector.predict, Pictures(category.test, preprocess, batch_size)))
    return scores[category.labels == 0], scores[category.labels == 1]


def check_asked(category: Category, planned: Plan, detector: Detector, false_alarms: float,
                recall: float | None) -> None:
    """ThesisError for a rate or recall that the pictures of this category cannot give; no score is needed to say so."""
    if recall is not None:
        thresholds.check_recall(recall, int(category.labels.sum()))
        return
    try:
        thresholds.rank(planned.n, false_alarms)
    except ThesisError as error:
        share = getattr(detector, "held_out", HELD_OUT)
        few = "" if planned.folds else (f"; {detector.name} keeps back {planned.n} of {len(category.train)} training "
                                        f"pictures, a share of {share:g}")
        raise ThesisError(f"{error}{few}") from None


class Part(Stored):
    """Some of the pictures whose feature maps are kept: what `gather` and the stages take, without the network."""

    def __init__(self, maps: Stored, numbers: Iterable[int]) -> None:
        super().__init__(maps.extracted)
        self.maps, self.numbers = maps, tuple(sorted(numbers))
        self.samples = tuple(maps.samples[number] for number in self.numbers)

    def pictures(self) -> Iterator[torch.Tensor]:
        """The batches of images themselves."""
        for rows, images in self._chosen(self.maps.pictures()):
            yield images[rows]

    def batches(self, layers: Iterable[int]) -> Iterator[Features]:
        """{level: (b, C, h, w)} of these pictures, in the order of all, with what of them counts."""
        for rows, features in self._chosen(self.maps.batches(layers)):
            yield {level: values[rows] for level, values in features.items()}

    def _chosen(self, batches: Iterable[Any]) -> Iterator[tuple[list[int], Any]]:
        """Each batch that holds some of the pictures, and the rows in which it does."""
        first, chosen = 0, set(self.numbers)
        for batch in batches:
            size = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
            rows = [row for row in range(size) if first + row in chosen]
            first += size
            if rows:
                yield rows, batch


class Joined(Stored):
    """The pictures of one after those of the other, each from its own maps; both are of one network."""

    def __init__(self, first: Stored, second: Stored) -> None:
        super().__init__(first.extracted)
        self.both = first, second
        self.samples = (*first.samples, *second.samples)

    def pictures(self) -> Iterator[torch.Tensor]:
        """The batches of images themselves."""
        return itertools.chain.from_iterable(maps.pictures() for maps in self.both)

    def batches(self, layers: Iterable[int]) -> Iterator[Features]:
        """{level: (b, C, h, w)}, first those of the one, then those of the other."""
        wanted = tuple(layers)
        return itertools.chain.from_iterable(maps.batches(wanted) for maps in self.both)


def joined(maps: Stored, added: Stored | None) -> Stored:
    """Both, or the maps alone where nothing is added."""
    return maps if added is None else Joined(maps, added)
