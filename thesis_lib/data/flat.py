"""Pictures as people have them: a folder of good parts and, where there are some, one of defective ones; no train/test.

Folders go in, samples come out: good ones to learn from, defective ones to test with. Without good test pictures the
nominal side of an AUROC comes from cross-fitting (`evaluation.folded`).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from thesis_lib.core.preprocess import SUFFIXES, DataError, Sample, hidden, pictures_in

# What people call the folders of good and of defective parts; compared without case, spaces and signs.
GOOD = {"good", "goods", "goodparts", "ok", "okay", "okparts", "gut", "gutteile", "io", "normal", "nominal", "pass",
        "passed", "fine", "clean", "intact", "healthy", "perfect", "flawless", "conform", "bon", "buono", "goed",
        "nodefect", "nodefects", "defectfree", "nondefective", "notdefective", "undefective", "anomalyfree",
        "nonanomalous", "notanomalous"}
BAD = {"nok", "notok", "nokparts", "bad", "badparts", "ng", "nogood", "nio", "defect", "defects", "defective",
       "defectiveparts", "anomaly", "anomalies", "anomalous", "abnormal", "fail", "failed", "faulty", "reject",
       "rejects", "rejected", "scrap", "schlecht", "schlechtteile", "ausschuss", "fehler"}
MVTEC = {"train", "test", "ground_truth"}       # folders of a category in that layout: none is a category itself


def plain(name: str) -> str:
    """A name as it is compared.

    >>> plain("Not OK"), plain("N.O.K.")
    ('notok', 'nok')
    """
    return re.sub(r"[\W_]+", "", name.casefold())


def folders_in(folder: Path) -> list[Path]:
    """The folders right in a folder, sorted, without hidden ones and those of systems; none where it is missing."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not hidden(entry.name))


def is_flat(folder: Path, good_name: str = "good") -> bool:
    """Whether a folder holds one of good parts, by its name, and no train."""
    return folder.name not in MVTEC and not (folder / "train").is_dir() and bool(_good(folder, good_name))


def scan_flat(folder: Path, good_name: str = "good") -> tuple[list[Sample], list[Sample]]:
    """Good and defective samples of a folder that `is_flat`. DataError where it is not clear which folder is which."""
    good, bad = _good(folder, good_name), [place for place in folders_in(folder) if plain(place.name) in BAD]
    if len(good) > 1:
        raise DataError(f"{folder}: {' and '.join(place.name for place in good)} both seem to hold the good parts; "
                        "put them into one of them, or give --good")
    for other in folders_in(folder):
        if other not in (*good, *bad) and other.name not in MVTEC and pictures_in(other, below=True):
            raise DataError(f"{other}: lies beside {good[0].name} and may hold good or defective parts; call it NOK, "
                            "put it into NOK as a kind of defect, or give --good and --bad")
    return good_samples(good[0]), [sample for place in bad for sample in bad_samples(place)]


def good_samples(folder: Path) -> list[Sample]:
    """All pictures in and below a folder, as good ones to learn from. DataError where there is none."""
    found = [Sample(file, "train", "good") for file in pictures_in(folder, below=True)]
    if not found:
        raise DataError(f"{folder}: no pictures ({', '.join(sorted(SUFFIXES))}); those of good parts belong there")
    return found


def bad_samples(folder: Path) -> list[Sample]:
    """All pictures in and below a folder, as defective ones to test with; a folder right in it is a kind of defect."""
    found = [Sample(file, "test", folder.name) for file in pictures_in(folder)]
    for kind in folders_in(folder):
        if plain(kind.name) in GOOD:
            raise DataError(f"{kind}: a folder of good parts inside that of the defective ones; move it out of it")
        found += [Sample(file, "test", kind.name) for file in pictures_in(kind, below=True)]
    return sorted(found, key=lambda sample: (sample.defect, sample.path))


def two_folders(good: str | Path, bad: str | Path | None) -> tuple[str, Sequence[Sample], Sequence[Sample]]:
    """A name, good and defective samples of two folders that lie anywhere. DataError that names the one that is wrong.

    The name is that of the folder of good parts, or, where this says no more than that, of the one above it.
    """
    places = [Path(place).expanduser().resolve() for place in (good, bad) if place is not None]
    for place in places:
        if not place.is_dir():
            raise DataError(f"{place}: no such folder")
    if len(places) == 2 and (places[0] == places[1] or places[0] in places[1].parents):
        raise DataError(f"{places[1]}: the defective parts lie inside the folder of good ones, {places[0]}; needs two "
                        "folders of which neither holds the other")
    if len(places) == 2 and places[1] in places[0].parents:
        raise DataError(f"{places[0]}: the good parts lie inside the folder of defective ones, {places[1]}; needs two "
                        "folders of which neither holds the other")
    defective = bad_samples(places[1]) if len(places) == 2 else []
    if len(places) == 2 and not defective:
        raise DataError(f"{places[1]}: no pictures ({', '.join(sorted(SUFFIXES))}); those of defective parts belong "
                        "there")
    name = places[0].parent.name if plain(places[0].name) in GOOD and places[0].parent.name else places[0].name
    return name, good_samples(places[0]), defective


def _good(folder: Path, good_name: str) -> list[Path]:
    """Folders of good parts right in a folder, with pictures: the one of that name, or those whose names say so."""
    filled = [place for place in folders_in(folder) if pictures_in(place, below=True)]
    named = [place for place in filled if place.name == good_name]
    return named or [place for place in filled if plain(place.name) in GOOD]
