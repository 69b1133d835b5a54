"""Pictures on disk in the layout of MVTec AD: root/category/{train/good, test/<defect>, ground_truth/<defect>}.

The name or path of a folder goes in, a `Category` of samples comes out. Masks are optional. A category may also be
flat, root/category/{OK, NOK}: see `data.flat`.
"""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thesis_lib.core import paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import (
    LEVELS,
    SUFFIXES,
    DataError,
    Preprocess,
    Sample,
    depth,
    hidden,
    in_pixels,
    maximum,
    pictures_in,
    read_rgb,
    rectangle,
    size_of,
)
from thesis_lib.data.flat import GOOD, folders_in, is_flat, plain, scan_flat, two_folders
from thesis_lib.data.pictures import evenly

if TYPE_CHECKING:       # only `verify` makes a table
    import pandas as pd

SQUEEZED = 4 / 3        # factor by which a resize may change the aspect of a picture without a word
log = logging.getLogger("thesis_lib")


@dataclass(frozen=True)
class Category:
    """The pictures of one category: `train` holds nominal ones alone, `test` both kinds."""

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]

    @property
    def labels(self) -> np.ndarray:
        """(n_test,) int: 0 nominal, 1 anomalous."""
        return np.array([sample.label for sample in self.test], dtype=int)

    @property
    def cross_fitted(self) -> bool:
        """True where there are defective but no good test pictures: then good ones that were learned from have to be
        scored by detectors that have not learned from them (`evaluation.folded`).
        """
        return bool(self.test) and bool(self.labels.all())

    @property
    def has_masks(self) -> bool:
        """True when every anomalous test picture has one; pixel metrics need all of them."""
        anomalous = [sample for sample in self.test if sample.label]
        return bool(anomalous) and all(sample.mask for sample in anomalous)

    def subset(self, train: int = 0, test: int = 0) -> "Category":
        """At most so many pictures, evenly spaced, of each label in proportion; 0 keeps all."""
        if train < 0 or test < 0:
            raise ThesisError(f"train={train}, test={test} pictures: each needs a number, or 0 for all")
        nominal = [sample for sample in self.test if sample.label == 0]
        anomalous = [sample for sample in self.test if sample.label == 1]
        chosen = self.test
        if test:
            n_nominal = round(test * len(nominal) / len(self.test)) if self.test else 0
            if test > 1 and nominal and anomalous:
                n_nominal = min(max(n_nominal, 1), test - 1)
            n_anomalous = test - n_nominal
            # The cuts are for 0, where `evenly` takes all.
            chosen = (*evenly(nominal, n_nominal)[:n_nominal], *evenly(anomalous, n_anomalous)[:n_anomalous])
        return replace(self, train=tuple(evenly(self.train, train)), test=chosen)

    @cached_property
    def fingerprint(self) -> str:
        """Hash over names and bytes of all pictures and masks: which data a result was measured on.

        Raises DataError when a test picture is a copy of a training picture: a score on it proves nothing.
        """
        digest = hashlib.sha256()
        trained: dict[bytes, Path] = {}         # hash of a training picture -> where it lies
        for sample in self.train + self.test:
            content = hashlib.sha256(_bytes(sample.path)).digest()
            if sample.split == "train":
                trained[content] = sample.path
            elif content in trained:
                raise DataError(f"{sample.path}: test picture is a copy of the training picture {trained[content]}; "
                                "remove it from one of the two folders")
            digest.update(f"{sample.split}/{sample.defect}/{sample.path.name}".encode() + content)
            if sample.mask:
                digest.update(_bytes(sample.mask))
        return digest.hexdigest()[:16]


def resolve(root: str | Path) -> Path:
    """Folder of categories: "demo" (generated on first use), a path, or the name of a folder under data/."""
    if str(root) == "demo":
        return demo()
    for folder in (Path(root).expanduser(), paths.data() / root):
        if folder.is_dir():
            return folder.resolve()
    raise DataError(f"{root}: no such folder, neither as a path nor under {paths.data()}; "
                    "'demo' generates pictures, data/README.md says where real ones come from")


def demo() -> Path:
    """The demo set, generated when it is not there yet."""
    from thesis_lib.data import synthetic
    if not paths.demo_data().exists():
        log.info("generating the demo pictures in %s, about a minute", paths.demo_data())
    return synthetic.write(paths.demo_data())


def categories(root: str | Path, good_name: str = "good") -> list[str]:
    """Names of the folders below root that hold train/good, or are flat; good_name is what `good` is called there."""
    folder = resolve(root)
    found = {place.parent.parent.name for place in folder.glob(f"*/train/{_pattern(good_name)}")}
    found |= {place.name for place in folders_in(folder) if is_flat(place, good_name)}
    return sorted(name for name in found if not hidden(name))


def some_categories(root: str | Path, good_name: str = "good") -> list[str]:
    """`categories`; where there is none DataError says what the folder is and what it needs."""
    folder = resolve(root)
    if names := categories(folder, good_name):
        return names
    if pictures_in(folder / "train" / good_name) or is_flat(folder, good_name):
        raise DataError(f"{folder}: is a category itself; give the folder above it, {folder.parent}")
    for part in (folder, *folders_in(folder)):
        _needs_good(part / "train", good_name)
    loose = len(pictures_in(folder))
    raise DataError(f"{folder}: holds no category" + (f", but {loose} pictures" if loose else "") +
                    f"; good parts belong into part/train/{good_name} below it, pictures to look at into "
                    f"part/test/{good_name} and part/test/defect (any names for part and defect)")


def scan(root: str | Path, category: str, good_name: str = "good") -> Category:
    """List one category; no picture is opened. Raises DataError that names what is missing.

    good_name: the name of the folders of good parts, whose samples have the defect "good" whatever it is.
    """
    folder = resolve(root) / category
    if not folder.is_dir():
        raise DataError(f"{folder}: no such category; categories here: {', '.join(some_categories(root, good_name))}")
    if is_flat(folder, good_name):
        good, bad = scan_flat(folder, good_name)
        return Category(category, tuple(good), tuple(bad))
    _needs_good(folder / "train", good_name)
    train = [Sample(file, "train", "good") for file in pictures_in(folder / "train" / good_name)]
    if not train:
        raise DataError(f"{folder / 'train' / good_name}: no pictures ({', '.join(sorted(SUFFIXES))}); "
                        "nominal training pictures belong there")
    _needs_good(folder / "test", good_name, alone=False)
    kinds = {"good" if place.name == good_name else place.name: place for place in folders_in(folder / "test")}
    test = []
    for defect, place in sorted(kinds.items()):
        masks: dict[str, Path] = {}             # name of the picture, without its ending -> its mask
        if defect != "good":
            masks = {file.stem.removesuffix("_mask"): file for file in pictures_in(folder / "ground_truth" / defect)}
        test += [Sample(file, "test", defect, masks.get(file.stem)) for file in pictures_in(place)]
    return Category(category, tuple(train), tuple(test))


def of_folders(good: str | Path, bad: str | Path | None = None) -> Category:
    """A category of a folder of good parts and, where there is one, a folder of defective ones; they may lie anywhere.

    All good pictures are there to be learned from; folders below that of the defective ones are kinds of defect.
    Raises DataError that names what is missing.
    """
    name, train, test = two_folders(good, bad)
    return Category(name, tuple(train), tuple(test))


def verify(root: str | Path, good_name: str = "good") -> "pd.DataFrame":
    """Count what is on disk and set it beside Table 2.1 of the thesis; column `problems` is empty when all is well.

    Opens every picture and mask, so a truncated one is found here and not in the middle of a run. bits and maximum:
    of a channel, over all pictures; levels: what `Preprocess` decides from the training pictures; ignored: pictures
    with hidden names or in folders of the system; notes: what is read otherwise than one may think.
    """
    import pandas as pd

    expected = pd.read_csv(paths.reference() / "thesis_table_2_1.csv").set_index("category_en")
    on_disk = categories(root, good_name)
    # Any MVTec AD category makes it MVTec AD: then what is missing of the fifteen is listed, too.
    names = list(expected.index[:-1]) if set(on_disk) & set(expected.index) else []
    rows = []
    for name in names + [name for name in on_disk if name not in names]:
        row = {"category": name, "train": 0, "test_good": 0, "test_defective": 0, "masks": 0, "bits": "", "maximum": "",
               "levels": "", "ignored": 0, "problems": "not on disk", "notes": ""}
        if name in on_disk:
            category = scan(root, name, good_name)
            row |= {"train": len(category.train), "test_good": int((category.labels == 0).sum()),
                    "test_defective": int(category.labels.sum()),
                    "masks": sum(sample.mask is not None for sample in category.test),
                    "ignored": _ignored(resolve(root) / name)}
            problems, facts = _examined(category)
            row |= facts
            if name in names:
                for count, column in (("train", "n_train"), ("test_good", "n_test_nominal"),
                                      ("test_defective", "n_test_anomalous")):
                    if row[count] != expected.loc[name, column]:
                        problems.append(f"{count} should be {int(expected.loc[name, column])}")
            row["problems"] = "; ".join(problems)
        rows.append(row)
    return pd.DataFrame(rows, columns=["category", "train", "test_good", "test_defective", "masks", "bits", "maximum",
                                       "levels", "ignored", "problems", "notes"])


def _examined(category: Category) -> tuple[list[str], dict[str, str]]:
    """What is wrong with the pictures and masks themselves, a line for each; and what they are, for a row."""
    problems, notes, pages, profiles, highest = [], [], 0, 0, 0
    bits: set[int] = set()
    sizes: list[tuple[int, int]] = []
    facts: dict[str, str] = {}
    try:
        category.fingerprint  # noqa: B018  (raises on a copy)
        preprocess = Preprocess().decided(category.train)
        facts["levels"] = str(preprocess.levels)
        for sample in category.train + category.test:
            read_rgb(sample.path, preprocess.levels)
            preprocess.mask(sample)
            sizes.append(size_of(sample.path))
            found = depth(sample.path)
            bits.add(found.bits)
            pages, profiles = pages + (found.pages > 1), profiles + found.profile
            highest = max(highest, maximum(sample.path))
    except DataError as error:
        problems.append(str(error))
    unmasked = [sample for sample in category.test if sample.label and not sample.mask]
    if unmasked and len(unmasked) < category.labels.sum():
        problems.append(f"{len(unmasked)} anomalous pictures without a mask, first {unmasked[0].path}")
    if highest and LEVELS[0] < int(facts["levels"]) < LEVELS[-1]:
        notes.append(f"values up to {highest} in files of {max(bits)} bits: read as {facts['levels']} levels")
    if pages:
        notes.append(f"files of several pages, of which the first is read: {pages}")
    if profiles:
        notes.append(f"pictures with a colour profile, which is not applied: {profiles}")
    if squeezed := squeezing(sizes):
        notes.append(squeezed)
    shown = ", ".join(map(str, sorted(bits)))
    return problems, facts | {"bits": shown, "maximum": str(highest or ""), "notes": "; ".join(notes)}


def squeezing(sizes: Sequence[tuple[int, int]]) -> str:
    """A warning where a square changes the aspect of pictures of these widths and heights by more than a third, with
    what keeps it; else nothing.

    >>> squeezing([(500, 1260)] * 3)
    'pictures of 500x1260: a square changes their aspect by a factor of 2.5; --image-size 256x640 keeps it'
    """
    ordered = sorted(sizes, key=lambda size: size[0] / size[1])
    factors = [max(width / height, height / width) for width, height in ordered]
    if not sizes or max(factors) <= SQUEEZED:
        return ""
    (width, height), (narrow, high), (wide, low) = ordered[len(ordered) // 2], ordered[0], ordered[-1]
    if (wide / low) / (narrow / high) > SQUEEZED:       # one rectangle would squeeze some of them as much
        return (f"pictures of several shapes, {narrow}x{high} to {wide}x{low}: a square changes their aspect by a "
                f"factor of up to {max(factors):.1f}; --resize pad keeps it")
    fitting = in_pixels(Preprocess(image_size=rectangle(width, height)).shape)
    return (f"pictures of {width}x{height}: a square changes their aspect by a factor of {max(factors):.1f}; "
            f"--image-size {fitting} keeps it")


def _needs_good(folder: Path, good_name: str, alone: bool = True) -> None:
    """DataError where the pictures of train or test lie in folders of which none is called good_name, and one seems to
    be it: by its name, or, where `alone` says that no other belongs there, as the only one.
    """
    inside = {place.name: len(pictures_in(place)) for place in folders_in(folder)}
    if inside.get(good_name):
        return
    filled = [name for name, count in inside.items() if count]
    likely = [name for name in filled if plain(name) in GOOD]
    likely = likely or (filled if alone and len(filled) == 1 else [])
    if likely:
        raise DataError(f"{folder / likely[0]}: seems to hold the good parts; call it {good_name}, or give "
                        f"--good-name {likely[0]}")
    if alone and (loose := len(pictures_in(folder))):
        raise DataError(f"{folder}: its {loose} pictures of good parts belong into {folder / good_name}")


def _ignored(folder: Path) -> int:
    """Pictures in and below a folder that `hidden` leaves out."""
    every = sum(Path(name).suffix.lower() in SUFFIXES for _, _, names in os.walk(folder, followlinks=True)
                for name in names)
    return every - len(pictures_in(folder, below=True))


def _pattern(name: str) -> str:
    """The name as a pattern that only fits itself."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror})") from error
