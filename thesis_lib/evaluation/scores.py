"""Fit on the training pictures, score the test pictures: several seeds and variants from the same features.

Detectors, a category and its preprocessing go in, one row per detector and seed comes out (`core.results`). What is
the same for several of them is computed once: the network for all that have it, what is gathered from its features for
all that gather alike, and the leading stages on the test pictures for all of these.
"""

import itertools
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from thesis_lib.core import identity, memory, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess, in_pixels, size_of
from thesis_lib.core.progress import track
from thesis_lib.core.threads import usable_cpus
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures
from thesis_lib.evaluation import metrics
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.methods.base import Detector, Prediction
from thesis_lib.networks import backbones, engines
from thesis_lib.networks.maps import Extracted, Stored, keepable

if TYPE_CHECKING:       # rows of other methods must not depend on the code of a training
    from thesis_lib.methods.trained import Trained

log = logging.getLogger("thesis_lib")
POINTS = 200            # of a loss curve in a row, each the mean of the steps since the last one
FIRST = 50              # losses of a row that are kept as they were, so that a training begun again can be held to them
Key = tuple[str, int]                                   # name of a detector and seed
Groups = Sequence[Sequence[Key]]                        # of one network; a group gathers the same from its features
Trunk = backbones.Backbone | engines.Exported
K = TypeVar("K", bound=Hashable)


def evaluate(detector: Detector, category: Category, preprocess: Preprocess, *, seeds: Sequence[int] | int = 5,
             pixels: bool = True, batch_size: int = 8, force: bool = False) -> pd.DataFrame:
    """One row per seed: image AUROC with interval, pixel AUROC and PRO where every defect has a mask, all scores.

    Pixels count in the map at full size, smoothed by the method's `map_sigma`, as its reference does.
    A number that cannot be had is None: the interval where a class has a single picture, the pixel metrics where no
    pixel of a mask is left after the resize.
    peak_memory_gb is the largest resident size of the process while the row was made, without what was found on disk;
    None where several rows came from the same work (more than one seed or detector of a network): it would be true of
    none of them.

    As the thesis averages over five memory banks made from the same patches, features are extracted once and
    `learn` runs per seed. Finished rows are read from outputs/results instead (force measures them again).
    Raises ThesisError naming the picture or parameter.
    """
    return evaluate_many({"": detector}, category, preprocess, seeds=seeds, pixels=pixels, batch_size=batch_size,
                         force=force)[""]


def evaluate_many(detectors: Mapping[str, Detector], category: Category, preprocess: Preprocess, *,
                  seeds: Sequence[int] | int = 5, pixels: bool = True, batch_size: int = 8,
                  force: bool = False) -> dict[str, pd.DataFrame]:
    """`evaluate` for several detectors; those with the same network run it once over all pictures.

    pixels False leaves out pixel AUROC and PRO, which cost more than the rest in a large comparison, and the distances
    that no score needs (`score_stages`).
    A detector without anything random gets one row, that of the first seed: the others would be the same.
    """
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds:
        raise ThesisError("seeds: needs at least one")
    preprocess = preprocess.decided(category.train)
    wanted = {name: seeds if detector.seeded else seeds[:1] for name, detector in detectors.items()}
    subjects = {(name, seed): subject(detectors[name], category, preprocess, seed=seed, module=__name__)
                for name in detectors for seed in wanted[name]}
    rows: dict[Key, results.Row] = {}
    if not force:
        found = {key: results.find("auroc", facts) for key, facts in subjects.items()}
        rows = {key: row for key, row in found.items() if row}
    # A stored row without pixel metrics is measured again where they are asked for and can be had.
    lacking = [key for key in subjects if key not in rows or rows[key]["pixel_auroc"] is None]
    masks = _masks(category, preprocess) if pixels and lacking else None
    missing = [key for key in lacking if key not in rows or masks is not None]
    if missing:
        # One class only, or more asked of the training pictures than there is: said before the work.
        metrics.image_auroc(category.labels, np.zeros(len(category.test)))
        for name in dict.fromkeys(name for name, _ in missing):
            detectors[name].check_training(len(category.train), preprocess)
    for groups in by_network(detectors, missing):
        peak = memory.Peak() if sum(map(len, groups)) == 1 else None
        for key, values in _measure(detectors, groups, category, preprocess, batch_size, masks):
            values["peak_memory_gb"] = peak and peak.gb
            rows[key] = results.save("auroc", subjects[key], values)
    return {name: pd.json_normalize([rows[name, seed] for seed in wanted[name]]) for name in detectors}


def subject(detector: Detector, category: Category, preprocess: Preprocess, *, seed: int,
            module: str = __name__) -> dict[str, Any]:
    """Everything that decides a result: the configuration, data, seed, and the code of `module` and of the method."""
    configuration = Configuration.of(detector, preprocess)
    return {"configuration": configuration.id, **asdict(configuration), "engine": engines.record(detector.engine),
            "category": category.name, "data": category.fingerprint, "seed": seed,
            "code": identity.key(module, type(detector).__module__)}


def worst(category: Category, scores: ArrayLike, count: int = 3) -> list[int]:
    """Indices into category.test: nominal pictures with the highest and anomalous ones with the lowest scores."""
    labels, order = category.labels, np.argsort(np.asarray(scores), kind="stable")
    nominal, anomalous = order[labels[order] == 0], order[labels[order] == 1]
    return [*nominal[::-1][:count].tolist(), *anomalous[:count].tolist()]


def by_network(detectors: Mapping[str, Detector], keys: Iterable[Key]) -> list[Groups]:
    """(name, seed) grouped by network, and within it by what is gathered from its features."""
    networks: dict[tuple, dict[tuple, list[Key]]] = {}          # network_by -> collected_by -> keys
    for key in keys:
        detector = detectors[key[0]]
        groups = networks.setdefault(detector.network_by, {})
        groups.setdefault(detector.collected_by, []).append(key)
    return [list(groups.values()) for groups in networks.values()]


def extract(detectors: Mapping[str, Detector], groups: Groups,
            *pictures: Pictures) -> tuple[Trunk, list[Extracted | Stored]]:
    """The network of all groups, up to the deepest level that one of them needs, and the feature maps of each
    `pictures`: computed once where anybody asks again. The first pictures are nominal.
    """
    firsts = [detectors[keys[0][0]] for keys in groups]
    levels = sorted({level for detector in firsts for level in detector.levels})
    network = firsts[0].network(tuple(levels), pictures[0])
    maps: list[Extracted | Stored] = []
    for images in pictures:
        extracted = Extracted(network, images)
        maps.append(Stored(extracted) if len(groups) > 1 or keepable(extracted) else extracted)
    return network, maps


def _measure(detectors: Mapping[str, Detector], groups: Groups, category: Category, preprocess: Preprocess,
             batch_size: int, masks: np.ndarray | None) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield ((name, seed), values of its row) for detectors of the same network; masks (n, H, W) where pixels count."""
    network, (train, test) = extract(detectors, groups, Pictures(category.train, preprocess, batch_size),
                                     Pictures(category.test, preprocess, batch_size))
    names = [f"{sample.defect}/{sample.path.name}" for sample in category.test]
    inside = None                               # (n, H, W) where pixels count and not all of them do
    if masks is not None and preprocess.masked:
        inside = np.stack([preprocess.inside(size_of(sample.path)) for sample in category.test])
    counts = {"n_train": len(category.train), "n_test_good": int((category.labels == 0).sum()),
              "n_test_defective": int(category.labels.sum())}
    for keys in groups:
        # 1. One detector per (name, seed), all from what one of them gathers.
        fitted, fit_s = fit(detectors, keys, network, train)
        # 2. Scores of the test pictures, and the maps where pixels count.
        scores, predictions = _score(fitted, test, masks is not None)
        # 3. Scores of the states that a training has kept on the way; the last one of them is what 2. has scored.
        states = {(key, step): cast("Trained", detector).at(step)
                  for key, detector in fitted.items() for step in _steps(detector)[:-1]}
        earlier = _score(states, test, False)[0] if states else {}
        # 4. A row of each.
        for key in keys:
            values = _quality(category.labels, scores[key], names, masks, predictions.get(key), inside)
            values |= counts
            by_step = {step: earlier.get((key, step), scores[key]) for step in _steps(fitted[key])}
            if by_step:
                values["training"] = _training(cast("Trained", fitted[key]), by_step, category.labels)
            values |= {"fit_s": fit_s[key], "labels": category.labels.tolist(), "scores": scores[key].tolist(),
                       "names": names}
            yield key, values


def _masks(category: Category, preprocess: Preprocess) -> np.ndarray | None:
    """Masks (n, H, W) of the test pictures; None where an anomalous one has none, or where no pixel is left of any."""
    if not category.has_masks:
        return None
    masks = np.stack([preprocess.mask(sample) for sample in category.test])
    gone = int((category.labels.astype(bool) & ~masks.any(axis=(1, 2))).sum())
    if gone:
        log.warning("%s: %d of %d masks have no pixel at %s; there are no pixel metrics without any, else these "
                    "pictures count as good in them", category.name, gone, category.labels.sum(),
                    in_pixels(preprocess.shape))
    return masks if masks.any() else None


def fit(detectors: Mapping[str, Detector], keys: Sequence[Key], network: Trunk,
        maps: Extracted | Stored) -> tuple[dict[Key, Detector], dict[Key, float]]:
    """A fitted detector per (name, seed), and its seconds: the common part of the work counts for each.

    The detector that was passed in is itself fitted for its own seed, so that it can be used afterwards.
    """
    earlier, start = maps.seconds, time.perf_counter()
    first = replace(detectors[keys[0][0]])      # unfitted: nothing but what is gathered is adopted
    first.backbone_ = network.cut(first.levels)
    collected = first.gather_nominal(maps)
    common = time.perf_counter() - start + (earlier or maps.found_seconds)
    fitted: dict[Key, Detector] = {}
    seconds: dict[Key, float] = {}
    for name, _ in keys:
        detectors[name].adopt(first)
    for name, seed in keys:
        start = time.perf_counter()
        given = detectors[name]
        detector = given if seed == given.seed else given.reseeded(seed)
        fitted[name, seed] = detector.learn(collected)
        saved = getattr(detector, "found_seconds_", 0.0)        # that a choice of patches took which was found on disk
        seconds[name, seed] = common + time.perf_counter() - start + saved
    return fitted, seconds


def _score(fitted: Mapping[K, Detector], maps: Extracted | Stored,
           with_maps: bool) -> tuple[dict[K, np.ndarray], dict[K, list[Prediction]]]:
    """Scores (n,) float64 and batches of predictions per key; stages that detectors share run once per batch.

    The detectors have learned from the same that was gathered: they are of one method, with the same leading stages.
    """
    scores: dict[K, list[torch.Tensor]] = {key: [] for key in fitted}
    predictions: dict[K, list[Prediction]] = {}
    stages = {key: list((detector.stages if with_maps else detector.score_stages).values())
              for key, detector in fitted.items()}
    first_key, first = next(iter(fitted.items()))
    shared = len(first.shared)
    batches: Iterator[Any]
    if shared:
        batches = maps.batches(first.levels)
    else:
        batches = track(maps.pictures(), len(maps.images) if isinstance(maps.images, Sized) else None, "pictures")
    for batch in batches:
        # 1. The leading stages, once for all: those after the network, whose maps are here.
        embedded = _through(batch, stages[first_key][1:shared])
        # 2. The stages up to the last one, once for all detectors that these do not tell apart.
        distinct = {detector.found_by or key: key for key, detector in fitted.items()}
        finders = {alike: partial(_through, embedded, stages[key][shared:-1]) for alike, key in distinct.items()}
        with ThreadPoolExecutor(usable_cpus()) as pool:
            alone = {alike: pool.submit(finders.pop(alike)) for alike, key in distinct.items() if fitted[key].serial}
            searched = {alike: find() for alike, find in finders.items()}
        searched |= {alike: found.result() for alike, found in alone.items()}
        for key, detector in fitted.items():
            # 3. The last stage of each.
            prediction = stages[key][-1](searched[detector.found_by or key])
            scores[key].append(prediction.score.double())
            if with_maps:       # worked out now, so that what a late map needs can go
                predictions.setdefault(key, []).append(replace(prediction, located=prediction.map))
    return {key: torch.cat(values).numpy() for key, values in scores.items()}, predictions


def _through(value: Any, stages: Sequence[Callable]) -> Any:
    """What the stages make of it, one after the other."""
    return reduce(lambda before, stage: stage(before), stages, value)


def _steps(detector: Detector) -> list[int]:
    """Steps after which a training has kept a state, the last one at its end; none where nothing is trained."""
    return sorted(cast("Trained", detector).course_.kept) if hasattr(detector, "course_") else []


def _training(detector: "Trained", scores: Mapping[int, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """The course of a training and the AUROC on the way, "last" and "best on test" (thesis sec. 5.3); scores (n,) of
    the states by step.
    """
    course = detector.course_
    steps = sorted(scores)
    quality = [metrics.image_auroc(labels, scores[step]) for step in steps]
    points = np.unique(np.linspace(0, course.step, POINTS + 1).round().astype(int))
    losses = {name: [float(np.mean(values[start:stop])) for start, stop in itertools.pairwise(points)]
              for name, values in course.losses.items()}
    return {"steps": steps, "image_auroc": quality, "best_on_test": max(quality),
            "best_step": steps[int(np.argmax(quality))], "seconds": course.seconds,
            "loss_steps": points[1:].tolist(), "losses": losses,
            "first_losses": {name: values[:FIRST] for name, values in course.losses.items()}}


def _quality(labels: np.ndarray, scores: np.ndarray, names: Sequence[str], masks: np.ndarray | None,
             predictions: Sequence[Prediction] | None, inside: np.ndarray | None) -> dict[str, Any]:
    """AUROC with its interval, NaN where there is none; pixel AUROC and PRO where there are masks, else None."""
    auroc = metrics.image_auroc(labels, scores, names)          # first: its error names the pictures
    low, high = metrics.auroc_interval(labels, scores)
    values = {"image_auroc": auroc, "image_auroc_low": low, "image_auroc_high": high, "pixel_auroc": None, "pro": None}
    if masks is not None and predictions is not None:
        _, height, width = masks.shape
        maps = torch.cat([prediction.full_map((height, width)) for prediction in predictions]).numpy()
        values |= {"pixel_auroc": metrics.pixel_auroc(masks, maps, inside), "pro": metrics.pro(masks, maps, inside)}
    return values
