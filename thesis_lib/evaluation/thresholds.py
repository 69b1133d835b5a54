"""Where to put the threshold, and what can be promised of it: false alarms from nominal scores, recall from defects.

Scores of n nominal pictures go in that no detector has learned from, as `crossfit` makes them; a `Promise` comes out. A
picture is flagged when its score is above the threshold, as on a device. The threshold is one of the scores, the k-th
smallest: then nothing has to be assumed of their distribution (Wilks 1941). Of n + 1 scores in any order the next one
is above the k-th smallest of the others with chance (n+1-k) / (n+1), and the share of all further pictures above it,
the false-alarm rate, is distributed as Beta(n+1-k, k). Where scores tie, fewer are above: the rate is at most that.
Letters: n nominal scores, k rank of the threshold among them, m scores of defective pictures.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from thesis_lib.core.errors import ThesisError

CONFIDENCE = 0.95
RARE = 0.01             # chance below which what is seen is told to be no chance
SLACK = 1e-9            # (n+1) a of a rate such as 0.07 is no whole number only because of rounding


@dataclass(frozen=True)
class Share:
    """`count` of `of` pictures were flagged, and the interval of the share of all such pictures (Clopper-Pearson).

    It holds, too, at a threshold that was chosen by these very pictures: of m sorted scores of which j are not above
    it, its upper end is a quantile of what lies above the j-th, its lower end of what lies above the next one.

    >>> low, _ = Share(20, 20).interval
    >>> f"20 of 20 found: at least {100 * low:.0f} %"
    '20 of 20 found: at least 83 %'
    """

    count: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the two-sided 95 % interval, as shares."""
        from scipy.stats import binomtest  # half a second, which no other command should wait for

        found = binomtest(self.count, self.of).proportion_ci(CONFIDENCE, method="exact")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class Promise:
    """A threshold, and what is known of it. `expected`, `interval` and `at_most` are false-alarm rates, as shares.

    They hold for good parts that come from where the n pictures came from: other light is another matter.

    >>> promised = Promise.of(np.arange(300), false_alarms=0.01)
    >>> promised.rank, promised.threshold, f"{promised.expected:.4f}", f"{promised.at_most:.4f}"
    (298, 297.0, '0.0100', '0.0208')
    """

    threshold: float            # a picture is flagged when its score is above it
    rank: int                   # k
    n: int
    spread: float               # interquartile range of the n scores; 0 where most are the same
    rule: str                   # what was asked for: false_alarms or recall
    wanted: float               # as a share
    found: Share | None = None          # of the defective pictures, where there are some
    flagged: Share | None = None        # of good pictures that had no part in it, where there are some
    made: str = "given"                 # how the n scores came about, in words

    @classmethod
    def of(cls, nominal: ArrayLike, *, false_alarms: float = 0.05, recall: float | None = None,
           defective: ArrayLike = (), good: ArrayLike = (), made: str = "given") -> "Promise":
        """The threshold for a wanted rate of false alarms, or for a wanted recall in its place.

        nominal (n,), defective (m,): scores; good: those of good pictures that only try the threshold out. For a recall
        it is the highest nominal score above which that share of the defective ones lies: any higher threshold that
        finds them would spare none of these n pictures.
        Raises ThesisError for a rate below 1/(n+1), and for a recall that would flag every part.
        """
        scores, defects, others = (np.sort(np.asarray(values, dtype=np.float64))
                                   for values in (nominal, defective, good))
        if not all(np.isfinite(values).all() for values in (scores, defects, others)):
            raise ThesisError("scores: needs finite numbers, there is NaN or infinity among them")
        k = rank(len(scores), false_alarms) if recall is None else _rank_for(recall, scores, defects)
        threshold = float(scores[k - 1])
        low, high = np.quantile(scores, [0.25, 0.75])
        found, flagged = (Share(int((values > threshold).sum()), len(values)) if len(values) else None
                          for values in (defects, others))
        rule, wanted = ("false_alarms", false_alarms) if recall is None else ("recall", recall)
        return cls(threshold, k, len(scores), float(high - low), rule, wanted, found, flagged, made)

    @property
    def expected(self) -> float:
        """(n+1-k) / (n+1): the chance that the next good part is flagged."""
        return (self.n + 1 - self.rank) / (self.n + 1)

    @property
    def interval(self) -> tuple[float, float]:
        """In which the rate lies with 95 % confidence: 2.5 % and 97.5 % quantile of Beta(n+1-k, k)."""
        low, high = self._quantiles((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
        return low, high

    @property
    def at_most(self) -> float:
        """What the rate does not exceed with 95 % confidence, one-sided: 95 % quantile of Beta(n+1-k, k)."""
        (highest,) = self._quantiles(CONFIDENCE)
        return highest

    @property
    def chance(self) -> float:
        """Of so many `flagged` pictures or more, if they come from where the n pictures come from: beta-binomial."""
        from scipy.stats import betabinom

        if self.flagged is None:
            return 1.0
        return float(betabinom.sf(self.flagged.count - 1, self.flagged.of, self.n + 1 - self.rank, self.rank))

    @property
    def lines(self) -> list[str]:
        """What a person should read of it."""
        low, high = self.interval
        said = [f"false alarms: {percent(self.expected)} of good parts expected, 95 % interval {percent(low)} to "
                f"{percent(high)}; with 95 % confidence at most {percent(self.at_most)}"]
        if self.rule == "false_alarms" and self.wanted < lowest_shown(self.n):
            said.append(f"{percent(self.wanted)} cannot be shown with 95 % confidence by {self.n} pictures: even their "
                        f"highest score shows at most {percent(lowest_shown(self.n))}; it takes "
                        f"{needed(self.wanted)} pictures or more")
        if self.flagged:
            rare = (f": so many have a chance of {percent(self.chance)}, so they differ from the training pictures, in "
                    "light for example, and the promise does not hold for them")
            said.append(f"good test pictures: {self.flagged.count} of {self.flagged.of} flagged"
                        + (rare if self.chance < RARE else ""))
        if self.found:
            asked = f", {percent(self.wanted)} were asked for" if self.rule == "recall" else ""
            said.append(f"defective pictures: {self.found.count} of {self.found.of} found{asked}: at least "
                        f"{percent(self.found.interval[0])}, for defects like these")
        return said

    def __str__(self) -> str:
        return "\n".join([f"threshold {self.threshold:.4f}, number {self.rank} of {self.n} scores ({self.made})",
                          *self.lines])

    def _quantiles(self, *shares: float) -> list[float]:
        from scipy.stats import beta

        return beta.ppf(shares, self.n + 1 - self.rank, self.rank).tolist()


def rank(n: int, false_alarms: float) -> int:
    """k = ceil((n+1) (1-a)): of n scores the k-th smallest is the threshold. ThesisError where a is below 1/(n+1).

    >>> rank(99, 0.01), rank(60, 0.05)
    (99, 58)
    """
    if not 0 < false_alarms < 1:
        raise ThesisError(f"false_alarms={false_alarms:g}: needs a share above 0 and below 1, such as 0.01")
    k = n + 1 - math.floor((n + 1) * false_alarms + SLACK)
    if k > n:
        raise ThesisError(f"false_alarms={false_alarms:g}: below what {n} pictures can give, 1 in {n + 1}; needs "
                          f"{_rounded_up(1 / (n + 1)):g} or more, or the scores of at least "
                          f"{math.ceil(1 / false_alarms - SLACK) - 1} pictures")
    return k


def lowest_shown(n: int) -> float:
    """The lowest rate that n scores can show with 95 % confidence, the highest as the threshold: about 3/n."""
    return 1 - (1 - CONFIDENCE) ** (1 / n)


def needed(false_alarms: float) -> int:
    """How many scores it takes to show this rate with 95 % confidence.

    >>> needed(0.01), needed(0.05)
    (299, 59)
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-false_alarms))


def percent(share: float) -> str:
    """A share as a person reads it: whole percents, with one decimal near the ends and two digits below 0.1 %."""
    if 0 < share < 0.001:
        return f"{100 * share:.2g} %"
    return f"{100 * share:.{int(not 0.1 <= share <= 0.99 and 0 < share < 1)}f} %"


def check_recall(recall: float, defective: int) -> None:
    """ThesisError for a recall that is none, or that there are no defective pictures to measure by."""
    if not 0 < recall <= 1:
        raise ThesisError(f"recall={recall:g}: needs a share above 0, at most 1, such as 0.95")
    if not defective:
        raise ThesisError(f"recall={recall:g}: needs defective test pictures, there is none")


def _rank_for(recall: float, scores: np.ndarray, defects: np.ndarray) -> int:
    """The largest k with so large a share of the defects (m,) above scores[k - 1]; both are sorted."""
    check_recall(recall, len(defects))
    found = math.ceil(len(defects) * recall - SLACK)
    # Below the lowest of those that have to be found.
    k = int(np.searchsorted(scores, defects[-found], "left"))
    if not k:
        spared = int((defects > scores[0]).sum()) / len(defects)
        raise ThesisError(f"recall={recall:g}: needs a threshold below the score of every good picture, which would "
                          f"flag every part; at most {spared:.3g} can be had")
    return k


def _rounded_up(share: float) -> float:
    """To two digits, so that it may be asked for as it is printed."""
    digits = 1 - math.floor(math.log10(share))
    return math.ceil(share * 10 ** digits - SLACK) / 10 ** digits
