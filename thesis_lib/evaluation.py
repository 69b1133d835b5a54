"""Fit on the training pictures, score the test pictures: several seeds and variants from the same features."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import NotFittedError

from thesis_lib import backbones, engines, metrics, results, timing
from thesis_lib.data import Category, Pictures, Preprocess
from thesis_lib.methods.base import Detector, Prediction
from thesis_lib.progress import track
from thesis_lib.stamp import stamp


def evaluate(detector: Detector, category: Category, preprocess: Preprocess, *, seeds: Sequence[int] | int = 5,
             batch_size: int = 8, force: bool = False) -> pd.DataFrame:
    """One row per seed: image AUROC with interval, pixel AUROC and PRO where every defect has a mask, all scores.

    As the thesis averages over five memory banks made from the same patches, features are extracted once and
    `learn` runs per seed. Finished rows are read from outputs/results instead (force measures them again).
    Raises DataError or ValueError naming the picture or parameter.
    """
    return evaluate_many({"": detector}, category, preprocess, seeds=seeds, batch_size=batch_size, force=force)[""]


def evaluate_many(detectors: Mapping[str, Detector], category: Category, preprocess: Preprocess, *,
                  seeds: Sequence[int] | int = 5, batch_size: int = 8, force: bool = False) -> dict[str, pd.DataFrame]:
    """`evaluate` for several detectors; those with the same features (backbone, embedding) extract them once.

    A detector without anything random gets one row, that of the first seed: the others would be the same.
    """
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds:
        raise ValueError("seeds: needs at least one")
    wanted = {name: seeds if detector.seeded else seeds[:1] for name, detector in detectors.items()}
    subjects = {(name, seed): subject(detectors[name], category, preprocess, seed=seed)
                for name in detectors for seed in wanted[name]}
    rows = {} if force else {key: row for key, about in subjects.items() if (row := results.find("auroc", about))}
    groups = {}
    for name, seed in subjects:
        if (name, seed) not in rows:
            groups.setdefault(detectors[name].collected_by, []).append((name, seed))
    if groups:
        metrics.image_auroc(category.labels, np.zeros(len(category.test)))     # one class only: say so before the work
    for keys in groups.values():
        for key, values in _measure(detectors, keys, category, preprocess, batch_size):
            rows[key] = results.save("auroc", subjects[key], values)
    return {name: pd.json_normalize([rows[name, seed] for seed in wanted[name]]) for name in detectors}


def measure_time(detector: Detector, category: Category, preprocess: Preprocess, *, pictures: int = 5,
                 warmup: int = 3, repeats: int = 5, batch_size: int = 1, threads: int | None = None,
                 force: bool = False) -> dict:
    """The timing protocol on the first test pictures, as a stored row; `pictures` counts timed batches.

    The detector is fitted first if it is not yet.
    """
    if pictures < 1 or batch_size < 1:
        raise ValueError(f"pictures={pictures}, batch_size={batch_size}: both need at least 1")
    protocol = {"pictures": pictures, "warmup": warmup, "repeats": repeats, "batch_size": batch_size,
                "threads": threads or torch.get_num_threads(), "cpu": stamp()["cpu"]}
    about = subject(detector, category, preprocess, seed=detector.seed) | {"protocol": protocol}
    if not force and (row := results.find("time", about)):
        return row
    test = [sample.path for sample in category.test] or [sample.path for sample in category.train]
    wanted = [test[i % len(test)] for i in range(pictures * batch_size)]
    images = torch.stack([preprocess.image(path) for path in wanted]).split(batch_size)
    try:
        detector.stages     # noqa: B018
    except NotFittedError:
        detector.fit(Pictures(category.train, preprocess))
    measured = timing.measure(detector, images, warmup=warmup, repeats=repeats, threads=threads)
    return results.save("time", about, measured.row())


def subject(detector: Detector, category: Category, preprocess: Preprocess, *, seed: int) -> dict:
    """Everything that decides a result: method, parameters, weights, preprocessing, data, seed."""
    parameters = detector.parameters(identity_only=True)
    parameters.pop("seed")
    weights = parameters.pop("weights", None)       # the path of a file is not its identity, its hash is
    return {"method": detector.name, "category": category.name, "seed": seed,
            "weights": backbones.record(detector.backbone, weights) if weights else None,
            "engine": engines.record(parameters.get("engine", "eager")),
            "parameters": parameters, "preprocess": asdict(preprocess), "data": category.fingerprint}


def worst(category: Category, scores: Sequence[float], count: int = 3) -> list[int]:
    """Indices into category.test: nominal pictures with the highest and anomalous ones with the lowest scores."""
    scores, labels = np.asarray(scores), category.labels
    order = np.argsort(scores, kind="stable")
    return [*order[labels[order] == 0][::-1][:count].tolist(), *order[labels[order] == 1][:count].tolist()]


def _measure(detectors, keys, category: Category, preprocess: Preprocess, batch_size: int):
    """Yield ((name, seed), values of its row) for detectors that collect the same features."""
    fitted, fit_s = _fit(detectors, keys, Pictures(category.train, preprocess, batch_size))
    scores, predictions = _score(fitted, Pictures(category.test, preprocess, batch_size), category.has_masks)
    names = [f"{sample.defect}/{sample.path.name}" for sample in category.test]
    masks = np.stack([preprocess.mask(sample) for sample in category.test]) if category.has_masks else None
    counts = {"n_train": len(category.train), "n_test_good": int((category.labels == 0).sum()),
              "n_test_defective": int(category.labels.sum())}
    for key in keys:
        quality = _quality(category.labels, scores[key], names, masks, predictions.get(key), preprocess.side)
        yield key, quality | counts | {
            "fit_s": fit_s[key], "peak_memory_gb": timing.peak_memory_gb(), "labels": category.labels.tolist(),
            "scores": scores[key].tolist(), "names": names}


def _fit(detectors, keys, pictures: Pictures) -> tuple[dict, dict]:
    """A fitted detector per (name, seed), and its seconds: the common part of the work counts for each.

    The detector that was passed in is itself fitted for its own seed, so that it can be used afterwards.
    """
    start = time.perf_counter()
    first = replace(detectors[keys[0][0]])      # unfitted: nothing but what collect leaves is adopted
    collected = first.collect_nominal(pictures)
    common = time.perf_counter() - start
    fitted, seconds = {}, {}
    for name, _ in keys:
        detectors[name].adopt(first)
    for name, seed in keys:
        start = time.perf_counter()
        own = detectors[name]
        fitted[name, seed] = (own if seed == own.seed else own.reseeded(seed)).learn(collected)
        seconds[name, seed] = common + time.perf_counter() - start
    return fitted, seconds


def _score(fitted: dict, pictures: Pictures, with_maps: bool) -> tuple[dict, dict]:
    """Scores (n,) float64 and batches of predictions per key; the shared stages run once per batch."""
    scores, predictions = {key: [] for key in fitted}, {}
    stages = {key: list(detector.stages.values()) for key, detector in fitted.items()}
    first, shared = next(iter(stages.values())), len(next(iter(fitted.values())).shared)
    for batch in track(pictures, len(pictures), "test pictures"):
        common = batch
        for stage in first[:shared]:
            common = stage(common)
        for key in fitted:
            x = common
            for stage in stages[key][shared:]:
                x = stage(x)
            scores[key].append(x.score.double())
            if with_maps:       # worked out now, so that what a late map needs can go
                predictions.setdefault(key, []).append(Prediction(x.score, x.map))
    return {key: torch.cat(values).numpy() for key, values in scores.items()}, predictions


def _quality(labels, scores, names, masks, predictions, side) -> dict:
    auroc = metrics.image_auroc(labels, scores, names)          # first: its error names the pictures
    low, high = metrics.auroc_interval(labels, scores)
    values = {"image_auroc": auroc, "image_auroc_low": low, "image_auroc_high": high, "pixel_auroc": None, "pro": None}
    if masks is not None and predictions is not None:
        maps = torch.cat([prediction.full_map(side) for prediction in predictions]).numpy()
        values |= {"pixel_auroc": metrics.pixel_auroc(masks, maps), "pro": metrics.pro(masks, maps)}
    return values
