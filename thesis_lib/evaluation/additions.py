"""Learning from false alarms: good parts that were flagged are learned from, too, and have no part in the threshold.

A detector, a category and the added pictures go in; a detector that has learned from both comes out, with the promise
of its threshold before and after, and of each added picture what the detector without them says. The network sees the
added pictures alone where the feature maps of the others are kept. Added pictures were chosen for their scores, so a
rate that counted them would be none of good parts: every fold learns from them and none scores them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from thesis_lib.core import files
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import DataError, Preprocess, Sample, read_rgb, size_of
from thesis_lib.core.unusual import Box, region
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures
from thesis_lib.evaluation import crossfit
from thesis_lib.evaluation.crossfit import Part
from thesis_lib.evaluation.thresholds import Promise
from thesis_lib.methods.base import Detector
from thesis_lib.networks.maps import Extracted, Stored

# Distance to the nearest picture over that to the next one: of test pictures saved as JPEG of quality 50 or better at
# most 0.21, of distinct pictures at least 0.30 (the demo categories, elpv_mono and screw; those alike have more).
SAVED_ANEW = 0.25
SIDE = 64               # of the means that are compared


@dataclass(frozen=True)
class Added:
    """A picture that was added, as the detector sees it that has learned from none of them."""

    path: Path
    sha256: str                             # of the file, as the program sha256sum prints it
    score: float
    region: Box                             # the most unusual one: x, y, w, h in pixels of the file's picture

    def __str__(self) -> str:
        x, y, w, h = self.region
        return f"{self.score:.4f}  most unusual at {x},{y},{w},{h}  {self.path}  sha256 {self.sha256}"


@dataclass(frozen=True)
class Relearned:
    """What has changed by learning from added pictures; `added` has the highest score first."""

    before: Promise
    after: Promise
    added: list[Added]


def relearn(detector: Detector, category: Category, pictures: Sequence[str | Path], preprocess: Preprocess, *,
            false_alarms: float = 0.05, recall: float | None = None, order: str = "blocks",
            batch_size: int = 8) -> Relearned:
    """Fit the detector on the training pictures and the added ones; `crossfit.promise` with and without them.

    The other arguments are those of `crossfit.promise`. Bank, Gaussians and scores are those of a fit on all pictures,
    the added ones last and in batches of their own; levels and the ranges of int8 come from the training pictures.
    Raises ThesisError before a picture is scored, as `check` says.
    """
    preprocess = preprocess.decided(category.train)
    planned = crossfit.plan(detector, category.train, order)
    crossfit.check_asked(category, planned, detector, false_alarms, recall)
    crossfit.check(detector, category.train, preprocess, planned)
    samples = check(detector, category, [Path(picture) for picture in pictures], preprocess)
    images = Pictures(category.train, preprocess, batch_size)
    network = detector.network(detector.levels, images)
    kept = Stored(Extracted(network, images))
    new = Stored(Extracted(network, Pictures(samples, preprocess, batch_size)))
    learned = Part(kept, planned.learned)
    promises: list[Promise] = []
    listed: list[Added] = []
    for added in (None, new):
        whole = crossfit.fitted(detector, network, crossfit.joined(learned, added))
        if planned.folds:
            nominal = crossfit.cross_fitted(detector, network, kept, planned.folds, added)
        else:
            nominal = crossfit.scores_of(crossfit.predictions(whole, Part(kept, planned.held)))
        good, defective = crossfit.tested(whole, category, preprocess, batch_size)
        promises.append(Promise.of(nominal, false_alarms=false_alarms, recall=recall, defective=defective, good=good,
                                   made=planned.made))
        if added is None:
            listed = listing(whole, new)
    detector.adopt(whole)
    before, after = promises
    return Relearned(before, after, listed)


def check(detector: Detector, category: Category, pictures: Sequence[Path],
          preprocess: Preprocess) -> tuple[Sample, ...]:
    """The added pictures as training pictures.

    Raises ThesisError for a detector that holds out pictures itself, since it would count added ones, and DataError for
    a copy of a test picture, of a training picture or of another added one, and for a test picture that was saved anew.
    """
    if hasattr(detector, "split"):
        raise ThesisError(f"add: {detector.name} draws the pictures for its threshold itself and would count added "
                          "ones; needs patchcore, padim, spade or simplenet")
    if not pictures:
        raise DataError("add: no pictures given")
    known = {_hash(sample.path): (sample.split, sample.path) for sample in (*category.train, *category.test)}
    for picture in pictures:
        content = _hash(picture)
        split, path = known.get(content, ("", picture))
        if split:
            why = {"test": "what is learned cannot be tested", "train": "it is learned already",
                   "added": "it would be learned twice"}[split]
            raise DataError(f"{picture}: is a copy of the {split} picture {path}, and {why}; take it out")
        known[content] = "added", picture
    _check_saved_anew(category, pictures, preprocess)
    return tuple(Sample(picture, "train", "good") for picture in pictures)


def _check_saved_anew(category: Category, pictures: Sequence[Path], preprocess: Preprocess) -> None:
    """DataError for a picture that is far nearer to one test picture than to any other of the category: the same one in
    another format. Pictures of which the test has two alike, and strong compression, are not recognised.
    """
    samples = (*category.train, *category.test)
    known = np.array([_small(sample.path, preprocess) for sample in samples])               # (n, d)
    for picture in pictures:
        apart = np.sqrt(np.square(known - _small(picture, preprocess)).mean(axis=1))
        nearest, next_one = np.argsort(apart, kind="stable")[:2]
        if samples[nearest].split == "test" and apart[nearest] <= SAVED_ANEW * apart[next_one]:
            raise DataError(f"{picture}: looks like the test picture {samples[nearest].path}, saved anew, and what is "
                            "learned cannot be tested; take it out")


def _small(picture: Path, preprocess: Preprocess) -> np.ndarray:
    """Grey levels of all colours of SIDE x SIDE means, (d,) float32."""
    image = read_rgb(picture, preprocess.levels).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32).ravel()


def listing(detector: Detector, maps: Stored) -> list[Added]:
    """What a detector that has not learned from these pictures says of them, the highest score first."""
    predicted = crossfit.predictions(detector, maps)
    found = [(score.item(), heat.numpy()) for one in predicted
             for score, heat in zip(one.score.double(), one.map, strict=True)]
    assert maps.preprocess is not None          # they are of `Pictures`
    listed = [Added(sample.path, _hash(sample.path), score, region(heat, maps.preprocess, size_of(sample.path)))
              for sample, (score, heat) in zip(maps.samples, found, strict=True)]
    return sorted(listed, key=lambda one: -one.score)


def _hash(picture: Path) -> str:
    """SHA-256 of a file; DataError where it cannot be read."""
    try:
        return files.digest_of(picture)
    except OSError as error:
        raise DataError(f"{picture}: not readable ({error.strerror})") from error
