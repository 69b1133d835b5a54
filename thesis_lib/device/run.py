"""A bundle on a device: check its scores, measure it by the thesis' protocol, detect with it.

In comes the folder that `export` wrote, out come a row of stage times, or a score and a map for each picture.
Needs NumPy, Pillow, ONNX Runtime, psutil and threadpoolctl; neither torch nor FAISS nor Jupyter.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from thesis_lib.core import files, identity, results, stamp, timing
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.files import replaced
from thesis_lib.core.preprocess import MAPS, SUFFIXES, DataError, Size, height_width, pictures_in
from thesis_lib.core.threads import usable_cpus
from thesis_lib.device import drift, gaussians
from thesis_lib.device.bundle import FACTS, Bundle, BundleError, Detection, Parity, predict
from thesis_lib.device.opening import opening

# Shares, see `bundle`. Rounding in int8 falls differently with the kernels of another processor.
LIMITS = {"float": 1e-3, "int8": 0.05}
WAY_LIMIT = 0.05        # of JPEGs and a large picture: another decoder may round every pixel differently
# Suffixes of raw pictures: Pillow opens some of them and gives the small preview that is in them.
RAW = {".dng", ".raw", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf"}
THROTTLED = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "over the soft temperature limit"}


def check_scores(bundle: Bundle, engine: str, threads: int) -> Parity:
    """`parity`, or BundleError where a difference is over its limit: such times would be those of something else.

    Another verdict is no reason: of pictures next to the threshold it may come from a difference within the limit.
    """
    parity = bundle.parity(engine, threads)
    for what, share, limit in (("the scores", parity.difference, LIMITS[engine]),
                               ("the scores of JPEGs and a large picture, decoded and resized here,",
                                parity.whole_way or 0.0, WAY_LIMIT)):
        if not share <= limit:                                                              # nor NaN
            raise BundleError(f"{bundle.folder}: {what} of engine {engine} differ by {100 * share:.2g} % from those at "
                              f"export, the limit is {100 * limit:.2g} %; no times are told")
    return parity


def measure(bundle: Bundle, *, engine: str = "float", threads: int | None = None, images: Sequence[Path] = (),
            pictures: int = 5, warmup: int = 3, repeats: int = 5) -> results.Row:
    """A row as `thesis time` makes it, of the first `pictures` images (none: those of the bundle); not stored.

    Scores are checked first (BundleError). threads: of the network and of the search; None takes all processors.
    Besides the usual fields: what the check found; what it takes to open the images, or the JPEGs of the bundle
    (`opening`); governor, temperature and throttling before and after.
    """
    threads = _threads(threads)
    if pictures < 1:
        raise ThesisError(f"pictures={pictures}: needs at least 1")
    timing.check(warmup, repeats)
    given = list(images) or bundle.pictures
    timed = [given[i % len(given)] for i in range(pictures)]
    batches = [bundle.image(file) for file in timed]
    with threadpool_limits(threads, user_api="blas"):
        parity = check_scores(bundle, engine, threads)
        to_open = timed if images else bundle.on_way or timed
        opening_ms = opening(to_open, bundle.preprocess, repeats)
        before, start = stamp.condition(), time.perf_counter()
        stages = bundle.stages(engine, threads)
        load_ms = (time.perf_counter() - start) * 1e3
        measured = timing.protocol(stages, batches, warmup=warmup, repeats=repeats, threads=threads)
        after = stamp.condition()
    facts = stamp.stamp({"onnxruntime": threads, "numpy": threads})
    exported = bundle.facts["engines"][engine]["subject"]
    # What was measured is what was exported, in the ONNX Runtime and with the code of this machine.
    engine_facts = (exported["engine"] or {}) | {"onnxruntime": identity.version_of("onnxruntime")}
    protocol = {"pictures": pictures, "warmup": warmup, "repeats": repeats, "batch_size": 1, "threads": threads,
                "cpu": facts["cpu"]}
    subject = exported | {"engine": engine_facts, "code": identity.key(__name__), "protocol": protocol}
    values = measured.row() | {
        "load_ms": load_ms, "opening_ms": opening_ms, "opened": [file.name for file in to_open],
        "bundle": files.digest_of(bundle.folder / FACTS)[:16],
        "timed": [file.name for file in timed],
        "parity": asdict(parity) | {"limit": LIMITS[engine], "way_limit": WAY_LIMIT},
        "before": before, "after": after}
    return results.make_row("time", subject, values, facts)


def complaints(row: Mapping[str, Any]) -> list[str]:
    """What speaks against a row, one line each."""
    lines = []
    before, after = (int(row[when]["throttled"] or "0", 16) for when in ("before", "after"))
    # Bits 0 to 3 are now, 16 to 19 since the machine was started: those count that have come while measuring.
    flags = (before | after) & 0xF | (after >> 16) & ~(before >> 16)
    if flags:
        lines.append(", ".join(text for bit, text in THROTTLED.items() if flags >> bit & 1)
                     + f" while measuring (flags 0x{before:x}, then 0x{after:x}): mind power supply and cooling")
    if row["noisy"]:
        lines.append(f"noisy: spread {100 * row['spread']:.0f} %, over {100 * timing.SPREAD_LIMIT:.0f} %: close other "
                     "programs and measure again")
    if flipped := row["parity"]["flipped"]:
        lines.append(f"{len(flipped)} of {row['parity']['pictures']} verdicts are others than those of the same engine "
                     f"at export: {', '.join(flipped)}; scores so near to the threshold fall on either side")
    return lines


@contextmanager
def opened(bundle: Bundle, engine: str = "float", threads: int | None = None) -> Iterator[Callable[[Path], Detection]]:
    """What finds in one picture after the other; it raises DataError for one that cannot be read or has no score.

    Where the bundle has bands, a Detection has the values of its picture for the `drift.Watch` that `watch` opens.
    """
    threads, banded = _threads(threads), bool(bundle.bands(engine))
    with threadpool_limits(threads, user_api="blas"):
        stages = bundle.stages(engine, threads)

        def find(file: Path) -> Detection:
            if file.suffix.lower() in RAW:
                raise DataError(f"{file}: is a raw picture, whose colours a bundle knows nothing of; needs JPEG or "
                                "PNG: ask the camera for one (rpicam-still without --raw)")
            try:
                image = bundle.image(file)
                found = predict(stages, image)
            except DataError:
                raise
            except ThesisError as error:            # NaN
                raise DataError(f"{file}: {error}") from None
            if banded:
                found = replace(found, values=drift.of_picture(image[0]) | {drift.MAP: drift.of_map(found.map)})
            return found

        yield find


def detect(bundle: Bundle, files: Sequence[Path], *, engine: str = "float",
           threads: int | None = None) -> Iterator[tuple[Path, Detection | DataError]]:
    """What was found in each picture, or why it could not be read or has no score; see `opened`."""
    with opened(bundle, engine, threads) as find:
        for file in files:
            try:
                found = find(file)
            except DataError as error:
                yield file, error
            else:
                yield file, found


def watch(bundle: Bundle, engine: str = "float", file: Path | None = None) -> drift.Watch:
    """What tells that the light has changed, by the values of one detected picture after the other; never, where the
    bundle has no bands. file: keeps the last pictures for the next call, see `drift.Watch`.
    """
    return drift.Watch(bundle.bands(engine), file, f"{files.digest_of(bundle.folder / FACTS)} {engine}")


def save_map(detection: Detection, threshold: float, size: Size, picture: Path, floor: float = 0.0,
             sigma: float = 0.0) -> Path:
    """Grey PNG of the size that the network saw, interpolated; floor is 0, the threshold the middle, 128.

    sigma: the map is smoothed as for its score, so that what is brighter than the middle is above the threshold.
    It goes into a folder of its own beside the picture, which nothing reads pictures from.
    """
    file = map_of(picture)
    height, width = height_width(size)
    heat = np.where(np.isneginf(detection.map), floor, gaussians.smoothed(detection.map, sigma)).astype(np.float32)
    full = Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)
    grey = np.clip((np.asarray(full) - floor) / (threshold - floor) * 128, 0, 255).round().astype(np.uint8)
    with replaced(file) as partial:
        Image.fromarray(grey).save(partial, format="PNG")
    return file


def map_of(picture: Path) -> Path:
    """Where the anomaly map of a picture is written."""
    return picture.parent / MAPS / f"{picture.name}.png"


def pictures_of(folder: str | Path) -> list[Path]:
    """The pictures right in a folder, sorted; DataError where there are none."""
    folder = Path(folder)
    pictures = pictures_in(folder)
    if not pictures:
        raise DataError(f"{folder}: no folder with pictures ({', '.join(sorted(SUFFIXES))})")
    return pictures


def _threads(threads: int | None) -> int:
    """So many, or all processors for None."""
    if threads is not None and threads < 1:
        raise ThesisError(f"threads={threads}: needs at least 1")
    return threads or usable_cpus()
