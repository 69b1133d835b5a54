"""Which line of a study to take: the cheapest that these pictures cannot tell from the best.

Lines go in, one of them comes out.
"""

import math
from collections.abc import Sequence

from thesis_lib.evaluation import wins
from thesis_lib.evaluation.lines import Line

BUNDLED = ("patchcore", "padim", "simplenet", "efficientad")     # what `device.export` can write


def recommend(lines: Sequence[Line], budget_ms: float | None,
              device: str) -> tuple[Line | None, Line | None, Line | None]:
    """The recommended line, the best of those that it is held against, and the best of all; None where there is none.

    Recommended is the cheapest within the budget whose paired interval to the best of all includes 0. Where none within
    the budget is as good, the best of these takes the place of the best of all. On a Pi only what has a bundle counts.
    """
    ranked = [line for line in lines if line.won]
    if not ranked:
        return None, None, None
    best = max(ranked, key=lambda line: line.auroc)             # of equal ones the cheapest, which stands first
    allowed = [line for line in ranked if (budget_ms is None or line.ms <= budget_ms)
               and (device == "here" or (line.pi4 and line.rung.detector.name in BUNDLED))]
    if not allowed:
        return None, None, best
    for reference in (best, max(allowed, key=lambda line: line.auroc)):
        for line in sorted(allowed, key=lambda line: line.ms):
            if line is reference or _as_good(line, reference):
                return line, reference, best
    raise AssertionError("the best of those allowed is as good as itself")


def _as_good(line: Line, reference: Line) -> bool:
    """Whether the paired interval of their difference includes 0; one that cannot be had tells nothing apart."""
    assert line.won and reference.won
    _, _, high = wins.difference(line.won, reference.won)
    return not high < 0


def usual(lines: Sequence[Line]) -> Line:
    """What is looked at where nothing can be ranked: PatchCore, of the sizes the middle one, of its levels the last."""
    cores = [line for line in lines if line.rung.detector.name == "patchcore"]
    level = max(line.rung.detector.layers for line in cores)
    deep = sorted((line for line in cores if line.rung.detector.layers == level),
                  key=lambda line: math.prod(line.rung.preprocess.shape))
    return deep[len(deep) // 2]
