"""The timing protocol on fitted detectors: rows of milliseconds per stage.

Detectors, a category and its preprocessing go in, one row per detector comes out. Source of the protocol: thesis sec.
3.4.1; the clock itself is `core.timing`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pandas as pd
import torch

from thesis_lib.core import results, stamp, timing
from thesis_lib.core.errors import NotFittedError, ThesisError
from thesis_lib.core.preprocess import Preprocess
from thesis_lib.core.timing import Timing
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures, load_image
from thesis_lib.evaluation import scores
from thesis_lib.methods.base import Detector
from thesis_lib.networks import backbones
from thesis_lib.networks.torch_setup import torch_threads

if TYPE_CHECKING:
    from thesis_lib.methods.patchcore import PatchCore


def measure(detector: Detector, images: Iterable[torch.Tensor], *, warmup: int = 3, repeats: int = 5,
            threads: int | None = None) -> Timing:
    """`timing.protocol` over the stages of a detector; images are batches (b, 3, H, W).

    threads sets torch's number while measuring and restores it; None leaves it.
    """
    with torch_threads(threads):
        return timing.protocol(detector.stages, images, warmup=warmup, repeats=repeats,
                               threads=torch.get_num_threads())


def measure_time(detector: Detector, category: Category, preprocess: Preprocess, *, pictures: int = 5,
                 warmup: int = 3, repeats: int = 5, batch_size: int = 1, threads: int | None = None,
                 force: bool = False) -> dict:
    """The timing protocol on the first test pictures, as a stored row; `pictures` counts timed batches.

    The detector is fitted first if it is not yet.
    """
    return measure_times({"": detector}, category, preprocess, pictures=pictures, warmup=warmup, repeats=repeats,
                         batch_size=batch_size, threads=threads, force=force)[""]


def measure_times(detectors: Mapping[str, Detector], category: Category, preprocess: Preprocess, *, pictures: int = 5,
                  warmup: int = 3, repeats: int = 5, batch_size: int = 1, threads: int | None = None,
                  force: bool = False) -> dict[str, dict]:
    """`measure_time` for several detectors, one after the other; for those still to be fitted a network runs once."""
    if pictures < 1 or batch_size < 1:
        raise ThesisError(f"pictures={pictures}, batch_size={batch_size}: both need at least 1")
    timing.check(warmup, repeats)
    preprocess = preprocess.decided(category.train)
    protocol = {"pictures": pictures, "warmup": warmup, "repeats": repeats, "batch_size": batch_size,
                "threads": threads or torch.get_num_threads(), "cpu": stamp.cpu_model()}
    subjects, rows = {}, {}
    for name, detector in detectors.items():
        subjects[name] = scores.subject(detector, category, preprocess, seed=detector.seed, module=__name__)
        subjects[name]["protocol"] = protocol
        row = None if force else results.find("time", subjects[name])
        if row:
            rows[name] = row
    missing = [name for name in detectors if name not in rows]
    if missing:
        paths = [sample.path for sample in category.test or category.train]
        timed = [paths[i % len(paths)] for i in range(pictures * batch_size)]
        images = torch.stack([load_image(path, preprocess) for path in timed]).split(batch_size)
        unfitted = [(name, detectors[name].seed) for name in missing if not _fitted(detectors[name])]
        for name, _ in unfitted:
            detectors[name].check_training(len(category.train), preprocess)
        for groups in scores.by_network(detectors, unfitted):
            network, (maps,) = scores.extract(detectors, groups, Pictures(category.train, preprocess))
            for keys in groups:
                scores.fit(detectors, keys, network, maps)
    for name in missing:
        measured = measure(detectors[name], images, warmup=warmup, repeats=repeats, threads=threads)
        rows[name] = results.save("time", subjects[name], measured.row())
    return {name: rows[name] for name in detectors}


def compare(detectors: Mapping[str, Detector], category: Category, preprocess: Preprocess, *, seeds: int,
            pictures: int) -> tuple[dict[str, pd.DataFrame], dict[str, dict]]:
    """Rows of `evaluate_many` (without pixel metrics) and of `measure_times` (pictures 0: none), by name.

    A detector whose weights are not at hand has no rows; it is timed with random ones, fitted on as few pictures as
    fill its bank: run time does not depend on the values.
    """
    if pictures < 0:
        raise ThesisError(f"pictures={pictures}: needs at least 1, or 0 to time none")
    networks = {(detector.backbone, detector.levels, detector.weights) for detector in detectors.values()}
    at_hand = {network for network in networks if backbones.at_hand(*network)}
    complete = {name: detector for name, detector in detectors.items()
                if (detector.backbone, detector.levels, detector.weights) in at_hand}
    rows = scores.evaluate_many(complete, category, preprocess, seeds=seeds, pixels=False)
    if not pictures:
        return rows, {}
    times = measure_times(complete, category, preprocess, pictures=pictures)
    random = {name: replace(detector, weights="random") for name, detector in detectors.items() if name not in complete}
    by_count: dict[int, dict[str, Detector]] = {}
    for name, detector in random.items():
        by_count.setdefault(pictures_for_bank(detector, preprocess), {})[name] = detector
    for count, some in by_count.items():
        times |= measure_times(some, category.subset(train=count), preprocess, pictures=pictures)
    return rows, {name: times[name] for name in detectors}


def pictures_for_bank(detector: Detector, preprocess: Preprocess) -> int:
    """Training pictures whose patches fill the bank; 0, which means all, where their number or values decide a time."""
    bank = getattr(detector, "bank", None)
    if not isinstance(bank, int) or detector.parameters()["search"] == "pruned" or preprocess.masked:
        return 0
    places, _ = cast("PatchCore", detector).shape(preprocess.shape)
    return max(-(-bank // places), detector.calibration if detector.engine == "int8" else 1)


def _fitted(detector: Detector) -> bool:
    """Whether it could predict: its stages need what fit teaches."""
    try:
        return bool(detector.stages)
    except NotFittedError:
        return False
