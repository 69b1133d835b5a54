"""What a study says in words: the recommendation, how far it may be trusted, and the commands that come next.

A `Study` goes in, sentences come out; `report.study` puts them on a page, the command line prints them.
"""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from typing import Any

from thesis_lib.core.preprocess import Preprocess
from thesis_lib.evaluation.lines import Line
from thesis_lib.evaluation.recommendation import BUNDLED
from thesis_lib.evaluation.study import Study
from thesis_lib.evaluation.thresholds import lowest_shown

ADDED = ("weights", "backbone", "seed")         # parameters that are told first, or not by an option of their own


def milliseconds(ms: float) -> str:
    return "not predicted" if math.isnan(ms) else f"{ms:.{0 if ms >= 10 else 1}f} ms"


def spread(low: float, high: float) -> str:
    """Quartiles around a median, in milliseconds."""
    digits = 0 if low >= 10 else 1
    return f"{low:.{digits}f} to {high:.{digits}f}"


def auroc(value: float, low: float, high: float) -> str:
    """Shares as per cent, with the interval."""
    if math.isnan(low):
        return f"{100 * value:.1f} % (no interval: a class has a single picture)"
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def recommendation(study: Study) -> str:
    """Two sentences: what to take, and how sure that is; or why nothing is recommended."""
    if not study.ranked:
        return ("No configuration is recommended, as without defective pictures nothing says which one finds defects. "
                f"What follows is of the usual one, {study.looked_at.rung.name}: how often it would cry wolf, and what "
                "it takes for unusual.")
    where = "predicted on a Raspberry Pi 4B" if study.device == "pi4" else "on this machine"
    if study.chosen is None:
        fastest = next((line for line in study.lines if not math.isnan(line.ms)), study.lines[0])
        return (f"Nothing that was tried keeps the budget of {milliseconds(study.budget_ms or 0)} a picture: the "
                f"fastest, {fastest.rung.name}, takes {milliseconds(fastest.ms)} {where}. Allow more time, or try "
                "smaller pictures with --image-size.")
    return f"{_take(study, study.chosen, where)} {_sure(study, study.chosen)}"


def _take(study: Study, line: Line, where: str) -> str:
    """The first sentence."""
    assert study.reference is not None and study.best is not None
    budget = "" if study.budget_ms is None else f" within {milliseconds(study.budget_ms)}"
    said = (f"Take {line.rung.name}: image AUROC {auroc(line.auroc, line.low, line.high)}, {milliseconds(line.ms)} a "
            f"picture {where}")
    if line is study.best:
        return (f"{said}; of the {len(study.lines)} configurations tried it has the highest AUROC, and no cheaper "
                "one is as good.")
    difference, low, high = (100 * value for value in study.behind)
    if study.reference is study.best:
        interval = "" if math.isnan(low) else f" (paired interval {low:+.1f} to {high:+.1f})"
        return (f"{said}; it is the cheapest{budget} that these pictures cannot tell from the best, "
                f"{study.best.rung.name}, against which it has {difference:+.1f} points{interval}.")
    short = 100 * (study.best.auroc - line.auroc)
    return (f"{said}; it is the cheapest of the best{budget}, and {short:.1f} points short of {study.best.rung.name}, "
            f"which takes {milliseconds(study.best.ms)}.")


def _sure(study: Study, line: Line) -> str:
    """The second sentence."""
    good, defective = line.pictures
    tested = f"{good} good{' (held-out)' if study.category.cross_fitted else ''} and {defective} defective pictures"
    width = max(line.high - line.low, lowest_shown(min(line.pictures)))     # the first is 0 where nothing overlaps
    sure = ("little more than a guess" if not width <= 0.2 else "a first indication" if width > 0.08
            else "fairly sure")
    points = 100 * study.optimism
    flattered = "hardly" if points < 0.05 else f"by some {points:.1f} points"
    expected = "" if math.isnan(points) else (
        f"; choosing among {len(study.lines)} by the very pictures that judge them flatters the best of them "
        f"{flattered}")
    return f"By {tested} this is {sure}, for parts and light like these{expected}."


def optimistic(study: Study) -> str:
    """By how much the choice flatters the best one."""
    if math.isnan(study.optimism) or study.best is None:
        return "How much choosing among many flatters cannot be told: a class has a single picture."
    points, best = 100 * study.optimism, study.best
    return (f"The best of {len(study.lines)} configurations was chosen by the same pictures that it is judged by, and "
            f"that flatters it. Drawn again from them, the best one of each draw had {abs(points):.1f} points "
            f"{'less' if points >= 0 else 'more'} on the pictures that were not drawn. Of its "
            f"{auroc(best.auroc, best.low, best.high)} expect about "
            f"{100 * (best.auroc - max(study.optimism, 0)):.1f} % on other pictures of the same kind.")


def commands(study: Study, source: Sequence[str], weights: str) -> str:
    """Lines for a shell: what exports the configuration looked at, or, where it has no bundle, what evaluates it."""
    line = study.looked_at
    method, first = line.rung.detector.name, "export" if line.rung.detector.name in BUNDLED else "evaluate"
    prepared = line.rung.preprocess
    if isinstance(prepared.roi, str) and "--roi" in source:     # the mask by its file, not by its pixels
        prepared = dataclasses.replace(prepared, roi=None)
    options = [*source, "--weights", weights if method != "efficientad" else line.rung.detector.weights,
               *changed(line.rung.detector), *changed(prepared)]
    text = f"thesis {first} {method} " + " ".join(shlex.quote(option) for option in options)
    if first == "evaluate":
        return text
    return (f"{text} --false-alarms 5% --out bundle\nthesis measure bundle --threads 1,2,4 --out times.json\n"
            "thesis detect bundle picture.png")


def changed(record: Any) -> list[str]:
    """Options that say what of a detector or preprocessing is not the default."""
    options: list[str] = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        usual = field.default if not isinstance(record, Preprocess) else getattr(Preprocess(), field.name)
        if value == usual or field.name == "weights" or field.name in ("seed", "search", "levels"):
            continue
        pair = field.name in ("image_size", "tiles") and isinstance(value, tuple)
        told = ("x" if pair else ",").join(map(str, value)) if isinstance(value, tuple) else str(value)
        name = field.name.replace("_", "-")
        options += ([f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", told])
    return options
