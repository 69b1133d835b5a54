"""Image AUROC without good test pictures: good training pictures are scored by detectors that did not learn from them.

Detectors, a category with good training and defective test pictures go in, one row per detector and seed comes out. In
each of five folds the held-out good pictures and all defective ones are scored by the detector that has
learned from the other good ones; the AUROC is the mean over the folds. Scores of different folds come from different
detectors and are never put together.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from thesis_lib.core import results
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures
from thesis_lib.evaluation import crossfit, scores, wins
from thesis_lib.evaluation.wins import Wins
from thesis_lib.methods.base import Detector
from thesis_lib.methods.trained import Trained
from thesis_lib.networks.maps import Stored

Fold = tuple[tuple[int, ...], list[float], list[float]]     # numbers and scores of its good pictures, defective scores


def evaluate_folded(detectors: Mapping[str, Detector], category: Category, preprocess: Preprocess, *,
                    seeds: Sequence[int] | int = 1, batch_size: int = 8,
                    force: bool = False) -> dict[str, list[results.Row]]:
    """A row per seed: image_auroc, its interval over the pictures, and the scores of every fold.

    Detectors with the same network run it once over all pictures. A trained one has one fold, of what it keeps back.
    Finished rows are read from outputs/results instead (force measures them again). Raises ThesisError where there is
    no defective picture, or too few good ones.
    """
    if not category.labels.any():
        raise ThesisError(f"{category.name}: no defective pictures, so there is no AUROC; `thesis study` says what can "
                          "be said without them")
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    preprocess = preprocess.decided(category.train)
    wanted = {name: seeds if detector.seeded else seeds[:1] for name, detector in detectors.items()}
    subjects = {(name, seed): scores.subject(detectors[name], category, preprocess, seed=seed, module=__name__)
                for name in detectors for seed in wanted[name]}
    rows = {} if force else {key: row for key, subject in subjects.items() if (row := results.find("folds", subject))}
    missing = [key for key in subjects if key not in rows]
    for name in dict.fromkeys(name for name, _ in missing):
        planned = crossfit.plan(detectors[name], category.train, most=crossfit.COARSE)
        crossfit.check(detectors[name], category.train, preprocess, planned)
    for name, seed in missing:
        if isinstance(detectors[name], Trained):
            fold = _held(detectors[name].reseeded(seed), category, preprocess, batch_size)
            rows[name, seed] = results.save("folds", subjects[name, seed], _values(category, [fold]))
    for groups in scores.by_network(detectors, [key for key in missing if key not in rows]):
        for key, folds in _measured(detectors, groups, category, preprocess, batch_size):
            rows[key] = results.save("folds", subjects[key], _values(category, folds))
    return {name: [rows[name, seed] for seed in wanted[name]] for name in detectors}


def wins_of(rows: Sequence[results.Row]) -> Wins:
    """What rows of one detector say, all seeds together."""
    return Wins.folded([[(fold["numbers"], fold["good_scores"], fold["bad_scores"]) for fold in row["folds"]]
                        for row in rows])


def _values(category: Category, folds: Sequence[Fold]) -> dict[str, Any]:
    """Of a row; the numbers of its good pictures count those that are scored."""
    # 1. A trained detector scores some of the good pictures alone: these are numbered anew.
    scored = sorted(number for numbers, _, _ in folds for number in numbers)
    place = {number: position for position, number in enumerate(scored)}
    kept = [{"numbers": [place[number] for number in numbers], "good_scores": good, "bad_scores": bad}
            for numbers, good, bad in folds]
    # 2. The mean over the folds.
    won = wins_of([{"folds": kept}])
    low, high = wins.interval(won)
    return {"image_auroc": won.auroc, "image_auroc_low": low, "image_auroc_high": high, "folds": kept,
            "good_names": [category.train[number].path.name for number in scored],
            "bad_names": [f"{sample.defect}/{sample.path.name}" for sample in category.test],
            "n_train": len(category.train), "n_test_good": 0, "n_test_defective": len(category.test)}


def _measured(detectors: Mapping[str, Detector], groups: scores.Groups, category: Category, preprocess: Preprocess,
              batch_size: int) -> Iterator[tuple[scores.Key, list[Fold]]]:
    """The folds of each (name, seed) of one network."""
    test = Pictures(category.test, preprocess, batch_size)
    network, (good, bad) = scores.extract(detectors, groups, Pictures(category.train, preprocess, batch_size), test)
    kept, tested = (maps if isinstance(maps, Stored) else Stored(maps) for maps in (good, bad))
    for name, seed in (key for keys in groups for key in keys):
        detector = detectors[name].reseeded(seed)
        planned = crossfit.plan(detector, category.train, most=crossfit.COARSE)
        folds = crossfit.fitted_folds(detector, network, kept, planned.folds)
        yield (name, seed), [(part.numbers, *(crossfit.scores_of(crossfit.predictions(learner, maps)).tolist()
                                              for maps in (part, tested))) for learner, part in folds]


def _held(detector: Detector, category: Category, preprocess: Preprocess, batch_size: int) -> Fold:
    """Of a trained detector, which keeps back some of the good pictures."""
    planned = crossfit.plan(detector, category.train)
    detector.fit(Pictures([category.train[number] for number in planned.learned], preprocess, batch_size))
    held = [category.train[number] for number in planned.held]
    good, bad = (crossfit.scores_of(map(detector.predict, Pictures(samples, preprocess, batch_size))).tolist()
                 for samples in (held, category.test))
    return planned.held, good, bad
