"""Demo data without a download: three drawn categories in the folder layout of MVTec AD.

    granulate  plastic pellets (stands in for the thesis' own pellet pictures, which are not public)
    weave      a twill fabric
    bracket    a brushed metal plate with holes; its defect `missing_hole` is a logical one

Guaranteed: the same arguments give the same pixels on every machine and NumPy version (`scenes` says how;
a test pins hashes). The bytes of the PNG files also depend on the zlib inside Pillow, so `dataset.json` holds a
hash of the pixels. Every picture is seeded by (seed, category, kind, index): neither order nor count changes it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.threads import usable_cpus
from thesis_lib.data.scenes import SCENES, Random, photograph

if TYPE_CHECKING:
    from hashlib import _Hash

FORMAT = 1                      # raise it whenever a pixel changes
CATEGORIES = tuple(SCENES)
DEFECTS = {category: kinds for category, (_, kinds) in SCENES.items()}
TEST_INDEX = 1_000_000          # nominal test pictures count from here, so they never repeat a training picture
VISIBLE = 10                    # grey levels of 255 by which a pixel must change to belong to the mask


def render(category: str, *, seed: int, index: int, size: int = 256,
           defect: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One picture and its mask: uint8 (size, size, 3) and bool (size, size), all False without a defect.

    The mask holds the pixels that differ visibly from the same scene drawn without the defect.
    Raises ThesisError for an unknown category or defect, a size below 32 or not a multiple of 2, a negative seed
    or index.
    """
    from scipy import ndimage

    _check(category=category, seed=seed, index=index, size=size)
    if defect is not None and defect not in DEFECTS[category]:
        raise ThesisError(f"defect {defect!r}: {category} has {', '.join(DEFECTS[category])}, or None")
    kind = 0 if defect is None else 1 + DEFECTS[category].index(defect)
    key = (seed, CATEGORIES.index(category), kind, index)
    picture = _draw(key, size, defect)
    if defect is None:
        return picture, np.zeros((size, size), dtype=bool)
    change = np.abs(picture.astype(np.int16) - _draw(key, size, None)).max(axis=2)
    changed = change >= min(VISIBLE, change.max())
    closed = ndimage.binary_closing(changed, iterations=max(1, size // 80))
    return picture, ndimage.binary_fill_holes(changed | closed)


def write(root: Path, *, categories: Iterable[str] = CATEGORIES, seed: int = 0, train: int = 60, good: int = 20,
          defective: int = 30, size: int = 256, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write `root/<category>/{train/good,test/good,test/<kind>,ground_truth/<kind>}/NNN.png` and dataset.json.

    train, good, defective: pictures per category; defective ones take turns through the kinds.
    progress(done, total) is called after each picture. Returns root, at once if it is there with the same
    arguments. The folder appears complete or not at all. Raises ThesisError for bad arguments, and when root
    holds anything else: nothing is ever overwritten.
    """
    root, categories = Path(root), (categories,) if isinstance(categories, str) else tuple(categories)
    if not categories or len(set(categories)) < len(categories):
        raise ThesisError(f"categories {categories}: one or more of {', '.join(CATEGORIES)}, each once")
    for category in categories:
        _check(category=category, seed=seed, size=size, train=train, good=good, defective=defective)
    asked = {"format": FORMAT, "categories": list(categories), "seed": int(seed), "train": int(train),
             "good": int(good), "defective": int(defective), "size": int(size)}
    if _present(root, asked):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        digest, done, total = hashlib.sha256(), 0, len(categories) * (train + good + defective)
        planned = [(category, *picture) for category in categories
                   for picture in _plan(category, train, good, defective)]
        # Drawn side by side, as NumPy lets other threads run; saved and counted in their order.
        with _drawing() as pool:
            drawn = pool.map(lambda one: render(one[0], seed=seed, index=one[3], size=size, defect=one[4]), planned)
            for (category, folder, number, _, defect), (picture, mask) in zip(planned, drawn, strict=True):
                _save(work / category / folder / f"{number:03d}.png", picture, digest)
                if defect:
                    name = work / category / "ground_truth" / defect / f"{number:03d}_mask.png"
                    _save(name, mask.astype(np.uint8) * 255, digest)
                done += 1
                if progress:
                    progress(done, total)
        (work / "dataset.json").write_text(json.dumps({**asked, "sha256": digest.hexdigest()}, indent=1) + "\n")
        work.chmod(0o755)                   # mkdtemp makes it private
        try:
            os.rename(work, root)           # replaces an empty folder only
        except OSError:
            if not _present(root, asked):   # else another process was faster, with the same pictures
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


@contextmanager
def _drawing() -> Iterator[ThreadPoolExecutor]:
    """A thread per processor; whoever stops does not wait for what is still to be drawn."""
    pool = ThreadPoolExecutor(usable_cpus())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(key: tuple[int, ...], size: int, defect: str | None) -> np.ndarray:
    """The scene of a key with or without its defect, drawn at least twice as large for smooth edges."""
    rand, scene = Random(*key), SCENES[CATEGORIES[key[1]]][0]
    surface = scene(rand, size * (2 if size >= 192 else 4), defect, Random(*key, 1))
    return photograph(rand, surface, size)


def _plan(category: str, train: int, good: int, defective: int) -> Iterator[tuple[str, int, int, str | None]]:
    """Yield (folder, file number, index, defect) of every picture of a category."""
    for number in range(train):
        yield "train/good", number, number, None
    for number in range(good):
        yield "test/good", number, TEST_INDEX + number, None
    kinds = DEFECTS[category]
    for number in range(defective):
        defect = kinds[number % len(kinds)]
        yield f"test/{defect}", number // len(kinds), number // len(kinds), defect


def _save(path: Path, pixels: np.ndarray, digest: "_Hash") -> None:
    """Write a PNG and count its pixels in the digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=6)
    digest.update(pixels.tobytes())


def _present(root: Path, asked: dict[str, Any]) -> bool:
    """Whether root holds what was asked for; False if it is missing or empty, ThesisError if it is something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        there = json.loads((root / "dataset.json").read_text())
        there.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError):
        raise ThesisError(f"{root} is no finished demo data set; choose another folder or delete it") from None
    if there != asked:
        differ = ", ".join(f"{k}={there.get(k)} (asked {v})" for k, v in asked.items() if there.get(k) != v)
        raise ThesisError(f"{root} holds another demo data set: {differ}; choose another folder or delete it")
    return True


def _check(*, category: str, size: int, **counts: int) -> None:
    """ThesisError that names the argument which is wrong; counts: those that must not be below 0."""
    if category not in CATEGORIES:
        raise ThesisError(f"category {category!r}: there are {', '.join(CATEGORIES)}")
    if size < 32 or size % 2:
        raise ThesisError(f"size {size}: an even number of pixels from 32 on")
    for name, value in counts.items():
        if value < 0:
            raise ThesisError(f"{name} {value}: 0 or more")
