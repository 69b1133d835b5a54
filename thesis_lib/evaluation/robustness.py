"""What a fitted detector does when light, sharpness or position change a little: how scores move, and what that costs.

A detector, held-out pictures and a threshold go in; a table comes out, one row for each change and step. Pictures are
changed at their original resolution, before the resize, and then go the way of every picture. Where they are turned or
shifted, nothing is invented at the border: the part that is in view both times is cut out, and the row of step 0 is the
untouched picture, cut equally. A region of interest stays where it is, as it belongs to the camera.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageFilter

from thesis_lib.core import files
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import DataError, Preprocess, Sample, read_rgb, size_of
from thesis_lib.core.progress import track
from thesis_lib.core.region import Region
from thesis_lib.data.pictures import load_image
from thesis_lib.evaluation import crossfit
from thesis_lib.methods.base import Detector

if TYPE_CHECKING:
    import pandas as pd

# Change -> its steps. Shares, but for noise (standard deviation in grey levels of 255), jpeg (quality) and rotation
# (degrees); blur is a share of the picture's short side, shift one of its width or height, at least a pixel.
STEPS: Mapping[str, Sequence[float]] = {
    "brightness": (-0.2, -0.1, 0.1, 0.2), "contrast": (-0.2, -0.1, 0.1, 0.2), "blur": (0.001, 0.002, 0.004),
    "noise": (2, 5, 10), "jpeg": (90, 70, 50), "rotation": (0.5, 1, 2), "shift": (0.005, 0.01, 0.02)}
GEOMETRIC = "rotation", "shift"
UNTOUCHED = "untouched"
SMALLEST = 16           # pixels of a side that are left of a picture which is cut
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))         # of a shift, in turn from picture to picture


def robustness(detector: Detector, samples: Sequence[Sample], preprocess: Preprocess, threshold: float, *,
               steps: Mapping[str, Sequence[float]] = STEPS, spread: float | None = None, seed: int = 0,
               batch_size: int = 8) -> "pd.DataFrame":
    """One row for each change and step, of pictures that the detector has not learned from.

    change, step, label; shift: median over the good pictures of how far their scores move, against the untouched ones
    (or those cut equally); shift_iqr: the same in interquartile ranges of the nominal scores, which `spread` gives, or
    the good pictures, untouched; false_alarms and n_good; recall and n_defective, None and 0 without defective ones.
    seed: of the noise. Rotations and shifts take directions in turn.
    Raises ThesisError for unknown changes and where no picture is good, DataError for a picture that is too small.
    """
    import pandas as pd

    labels = np.array([sample.label for sample in samples])
    if not len(labels) or labels.all():
        raise ThesisError("robustness: needs held-out pictures of good parts, there is none")
    _check(steps)
    learned: Preprocess | None = vars(detector).get("preprocess_")
    if preprocess.levels == "auto" and learned is not None:
        preprocess = replace(preprocess, levels=learned.levels)
    good, rows = labels == 0, []

    def scored(change: str, step: float) -> np.ndarray:
        largest = max(map(abs, steps.get(change, ())), default=0.0)
        images = _changed(samples, preprocess, change, step, largest, seed, batch_size)
        return crossfit.scores_of(detector.predict(batch) for batch in images)

    plain = scored(UNTOUCHED, 0)
    if spread is None:
        spread = float(np.subtract(*np.quantile(plain[good], [0.75, 0.25])))
    wanted = [(UNTOUCHED, 0.0)]
    for change, sizes in steps.items():
        wanted += [(change, float(step)) for step in ((0.0,) if change in GEOMETRIC else ()) + tuple(sizes)]
    before = plain
    for change, step in track(wanted, len(wanted), "changes"):
        scores = plain if change == UNTOUCHED else scored(change, step)
        if step == 0 or change not in GEOMETRIC:
            before = scores if step == 0 else plain
        moved = float(np.median((scores - before)[good]))
        flagged = scores > threshold
        rows.append({"change": change, "step": step, "label": label(change, step), "shift": moved,
                     "shift_iqr": moved / spread if spread > 0 else None,
                     "false_alarms": float(flagged[good].mean()), "n_good": int(good.sum()),
                     "recall": None if good.all() else float(flagged[~good].mean()),
                     "n_defective": int((~good).sum())})
    return pd.DataFrame(rows)


def possible(samples: Sequence[Sample], preprocess: Preprocess,
             steps: Mapping[str, Sequence[float]] = STEPS) -> tuple[dict[str, Sequence[float]], str]:
    """The changes that none of these pictures is too small for, and in sentences why others are left out.

    >>> possible([], Preprocess(), {"rotation": (0.5,)})
    ({'rotation': (0.5,)}, '')
    """
    frames = {size_of(sample.path): sample.path for sample in reversed(samples)}
    found, reasons = dict(steps), []
    for change in GEOMETRIC:
        largest = max(map(abs, steps.get(change, ())), default=0.0)
        for size, path in frames.items() if largest else ():
            try:
                _, _, *inner = preprocess.roi if isinstance(preprocess.roi, tuple) else (0, 0, *size)
                box = _in_view((inner[0], inner[1]), change, largest)
                if isinstance(preprocess.roi, str):
                    _cut_region(preprocess.roi, box, change, largest)
            except DataError as error:
                del found[change]
                reasons.append(f"{change.capitalize()} is left out: {path.name}: {error}.")
                break
    return found, " ".join(reasons)


def label(change: str, step: float) -> str:
    """A step as a person reads it.

    >>> label("brightness", 0.1), label("rotation", 0.5), label("jpeg", 70), label("shift", 0.0)
    ('brightness +10 %', 'rotation 0.5 degrees', 'jpeg quality 70', 'shift none, cut equally')
    """
    if change == UNTOUCHED:
        return change
    if change in GEOMETRIC and step == 0:
        return f"{change} none, cut equally"
    in_words = {"brightness": f"{100 * step:+g} %", "contrast": f"{100 * step:+g} %", "noise": f"{step:g} grey levels",
                "jpeg": f"quality {step:g}", "rotation": f"{step:g} degrees", "shift": f"{100 * step:g} % of the side",
                "blur": f"{100 * step:g} % of the short side"}
    return f"{change} {in_words[change]}"


def _check(steps: Mapping[str, Sequence[float]]) -> None:
    """ThesisError for a change that is not known, or a step that is none."""
    for change, sizes in steps.items():
        if change not in STEPS:
            raise ThesisError(f"robustness: {change!r} is no change; there are {', '.join(STEPS)}")
        low, high = {"brightness": (-1, 10), "contrast": (-1, 10), "blur": (0, 1), "noise": (0, 255), "jpeg": (1, 100),
                     "rotation": (0, 45), "shift": (0, 0.25)}[change]
        for step in sizes:
            if not low <= step <= high:
                raise ThesisError(f"robustness: {change} by {step:g}; needs {low:g} to {high:g}")


def _changed(samples: Sequence[Sample], preprocess: Preprocess, change: str, step: float, largest: float, seed: int,
             batch_size: int) -> Iterator[torch.Tensor]:
    """Batches (b, 3, H, W) of the changed pictures, prepared as all are: through a file, without loss."""
    with files.scratch_folder() as folder:
        file = Path(folder) / "picture.bmp"
        for start in range(0, len(samples), batch_size):
            batch = []
            for number, sample in enumerate(samples[start:start + batch_size], start):
                picture, prepared = read_rgb(sample.path, preprocess.levels), preprocess
                try:
                    preprocess.inside(picture.size)         # a region of interest must fit the original
                    if change in GEOMETRIC:
                        picture, prepared = _moved(picture, preprocess, change, step, largest, number)
                    else:
                        picture = _in_other_light(picture, change, step, np.random.default_rng([seed, number]))
                except DataError as error:
                    raise DataError(f"{sample.path}: {error}") from None
                picture.save(file)
                batch.append(load_image(file, prepared))
            yield torch.stack(batch)


def _in_other_light(picture: Image.Image, change: str, step: float, rng: np.random.Generator) -> Image.Image:
    """The whole picture with another brightness, contrast, sharpness, noise or compression."""
    if change == "blur":
        return picture.filter(ImageFilter.GaussianBlur(step * min(picture.size)))
    if change == "jpeg":
        stream = io.BytesIO()
        picture.save(stream, format="JPEG", quality=round(step))
        return Image.open(stream).convert("RGB")
    values = np.asarray(picture, dtype=np.float64)
    table: Mapping[str, Callable[[], np.ndarray]] = {
        UNTOUCHED: lambda: values, "brightness": lambda: values * (1 + step),
        "contrast": lambda: values.mean() + (values - values.mean()) * (1 + step),
        # One number for all channels of a pixel: a grey picture stays grey.
        "noise": lambda: values + rng.normal(0, step, (*values.shape[:2], 1))}
    return Image.fromarray(table[change]().round().clip(0, 255).astype(np.uint8))


def _moved(picture: Image.Image, preprocess: Preprocess, change: str, step: float, largest: float,
           number: int) -> tuple[Image.Image, Preprocess]:
    """What is in view of a turned or shifted picture at the largest step, too; and how to prepare it: a rectangle of
    interest is cut out before, a mask is cut as the picture is.
    """
    # 1. The frame: the region of interest, or the whole picture.
    if isinstance(preprocess.roi, tuple):
        x, y, w, h = preprocess.roi
        picture, preprocess = picture.crop((x, y, x + w, y + h)), replace(preprocess, roi=None)
    # 2. The part of it, of the same aspect, that stays in view whatever the step: nothing outside the frame is needed.
    box = _in_view(picture.size, change, largest)
    # 3. The picture moves under the camera, whose mask does not.
    if isinstance(preprocess.roi, str):
        preprocess = replace(preprocess, roi=_cut_region(preprocess.roi, box, change, largest))
    if change == "rotation":
        turned = picture.rotate(step * (1 - 2 * (number % 2)), Image.Resampling.BICUBIC) if step else picture
        return turned.crop(box), preprocess
    (width, height), (right, down) = picture.size, DIRECTIONS[number % len(DIRECTIONS)]
    dx, dy = (way * max(round(step * side), int(step > 0)) for way, side in ((right, width), (down, height)))
    return picture.crop((box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy)), preprocess


def _in_view(size: tuple[int, int], change: str, largest: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is in view of a picture of this width and height at every step up to the
    largest. DataError where that is next to nothing.
    """
    width, height = size
    if change == "shift":
        share = 1 - 2 * largest
    else:
        cosine, sine = np.cos(np.radians(largest)), np.sin(np.radians(largest))
        share = min(width / (width * cosine + height * sine), height / (width * sine + height * cosine))
    inner = int(width * share) - 2, int(height * share) - 2         # interpolation reaches a pixel further
    if min(inner) < SMALLEST:
        raise DataError(f"its {width}x{height} pixels leave {inner[0]}x{inner[1]} after a {change} by {largest:g}; "
                        "needs a larger picture or smaller steps")
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]


def _cut_region(region: str, box: tuple[int, int, int, int], change: str, largest: float) -> str:
    """The region of a mask picture inside the box. DataError where there is none."""
    mask = Region.parse(region).mask()[box[1]:box[3], box[0]:box[2]]
    if not mask.any():
        raise DataError(f"nothing of its region of interest is left after a {change} by {largest:g}")
    return str(Region.of(np.ascontiguousarray(mask)))
