"""Which statements of the thesis hold: scores of single pictures go in, intervals and verdicts come out.

Paired bootstrap: a resample has the same pictures for both sides, drawn within their label, while the banks of each
side are drawn for themselves, as these are other random draws. That is careful: what a bank thinks of a picture by
chance counts with both (Owen 2007), so more than LEVEL of the intervals cover the truth.
A statement about the mean of categories is judged on the mean of the sets. Their pictures are resampled, the sets are
not: a verdict says nothing of other sets.
Levels are corrected over all pairs of all statements, on each set and on all together (Holm 1979).
Letters: G good and B defective pictures, S banks, R resamples, H hypotheses.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thesis_lib.core import files
from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation.statements import Pair, Statement
from thesis_lib.evaluation.wins import Wins

LEVEL = 0.95
RESAMPLES = 20_000
TOGETHER = "together"           # in place of the name of a set: the mean of all
HOLDS, CONTRADICTED, OPEN = "holds", "contradicted", "open"
NOT_MEASURED = "not measured"   # in a record, of a statement that has no set
NOTHING = {"on": "", "points": None, "low": None, "high": None, "p": None, "says": "", "rows_one": "", "scores_one": "",
           "rows_two": "", "scores_two": ""}                            # of a record, before there is anything to tell


@dataclass(frozen=True)
class Scored:
    """Test pictures of one set as a configuration scores them: labels (n,) 0 or 1, scores (S, n) of each bank; `rows`:
    ids of the rows that they come from.
    """

    labels: np.ndarray
    scores: np.ndarray
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """One pair on one set or on all: AUROC of one minus that of two in points, its interval at the corrected level, and
    what that says of the statement.
    """

    pair: Pair
    on: str
    points: float
    low: float
    high: float
    p: float
    says: str


@dataclass(frozen=True)
class Verdict:
    """`verdict`: holds, contradicted or open, on these sets; `differences`: of every pair, on each set and together.

    sets: those that both sides of all pairs were measured on; without any it is open, and there are no differences.
    """

    statement: Statement
    verdict: str
    differences: tuple[Difference, ...]
    sets: tuple[str, ...]
    rows: tuple[str, ...]


def judge(statements: Sequence[Statement], scored: Mapping[tuple[str, str], Scored], *, resamples: int = RESAMPLES,
          seed: int = 0) -> list[Verdict]:
    """A verdict of each statement; `scored` by the id of a side (`statements.Side.id`) and the name of a set.

    direction and equality: judged on the sets together, and hold where every pair does. always: judged on each set, and
    falls by one pair on one set. ThesisError where there are too few resamples for so many hypotheses.
    """
    drawn = _Drawn(scored, resamples, seed)
    # Number of a statement, pair, set or TOGETHER, and the difference, resampled and measured.
    asked: list[tuple[int, Pair, str, np.ndarray, float]] = []
    used: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for number, statement in enumerate(statements):
        sets = _sets(statement, scored)
        used.append((sets, tuple(dict.fromkeys(
            row for pair in statement.pairs for side in (pair.one, pair.two) for name in sets
            for row in scored[side.id, name].rows))))
        for pair in statement.pairs:
            each = {name: drawn.difference(pair, name) for name in sets}
            for name, (resampled, points) in each.items():
                asked.append((number, pair, name, resampled, points))
            if each:
                asked.append((number, pair, TOGETHER, np.mean([one for one, _ in each.values()], axis=0),
                              float(np.mean([points for _, points in each.values()]))))
    needed = 2 * len(asked) / (1 - LEVEL)
    if resamples < needed:
        raise ThesisError(f"resamples={resamples}: {len(asked)} hypotheses need at least {math.ceil(needed)}")
    ps = [p_value(resampled, statements[number]) for number, _, _, resampled, _ in asked]
    found: list[list[Difference]] = [[] for _ in statements]
    for (number, pair, on, resampled, points), p, alpha in zip(asked, ps, holm(ps), strict=True):
        low, high = interval(resampled, alpha)
        found[number].append(Difference(pair, on, points, low, high, p, says(statements[number], low, high)))
    return [Verdict(statement, _verdict(statement, differences), tuple(differences), *facts)
            for statement, differences, facts in zip(statements, found, used, strict=True)]


def records(found: Iterable[Verdict], scored: Mapping[tuple[str, str], Scored]) -> list[dict[str, Any]]:
    """One for each pair on each set and together, flat, as a file holds them: numbers in points, p, the verdict of the
    whole statement, and of both sides the ids of the rows and the hash of their scores as float32.

    A statement that was not measured has one for each pair, without numbers.
    """
    flat: list[dict[str, Any]] = []
    for one in found:
        stated = one.statement
        told = {"statement": stated.id, "section": stated.section, "text": stated.text, "kind": stated.kind,
                "verdict": one.verdict if one.sets else NOT_MEASURED}
        for pair in stated.pairs:
            empty = told | {"pair": str(pair), "thesis": pair.points} | NOTHING
            numbers = [each for each in one.differences if each.pair == pair]
            for each in sorted(numbers, key=lambda each: each.on == TOGETHER):
                record = empty | {"on": each.on, "p": float(f"{each.p:.4g}"), "says": each.says}
                record |= {name: round(getattr(each, name), 4) for name in ("points", "low", "high")}
                for name, side in (("one", pair.one), ("two", pair.two)):
                    if each.on != TOGETHER:
                        of = scored[side.id, each.on]
                        record[f"rows_{name}"] = " ".join(of.rows)
                        record[f"scores_{name}"] = files.digest(np.asarray(of.scores, np.float32))[:12]
                flat.append(record)
            if not numbers:
                flat.append(empty)
    return flat


def says(statement: Statement, low: float, high: float) -> str:
    """What an interval in points says: of an equality whether it lies inside the margin or beyond it, else whether it
    lies above or below 0.
    """
    if statement.kind == "equality":
        inside, beyond = -statement.margin < low and high < statement.margin, min(-low, high) < -statement.margin
        return HOLDS if inside else CONTRADICTED if beyond else OPEN
    return HOLDS if low > 0 else CONTRADICTED if high < 0 else OPEN


def p_value(resampled: np.ndarray, statement: Statement) -> float:
    """The smallest alpha at which the interval of the resampled differences (R,) decides, `says` not open.

    Twice the share of resamples, one added, on the other side of the nearest bound that an interval can lie beyond.
    """
    margin = statement.margin
    if statement.kind == "equality":
        outside = max(np.sum(resampled <= -margin), np.sum(resampled >= margin))
        decisive = min(outside, np.sum(resampled <= margin), np.sum(resampled >= -margin))
    else:
        decisive = min(np.sum(resampled <= 0), np.sum(resampled >= 0))
    return min(1.0, 2 * (int(decisive) + 1) / (len(resampled) + 1))


def holm(ps: Sequence[float], level: float = LEVEL) -> list[float]:
    """For each of H p values the alpha of its interval: 1 - level over the number of hypotheses from its place on.

    In ascending order each is held against its alpha, until one is above it: that one and all that follow have the
    alpha at which the procedure stopped.

    >>> [round(alpha, 4) for alpha in holm([0.04, 0.01, 0.03])]     # 0.01 passes 0.05 / 3, then 0.03 fails 0.05 / 2
    [0.025, 0.0167, 0.025]
    """
    alphas, stopped = [0.0] * len(ps), None
    for place, index in enumerate(np.argsort(ps, kind="stable")):
        alpha = stopped or (1 - level) / (len(ps) - place)
        if ps[index] > alpha:
            stopped = alpha
        alphas[index] = alpha
    return alphas


def interval(resampled: np.ndarray, alpha: float) -> tuple[float, float]:
    """The order statistics between which all but alpha of the resamples (R,) lie, half of it on either side.

    It decides exactly where `p_value` is at most alpha.
    """
    ordered = np.sort(resampled)
    cut = max(int(alpha * (len(ordered) + 1) / 2 + 1e-9), 1) - 1
    return float(ordered[cut]), float(ordered[-1 - cut])


class _Drawn:
    """Resampled AUROCs of sides on sets: pictures are drawn once per set, banks for each side of each pair."""

    def __init__(self, scored: Mapping[tuple[str, str], Scored], resamples: int, seed: int) -> None:
        self.scored, self.resamples, self.seed = scored, resamples, seed
        self.pictures: dict[str, tuple[np.ndarray, np.ndarray]] = {}            # (R, G) and (R, B): how often drawn
        self.aurocs: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}  # (R, S) resampled, (S,) measured

    def difference(self, pair: Pair, name: str) -> tuple[np.ndarray, float]:
        """Points of AUROC, one minus two, on the set of this name: resampled (R,), and measured."""
        if not np.array_equal(self.scored[pair.one.id, name].labels, self.scored[pair.two.id, name].labels):
            raise ThesisError(f"{name}: the two sides of a pair were measured on different test pictures")
        (one, first), (two, second) = (self._banks(side.id, name, number)
                                       for number, side in enumerate((pair.one, pair.two), 1))
        return 100 * (one - two), 100 * (first - second)

    def _banks(self, side: str, name: str, number: int) -> tuple[np.ndarray, float]:
        """AUROC with drawn pictures and banks (R,), and the mean of the banks as measured; the draws of side one and of
        side two are other ones, whatever else is judged.
        """
        resampled, measured = self._auroc(side, name)
        rng = np.random.default_rng([self.seed, number, int(side, 16), *name.encode()])
        banks = rng.integers(0, len(measured), resampled.shape)
        return np.take_along_axis(resampled, banks, axis=1).mean(axis=1), float(measured.mean())

    def _auroc(self, side: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        if (side, name) not in self.aurocs:
            given = self.scored[side, name]
            bad = given.labels.astype(bool)
            drawn = self._pictures(name, given.labels)
            banks = [Wins.of(scores[~bad], scores[bad]) for scores in np.atleast_2d(given.scores)]
            self.aurocs[side, name] = (
                np.stack([np.einsum("rb,rb->r", drawn[0] @ bank.won, drawn[1]) for bank in banks], axis=1),
                np.array([bank.auroc for bank in banks]))
        return self.aurocs[side, name]

    def _pictures(self, name: str, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the good (R, G) and of the defective pictures (R, B) that were drawn, each summing to 1."""
        if name not in self.pictures:
            rng = np.random.default_rng([self.seed, 0, *name.encode()])
            good, bad = (int(np.sum(labels == label)) for label in (0, 1))
            self.pictures[name] = _shares(rng, self.resamples, good), _shares(rng, self.resamples, bad)
        return self.pictures[name]


def _shares(rng: np.random.Generator, resamples: int, n: int) -> np.ndarray:
    """(R, n): n draws from n, as shares."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n


def _sets(statement: Statement, scored: Mapping[tuple[str, str], Scored]) -> tuple[str, ...]:
    """Sets of the statement on which all of its sides were measured."""
    names = statement.sets or tuple(sorted({name for _, name in scored}))
    return tuple(name for name in names
                 if all((side.id, name) in scored for pair in statement.pairs for side in (pair.one, pair.two)))


def _verdict(statement: Statement, differences: Iterable[Difference]) -> str:
    """Of what the differences say that the kind of the statement is judged by."""
    said = {one.says for one in differences if (one.on == TOGETHER) != (statement.kind == "always")}
    return CONTRADICTED if CONTRADICTED in said else OPEN if OPEN in said or not said else HOLDS
