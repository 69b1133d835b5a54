"""A folder as people have it: files of a camera in OK and NOK, made of the pictures of a category.

A `Category` goes in, a folder comes out, for pages that show what to do with one's own pictures. Nothing is drawn here:
`synthetic` does that.
"""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Sample, read_rgb
from thesis_lib.data.folders import Category

LEVELS = 4096                                   # of 12 bits, in files of 16
ENDINGS = ".tif", ".png", ".jpg"                # in turn; jpg has 8 bits, as someone saved it for a mail
WEIGHTS = 0.299, 0.587, 0.114                   # of red, green and blue in grey (ITU-R BT.601)


def write(root: str | Path, category: Category) -> Path:
    """Write `root/NAME/OK` of the training pictures, `root/NAME/NOK/KIND` of the defective ones; root is returned.

    Files are called IMG_0001.tif, IMG_0002.png, IMG_0003.jpg and so on: one row of numbers, good parts first. They are
    grey; tif and png have 12 bits. Good test pictures and masks are left out: people have none.
    Raises ThesisError where the folder is there already; nothing is overwritten.
    """
    folder = Path(root) / category.name
    if folder.exists():
        raise ThesisError(f"{folder}: is there already; give another folder")
    number = itertools.count(1)
    for sample in category.train + tuple(sample for sample in category.test if sample.label):
        place = folder / ("NOK" if sample.label else "OK") / (sample.defect if sample.label else "")
        place.mkdir(parents=True, exist_ok=True)
        _save(place, next(number), sample)
    return Path(root)


def _save(place: Path, number: int, sample: Sample) -> None:
    """One picture as the camera calls it."""
    file = place / f"IMG_{number:04d}{ENDINGS[(number - 1) % len(ENDINGS)]}"
    grey = np.asarray(read_rgb(sample.path), dtype=np.float64) @ WEIGHTS                        # (H, W), 0 to 255
    if file.suffix == ".jpg":
        Image.fromarray(grey.round().astype(np.uint8)).save(file, quality=92)
    else:
        Image.fromarray((grey * (LEVELS - 1) / 255).round().astype(np.uint16)).save(file)
