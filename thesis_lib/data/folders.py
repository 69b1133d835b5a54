"""Pictures on disk in the layout of MVTec AD: root/category/{train/good, test/<defect>, ground_truth/<defect>}.

The name or path of a folder goes in, a `Category` of samples comes out. Masks are optional.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from thesis_lib.core import paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import SUFFIXES, DataError, Preprocess, Sample, read_rgb
from thesis_lib.data.pictures import evenly

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


def categories(root: str | Path) -> list[str]:
    """Names of the folders below root that hold train/good."""
    return sorted(folder.parent.parent.name for folder in resolve(root).glob("*/train/good"))


def some_categories(root: str | Path) -> list[str]:
    """`categories`; where there is none DataError says what the folder is and what it needs."""
    folder = resolve(root)
    if names := categories(folder):
        return names
    if _pictures(folder / "train" / "good"):
        raise DataError(f"{folder}: is a category itself; give the folder above it, {folder.parent}")
    loose = len(_pictures(folder))
    raise DataError(f"{folder}: holds no category" + (f", but {loose} pictures" if loose else "") +
                    "; good parts belong into part/train/good below it, pictures to look at into part/test/good and "
                    "part/test/defect (any names for part and defect)")


def scan(root: str | Path, category: str) -> Category:
    """List one category; no picture is opened. Raises DataError that names what is missing."""
    folder = resolve(root) / category
    if not folder.is_dir():
        raise DataError(f"{folder}: no such category; categories here: {', '.join(some_categories(root))}")
    train = [Sample(file, "train", "good") for file in _pictures(folder / "train" / "good")]
    if not train:
        raise DataError(f"{folder / 'train' / 'good'}: no pictures ({', '.join(sorted(SUFFIXES))}); "
                        "nominal training pictures belong there")
    test_folder = folder / "test"
    defects: list[str] = []
    if test_folder.is_dir():
        defects = sorted(entry.name for entry in test_folder.iterdir() if entry.is_dir())
    test = []
    for defect in defects:
        masks: dict[str, Path] = {}             # name of the picture, without its ending -> its mask
        if defect != "good":
            masks = {file.stem.removesuffix("_mask"): file for file in _pictures(folder / "ground_truth" / defect)}
        test += [Sample(file, "test", defect, masks.get(file.stem)) for file in _pictures(test_folder / defect)]
    return Category(category, tuple(train), tuple(test))


def verify(root: str | Path) -> pd.DataFrame:
    """Count what is on disk and set it beside Table 2.1 of the thesis; column `problems` is empty when all is well.

    Opens every picture and mask, so a truncated one is found here and not in the middle of a run.
    """
    expected = pd.read_csv(paths.reference() / "thesis_table_2_1.csv").set_index("category_en")
    on_disk = categories(root)
    # Any MVTec AD category makes it MVTec AD: then what is missing of the fifteen is listed, too.
    names = list(expected.index[:-1]) if set(on_disk) & set(expected.index) else []
    rows = []
    for name in names + [name for name in on_disk if name not in names]:
        row = {"category": name, "train": 0, "test_good": 0, "test_defective": 0, "masks": 0, "problems": "not on disk"}
        if name in on_disk:
            category = scan(root, name)
            row |= {"train": len(category.train), "test_good": int((category.labels == 0).sum()),
                    "test_defective": int(category.labels.sum()),
                    "masks": sum(sample.mask is not None for sample in category.test)}
            problems = _problems(category)
            if name in names:
                for count, column in (("train", "n_train"), ("test_good", "n_test_nominal"),
                                      ("test_defective", "n_test_anomalous")):
                    if row[count] != expected.loc[name, column]:
                        problems.append(f"{count} should be {int(expected.loc[name, column])}")
            row["problems"] = "; ".join(problems)
        rows.append(row)
    return pd.DataFrame(rows, columns=["category", "train", "test_good", "test_defective", "masks", "problems"])


def _problems(category: Category) -> list[str]:
    """What is wrong with the pictures and masks themselves, a line for each."""
    problems = []
    try:
        category.fingerprint  # noqa: B018  (raises on a copy)
        for sample in category.train + category.test:
            read_rgb(sample.path)
            Preprocess().mask(sample)
    except DataError as error:
        problems.append(str(error))
    unmasked = [sample for sample in category.test if sample.label and not sample.mask]
    if unmasked and len(unmasked) < category.labels.sum():
        problems.append(f"{len(unmasked)} anomalous pictures without a mask, first {unmasked[0].path}")
    return problems


def _pictures(folder: Path) -> list[Path]:
    """Files of pictures directly in the folder, sorted; none where it is missing."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir()
                  if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror})") from error
