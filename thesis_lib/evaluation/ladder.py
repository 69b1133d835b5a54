"""What a study compares: a ladder of configurations from cheap to dear, for pictures of this shape.

A category and its preprocessing go in, detectors with their preprocessing come out. Those of one size share features.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import DataError, Preprocess, at_centres, in_pixels, read_rgb, rectangle, size_of
from thesis_lib.data.folders import Category, squeezing
from thesis_lib.evaluation import crossfit
from thesis_lib.evaluation.crossfit import COARSE
from thesis_lib.methods.base import Detector, PatchDetector
from thesis_lib.methods.efficientad import EfficientAD
from thesis_lib.methods.padim import PaDiM
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.methods.simplenet import SimpleNet
from thesis_lib.methods.spade import SPADE
from thesis_lib.methods.uninformed_students import UninformedStudents
from thesis_lib.networks import backbones

LEVELS_OF_FILES = 65536       # read whatever their depth: only their sizes count here
LEVELS = (1, 2)         # of PatchCore
SHARES = (0.5, 1, 1.5)  # of the size that was asked for
STEP = 32               # pixels: fits the grids of all levels
BANK, K = 1000, 50      # rows of PatchCore, pictures of SPADE, where there are so many
# Short trainings: the papers' take hours to days on a processor. (ordinary, quick)
EPOCHS, STEPS, DISTILLED = (5, 1), (1000, 100), (100, 20)
TITLES = {"patchcore": "PatchCore", "padim": "PaDiM", "spade": "SPADE", "simplenet": "SimpleNet",
          "efficientad": "EfficientAD", "uninformed_students": "Uninformed Students"}


@dataclass(frozen=True)
class Rung:
    """One configuration of a study."""

    name: str
    detector: Detector
    preprocess: Preprocess

    @property
    def title(self) -> str:
        """Of its method, as a person writes it."""
        return TITLES[self.detector.name]

    @property
    def size(self) -> str:
        """As it is asked for, such as 256x640."""
        return in_pixels(self.preprocess.shape)


def sizes_of(category: Category) -> list[tuple[int, int]]:
    """Width and height of every picture, all of which are read for it. DataError that names those that cannot be."""
    sizes, broken = [], []
    for sample in category.train + category.test:
        try:
            sizes.append(read_rgb(sample.path, LEVELS_OF_FILES).size)
        except DataError as error:
            broken.append(str(error))
    if broken:
        more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise DataError(f"{len(broken)} of {len(broken) + len(sizes)} pictures cannot be used: "
                        f"{'; '.join(broken[:5])}{more}")
    return sizes


def fitting(preprocess: Preprocess, sizes: Sequence[tuple[int, int]]) -> tuple[Preprocess, str]:
    """The preprocessing that keeps the aspect of pictures of these widths and heights where a square of it would change
    it by more than a third, and why; else the one given, and nothing. One that is no plain square is left alone.
    """
    if isinstance(preprocess.image_size, tuple) or preprocess.resize != "square":
        return preprocess, ""
    if isinstance(preprocess.roi, tuple):
        sizes = [(preprocess.roi[2], preprocess.roi[3])]
    warning = squeezing(sizes)
    if not warning:
        return preprocess, ""
    if "--resize pad" in warning:
        return replace(preprocess, resize="pad"), warning
    width, height = sorted(sizes, key=lambda size: size[0] / size[1])[len(sizes) // 2]
    return replace(preprocess, image_size=rectangle(width, height, preprocess.image_size)), warning


def ladder(category: Category, preprocess: Preprocess, *, backbone: str = "resnet18", weights: str = "imagenet",
           engine: str = "eager", tiles: tuple[int, int] | None = None, trained: bool = False, quick: bool = False,
           squeezed: Preprocess | None = None) -> list[Rung]:
    """PatchCore at three sizes and two levels, PaDiM and SPADE at the middle one; if asked for, the trained methods.

    squeezed: a square, at which PatchCore is tried beside the shape that keeps the aspect. trained: SimpleNet,
    EfficientAD (bundled weights whatever is given) and Uninformed Students, each after a short training. Not every one
    need be `usable`.
    """
    given: dict[str, Any] = {"backbone": backbone, "weights": weights, "engine": engine}
    left = len(category.train) - math.ceil(len(category.train) / min(COARSE, len(category.train)))
    rungs = []

    def patchcore(prepared: Preprocess, level: int) -> Rung:
        detector = PatchCore(**given, layers=(level,), tiles=tiles)
        # A fold's detector needs as many patches.
        bank = min(BANK, left * max(1, _fewest(detector, prepared, category)))
        return _rung(replace(detector, bank=bank), prepared)

    levels = [level for level in LEVELS if _has(backbone, level)]
    rungs += [patchcore(_scaled(preprocess, share), level) for share in SHARES for level in levels]
    if squeezed is not None:
        rungs.append(patchcore(squeezed, levels[-1]))
    joined = tuple(level for level in (1, 2, 3) if _has(backbone, level))
    channels = min(100, sum(backbones.shapes(backbone, joined)[0].values()))
    rungs.append(_rung(PaDiM(**given, layers=joined, channels=channels, tiles=tiles), preprocess))
    rungs.append(_rung(SPADE(**given, layers=joined, k=min(K, left), tiles=tiles), preprocess))
    if trained:
        rungs += _trained(preprocess, given, quick, tiles)
    return rungs


def usable(rungs: Sequence[Rung], category: Category) -> tuple[list[Rung], list[str]]:
    """The rungs whose parameters these pictures can serve, and a sentence for each of the others that says why not.
    ThesisError of the first where none is left.
    """
    left, reasons, errors = [], [], []
    for rung in rungs:
        try:
            crossfit.check(rung.detector, category.train, rung.preprocess,
                           crossfit.plan(rung.detector, category.train, most=COARSE))
            if isinstance(rung.detector, PatchDetector) and not _fewest(rung.detector, rung.preprocess, category):
                raise ThesisError("a picture has no patch whose middle lies inside; needs a larger picture or region")
        except DataError:
            raise
        except ThesisError as error:
            reasons.append(f"{rung.name} is left out: {error}.")
            errors.append(error)
        else:
            left.append(rung)
    if not left:
        raise errors[0]
    return left, reasons


def _trained(preprocess: Preprocess, given: dict[str, Any], quick: bool,
             tiles: tuple[int, int] | None) -> Iterator[Rung]:
    yield _rung(SimpleNet(**given, epochs=EPOCHS[quick], snapshots=1, tiles=tiles), preprocess)
    yield _rung(EfficientAD(steps=STEPS[quick], snapshots=1), preprocess)
    if given["backbone"] in backbones.RESNETS:
        yield _rung(UninformedStudents(backbone=given["backbone"], weights=given["weights"], layers=(3,),
                                       teacher_steps=DISTILLED[quick], epochs=1, snapshots=1, source="nominal"),
                    preprocess)


def _rung(detector: Detector, preprocess: Preprocess) -> Rung:
    levels = "+".join(map(str, detector.layers))
    told = f" level{'s' * ('+' in levels)} {levels}" if isinstance(detector, (PatchCore, PaDiM, SPADE)) else ""
    rung = Rung("", detector, preprocess)
    return replace(rung, name=f"{rung.title}{told} at {rung.size}" + (" padded" if preprocess.resize == "pad" else ""))


def _scaled(preprocess: Preprocess, share: float) -> Preprocess:
    """The same at another size, in steps of 32 pixels; the aspect of a rectangle is kept as well as these allow."""
    if share == 1:
        return preprocess

    def scaled(side: int) -> int:
        return max(STEP, STEP * round(side * share / STEP))

    width, height = preprocess.resized
    return replace(preprocess, image_size=scaled(width) if width == height else (scaled(width), scaled(height)))


def _fewest(detector: PatchDetector, preprocess: Preprocess, category: Category) -> int:
    """Patches that count of the training picture that has the fewest of them."""
    places, _ = detector.shape(preprocess.shape)
    if not preprocess.masked:
        return places
    features = backbones.maps(detector.backbone, detector.levels, preprocess.shape)
    grid = detector.embed_of()(features).grid
    for size, path in {size_of(sample.path): sample.path for sample in category.train}.items():
        try:
            inside = preprocess.inside(size).astype(np.float32)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        places = min(places, int((at_centres(inside[None], grid) > 0).sum()))
    return places


def _has(backbone: str, level: int) -> bool:
    """Whether a network has this level."""
    try:
        backbones.check(backbone, (level,))
    except ThesisError:
        return False
    return True
