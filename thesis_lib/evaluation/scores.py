"""Fit on the training pictures, score the test pictures: several seeds and variants from the same features."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from thesis_lib.core import identity, memory, results
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.core.progress import track
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures
from thesis_lib.evaluation import metrics
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.methods.base import Detector, Prediction
from thesis_lib.networks import engines
from thesis_lib.networks.maps import Extracted, Stored, keepable

POINTS = 200            # of a loss curve in a row, each the mean of the steps since the last one


def evaluate(detector: Detector, category: Category, preprocess: Preprocess, *, seeds: Sequence[int] | int = 5,
             pixels: bool = True, batch_size: int = 8, force: bool = False) -> pd.DataFrame:
    """One row per seed: image AUROC with interval, pixel AUROC and PRO where every defect has a mask, all scores.

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

    pixels False leaves out pixel AUROC and PRO, which cost more than the rest in a large comparison.
    A detector without anything random gets one row, that of the first seed: the others would be the same.
    """
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds:
        raise ThesisError("seeds: needs at least one")
    wanted = {name: seeds if detector.seeded else seeds[:1] for name, detector in detectors.items()}
    subjects = {(name, seed): subject(detectors[name], category, preprocess, seed=seed, module=__name__)
                for name in detectors for seed in wanted[name]}
    pixels = pixels and category.has_masks
    rows = {} if force else {key: row for key, about in subjects.items() if (row := results.find("auroc", about))
                             and not (pixels and row["pixel_auroc"] is None)}
    missing = [key for key in subjects if key not in rows]
    if missing:
        metrics.image_auroc(category.labels, np.zeros(len(category.test)))     # one class only: say so before the work
    for groups in by_network(detectors, missing):
        for key, values in _measure(detectors, groups, category, preprocess, batch_size, pixels):
            rows[key] = results.save("auroc", subjects[key], values)
    return {name: pd.json_normalize([rows[name, seed] for seed in wanted[name]]) for name in detectors}


def subject(detector: Detector, category: Category, preprocess: Preprocess, *, seed: int,
            module: str = __name__) -> dict[str, Any]:
    """Everything that decides a result: the configuration, data, seed, and the code of `module` and of the method."""
    configuration = Configuration.of(detector, preprocess)
    return {"configuration": configuration.id, **asdict(configuration), "engine": engines.record(detector.engine),
            "category": category.name, "data": category.fingerprint, "seed": seed,
            "code": identity.key(module, type(detector).__module__)}


def worst(category: Category, scores: Sequence[float], count: int = 3) -> list[int]:
    """Indices into category.test: nominal pictures with the highest and anomalous ones with the lowest scores."""
    scores, labels = np.asarray(scores), category.labels
    order = np.argsort(scores, kind="stable")
    return [*order[labels[order] == 0][::-1][:count].tolist(), *order[labels[order] == 1][:count].tolist()]


def by_network(detectors: Mapping[str, Detector], keys) -> list[list[list[tuple[str, int]]]]:
    """(name, seed) grouped by network, and within it by what is gathered from its features."""
    networks: dict[tuple, dict[tuple, list]] = {}
    for key in keys:
        detector = detectors[key[0]]
        networks.setdefault(detector.network_by, {}).setdefault(detector.collected_by, []).append(key)
    return [list(groups.values()) for groups in networks.values()]


def extract(detectors, groups, *pictures: Pictures) -> tuple:
    """The network of all groups, and the feature maps of each `pictures`: computed once where anybody asks again."""
    every = [detectors[keys[0][0]] for keys in groups]
    network = every[0].network(tuple(sorted({level for detector in every for level in detector.levels})), pictures[0])
    maps = [Extracted(network, images) for images in pictures]
    return network, *(Stored(images) if len(groups) > 1 or keepable(images) else images for images in maps)


def _measure(detectors, groups, category: Category, preprocess: Preprocess, batch_size: int, pixels: bool):
    """Yield ((name, seed), values of its row) for detectors of the same network."""
    network, train, test = extract(detectors, groups, Pictures(category.train, preprocess, batch_size),
                                    Pictures(category.test, preprocess, batch_size))
    names = [f"{sample.defect}/{sample.path.name}" for sample in category.test]
    masks = np.stack([preprocess.mask(sample) for sample in category.test]) if pixels else None
    counts = {"n_train": len(category.train), "n_test_good": int((category.labels == 0).sum()),
              "n_test_defective": int(category.labels.sum())}
    for keys in groups:
        fitted, fit_s = fit(detectors, keys, network, train)
        scores, predictions = _score(fitted, test, pixels)
        courses = {key: detector.course_ for key, detector in fitted.items() if hasattr(detector, "course_")}
        past = {(key, step): fitted[key].at(step) for key, course in courses.items()
                for step in course.kept if step < course.step}          # the last one is scored already
        on_the_way = _score(past, test, False)[0] if past else {}
        for key in keys:
            quality = _quality(category.labels, scores[key], names, masks, predictions.get(key), preprocess.side)
            yield key, quality | counts | _training(fitted[key], key, scores | on_the_way, category.labels) | {
                "fit_s": fit_s[key], "peak_memory_gb": memory.peak_gb(), "labels": category.labels.tolist(),
                "scores": scores[key].tolist(), "names": names}


def fit(detectors, keys, network, maps: Extracted | Stored) -> tuple[dict, dict]:
    """A fitted detector per (name, seed), and its seconds: the common part of the work counts for each.

    The detector that was passed in is itself fitted for its own seed, so that it can be used afterwards.
    """
    earlier, start = maps.seconds, time.perf_counter()
    first = replace(detectors[keys[0][0]])      # unfitted: nothing but what is gathered is adopted
    first.backbone_ = network.cut(first.levels)
    collected = first.gather_nominal(maps)
    common = time.perf_counter() - start + (earlier or maps.found_seconds)
    fitted, seconds = {}, {}
    for name, _ in keys:
        detectors[name].adopt(first)
    for name, seed in keys:
        start = time.perf_counter()
        own = detectors[name]
        fitted[name, seed] = (own if seed == own.seed else own.reseeded(seed)).learn(collected)
        found = getattr(fitted[name, seed], "found_seconds_", 0.0)
        seconds[name, seed] = common + time.perf_counter() - start + found
    return fitted, seconds


def _score(fitted: dict, maps: Extracted | Stored, with_maps: bool) -> tuple[dict, dict]:
    """Scores (n,) float64 and batches of predictions per key; stages that detectors share run once per batch."""
    scores, predictions = {key: [] for key in fitted}, {}
    stages = {key: list(detector.stages.values()) for key, detector in fitted.items()}
    first, (detector, *_) = next(iter(stages.values())), fitted.values()
    shared = len(detector.shared)
    batches = maps.batches(detector.levels) if shared else track(maps.images, len(maps.images), "pictures")
    for common in batches:
        for stage in first[1:shared]:           # the first one is the network
            common = stage(common)
        found = {}
        for key, detector in fitted.items():
            *search, score = stages[key][shared:]
            same = detector.found_by or key
            if same not in found:
                found[same] = common
                for stage in search:
                    found[same] = stage(found[same])
            prediction = score(found[same])
            scores[key].append(prediction.score.double())
            if with_maps:       # worked out now, so that what a late map needs can go
                predictions.setdefault(key, []).append(Prediction(prediction.score, prediction.map))
    return {key: torch.cat(values).numpy() for key, values in scores.items()}, predictions


def _training(detector: Detector, key: tuple[str, int], scores: dict, labels) -> dict:
    """The course of a training and the AUROC on the way, "last" and "best on test" (thesis sec. 5.3); else nothing."""
    if not hasattr(detector, "course_"):
        return {}
    course = detector.course_
    steps = sorted(course.kept)
    quality = [metrics.image_auroc(labels, scores[key, step] if step < course.step else scores[key])
               for step in steps]
    points = np.unique(np.linspace(0, course.step, POINTS + 1).round().astype(int))
    losses = {name: [float(np.mean(values[a:b])) for a, b in itertools.pairwise(points)]
              for name, values in course.losses.items()}
    return {"training": {"steps": steps, "image_auroc": quality, "best_on_test": max(quality),
                         "best_step": steps[int(np.argmax(quality))], "seconds": course.seconds,
                         "loss_steps": points[1:].tolist(), "losses": losses}}


def _quality(labels, scores, names, masks, predictions, side) -> dict:
    auroc = metrics.image_auroc(labels, scores, names)          # first: its error names the pictures
    low, high = metrics.auroc_interval(labels, scores)
    values = {"image_auroc": auroc, "image_auroc_low": low, "image_auroc_high": high, "pixel_auroc": None, "pro": None}
    if masks is not None and predictions is not None:
        maps = torch.cat([prediction.full_map(side) for prediction in predictions]).numpy()
        values |= {"pixel_auroc": metrics.pixel_auroc(masks, maps), "pro": metrics.pro(masks, maps)}
    return values
