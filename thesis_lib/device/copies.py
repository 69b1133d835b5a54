"""The pictures that a bundle carries, so that a device can compare its scores with those at export.

A user's pictures go in, files in the folder `pictures` come out: small copies, of which the network and all after it
are told apart; JPEGs and a large one, whose way leads through decoder and resizer, too; and the pictures whose scores
lie nearest to the threshold, exactly as the network sees them, whose verdicts flip first.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from thesis_lib.core.preprocess import INTERPOLATIONS, Preprocess, Sample, read_rgb

FOLDER = "pictures"
JPEGS = 2
LARGE = 4               # times the sides that a picture is resized to: 1024 pixels for 256, some 200 kB
QUALITY = 90            # of JPEG, with colours of half the resolution, as cameras write it
TIE = 1e-5              # share of the threshold above the floor within which rounding decides the verdict


def small(samples: Sequence[Sample], preprocess: Preprocess, folder: Path) -> list[str]:
    """PNGs no larger than they are resized to; whole where a region of interest is for their size. Their names."""
    (folder / FOLDER).mkdir()
    names = []
    for number, sample in enumerate(samples):
        picture = _read(sample, preprocess)
        if preprocess.roi is None:              # which is in pixels of the original
            picture.thumbnail(preprocess.resized)
        names.append(f"{FOLDER}/{number:02d}_{sample.defect}.png")
        picture.save(folder / names[-1])
    return names


def whole_way(samples: Sequence[Sample], preprocess: Preprocess, folder: Path) -> list[str]:
    """JPEGs of the first and the last picture, and one from the middle at LARGE times the sides that it is resized to,
    enlarged where the original is smaller. With a region of interest the JPEGs are whole, and there is no other.
    """
    names = []
    for number, sample in enumerate((samples[0], samples[-1])[:JPEGS]):
        picture = _read(sample, preprocess)
        if preprocess.roi is None:
            picture.thumbnail(preprocess.resized)
        names.append(f"{FOLDER}/jpeg{number}_{sample.defect}.jpg")
        picture.save(folder / names[-1], quality=QUALITY)
    if preprocess.roi is None:
        sample = samples[len(samples) // 2]
        picture = _read(sample, preprocess)
        scale = LARGE * min(to / side for to, side in zip(preprocess.resized, picture.size, strict=True))
        sides = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
        names.append(f"{FOLDER}/large_{sample.defect}.jpg")
        picture.resize(sides, Image.Resampling.BICUBIC).save(folder / names[-1], quality=QUALITY)
    return names


def nearest(scores: np.ndarray, threshold: float, floor: float) -> list[int]:
    """Of scores (n,) the number of the highest below the threshold and of the lowest above it, where there are such;
    not of a score that equals it but for rounding.
    """
    above = np.asarray(scores, dtype=np.float64) - threshold
    near = TIE * (threshold - floor)
    sides = (np.where(above < -near, -above, np.inf), np.where(above > near, above, np.inf))
    return [int(side.argmin()) for side in sides if len(side) and np.isfinite(side.min())]


def near(samples: Sequence[Sample], preprocess: Preprocess, folder: Path) -> list[str]:
    """PNGs of these pictures as the network sees them: resized already, so that nothing moves their scores."""
    names = []
    for number, sample in enumerate(samples):
        names.append(f"{FOLDER}/near{number}_{sample.defect}.png")
        as_seen(_read(sample, preprocess), preprocess).save(folder / names[-1])
    return names


def as_seen(picture: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Resized, so that resizing it again changes no pixel; whole where there is a region of interest."""
    if preprocess.roi is not None:
        return picture
    if preprocess.resize == "pad":              # without the padding, which is made again
        rows, columns = np.nonzero(preprocess.inside(picture.size))
        box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        return preprocess.geometry(picture, preprocess.interpolation).crop(box)
    sides = preprocess.resized
    if preprocess.resize == "short_side":
        sides = (picture.width * sides[0] // min(picture.size), picture.height * sides[0] // min(picture.size))
    return picture.resize(sides, INTERPOLATIONS[preprocess.interpolation])


def _read(sample: Sample, preprocess: Preprocess) -> Image.Image:
    return read_rgb(sample.path, preprocess.levels)
