"""Fit on the training pictures, score the test pictures, for several seeds from the same features."""

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import NotFittedError

from thesis_lib import backbones, metrics, results, timing
from thesis_lib.data import Category, Pictures, Preprocess
from thesis_lib.methods.base import Detector
from thesis_lib.progress import track


def evaluate(detector: Detector, category: Category, preprocess: Preprocess, *, seeds: Sequence[int] | int = 5,
             batch_size: int = 8, force: bool = False) -> pd.DataFrame:
    """One row per seed: image AUROC with interval, pixel AUROC and PRO where every defect has a mask, all scores.

    As the thesis averages over five memory banks made from the same patches, features are extracted once and
    `learn` runs per seed. Finished rows are read from outputs/results instead (force measures them again).
    Raises DataError or ValueError naming the picture or parameter.
    """
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds:
        raise ValueError("seeds: needs at least one")
    subjects = {seed: subject(detector, category, preprocess, seed=seed) for seed in seeds}
    rows = {} if force else {seed: row for seed in seeds if (row := results.find("auroc", subjects[seed]))}
    missing = [seed for seed in seeds if seed not in rows]
    if missing:
        metrics.image_auroc(category.labels, np.zeros(len(category.test)))     # one class only: say so before the work
        fitted, fit_s = _fit(detector, Pictures(category.train, preprocess, batch_size), missing)
        scores, maps = _score(fitted, Pictures(category.test, preprocess, batch_size), with_maps=category.has_masks)
        names = [f"{sample.defect}/{sample.path.name}" for sample in category.test]
        masks = np.stack([preprocess.mask(sample) for sample in category.test]) if category.has_masks else None
        for seed in missing:
            values = _quality(category.labels, scores[seed], names, masks, maps.get(seed), preprocess.side)
            values |= {"fit_s": fit_s[seed], "peak_memory_gb": timing.peak_memory_gb(),
                       "n_train": len(category.train), "n_test_good": int((category.labels == 0).sum()),
                       "n_test_defective": int(category.labels.sum()),
                       "labels": category.labels.tolist(), "scores": scores[seed].tolist(), "names": names}
            rows[seed] = results.save("auroc", subjects[seed], values)
    return pd.json_normalize([rows[seed] for seed in seeds])


def measure_time(detector: Detector, category: Category, preprocess: Preprocess, *, pictures: int = 5,
                 warmup: int = 3, repeats: int = 5, batch_size: int = 1, threads: int | None = None,
                 force: bool = False) -> dict:
    """The timing protocol on the first test pictures, as a stored row; `pictures` counts timed batches.

    The detector is fitted first if it is not yet.
    """
    if pictures < 1 or batch_size < 1:
        raise ValueError(f"pictures={pictures}, batch_size={batch_size}: both need at least 1")
    protocol = {"pictures": pictures, "warmup": warmup, "repeats": repeats, "batch_size": batch_size,
                "threads": threads or torch.get_num_threads(), "cpu": _cpu()}
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
            "parameters": parameters, "preprocess": asdict(preprocess), "data": category.fingerprint}


def worst(category: Category, scores: Sequence[float], count: int = 3) -> list[int]:
    """Indices into category.test: nominal pictures with the highest and anomalous ones with the lowest scores."""
    scores, labels = np.asarray(scores), category.labels
    order = np.argsort(scores, kind="stable")
    return [*order[labels[order] == 0][::-1][:count].tolist(), *order[labels[order] == 1][:count].tolist()]


def _fit(detector: Detector, pictures: Pictures, seeds: list[int]) -> tuple[dict[int, Detector], dict[int, float]]:
    """One fitted detector per seed, and its seconds: the common part of the work counts for each."""
    start = time.perf_counter()
    collected = detector.collect_nominal(pictures)
    common = time.perf_counter() - start
    fitted, seconds = {}, {}
    for seed in seeds:
        start = time.perf_counter()
        fitted[seed] = (detector if seed == detector.seed else detector.reseeded(seed)).learn(collected)
        seconds[seed] = common + time.perf_counter() - start
    return fitted, seconds


def _score(fitted: dict[int, Detector], pictures: Pictures, with_maps: bool) -> tuple[dict, dict]:
    """Scores (n,) float64 and grid maps (n, h, w) per seed; the shared stages run once per batch."""
    scores, maps = {seed: [] for seed in fitted}, {seed: [] for seed in fitted}
    stages = {seed: list(detector.stages.items()) for seed, detector in fitted.items()}
    shared = next(iter(fitted.values())).shared
    for batch in track(pictures, len(pictures), "test pictures"):
        x = batch
        for _, stage in next(iter(stages.values()))[:len(shared)]:
            x = stage(x)
        for seed in fitted:
            y = x
            for _, stage in stages[seed][len(shared):]:
                y = stage(y)
            scores[seed].append(y.score.double())
            if with_maps:
                maps[seed].append(y)
    return ({seed: torch.cat(values).numpy() for seed, values in scores.items()},
            {seed: values for seed, values in maps.items() if values})


def _quality(labels, scores, names, masks, predictions, side) -> dict:
    low, high = metrics.auroc_interval(labels, scores)
    values = {"image_auroc": metrics.image_auroc(labels, scores, names), "image_auroc_low": low,
              "image_auroc_high": high, "pixel_auroc": None, "pro": None}
    if masks is not None and predictions is not None:
        maps = torch.cat([prediction.full_map(side) for prediction in predictions]).numpy()
        values |= {"pixel_auroc": metrics.pixel_auroc(masks, maps), "pro": metrics.pro(masks, maps)}
    return values


def _cpu() -> str | None:
    from thesis_lib.stamp import stamp
    return stamp()["cpu"]
