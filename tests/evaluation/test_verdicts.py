"""Verdicts on drawn scores, whose true differences are known, and Holm's procedure by hand."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import metrics, verdicts
from thesis_lib.evaluation.statements import Pair, Side, Statement
from thesis_lib.evaluation.verdicts import Scored, judge

SIDES = [Side("patchcore", {"bank": rows}) for rows in range(10, 22)]
LABELS = np.repeat([0, 1], 40)


def drawn(rng, apart, picture, banks=5, noise=0.5):
    """Scores (banks, n): what all configurations see of a picture, the distance of the defects, noise of each bank."""
    return picture + apart * LABELS + noise * rng.standard_normal((banks, len(LABELS)))


def true_auroc(apart, noise=0.5):
    return norm.cdf(apart / math.sqrt(2 * (1 + noise**2)))


def statement(kind="direction", pairs=((0, 1),), **more):
    return Statement("s", "3.5", "text", kind, tuple(Pair(SIDES[a], SIDES[b]) for a, b in pairs), **more)


def scored(seed, *aparts, sets=("pill", "screw"), banks=5):
    rng, found = np.random.default_rng(seed), {}
    for name in sets:
        picture = rng.standard_normal(len(LABELS))
        for side, apart in zip(SIDES, aparts, strict=False):
            found[side.id, name] = Scored(LABELS, drawn(rng, apart, picture, banks), (f"{name}{apart}",))
    return found


@pytest.mark.parametrize("banks", [5, 1])
def test_intervals_cover_the_true_difference(banks):
    """95 % of them, but for chance in 300 draws. With several banks nearly all: what a bank thinks of a picture by
    chance is drawn with the picture and again with the bank (Owen 2007, The pigeonhole bootstrap).
    """
    pair, inside = Pair(SIDES[0], SIDES[1]), 0
    for seed in range(300):
        resampler = verdicts._Drawn(scored(seed, 1.2, 1.0, sets=("pill",), banks=banks), 400, seed)
        low, high = verdicts.interval(resampler.difference(pair, "pill")[0], 0.05)
        inside += low <= 100 * (true_auroc(1.2) - true_auroc(1.0)) <= high
    assert 0.92 <= inside / 300 <= (1 if banks > 1 else 0.98)


def test_a_known_order_holds_and_its_reverse_is_contradicted():
    measured = scored(0, 3.0, 0.5)
    there, back = judge([statement(), statement(pairs=((1, 0),))], measured, resamples=2000)
    assert (there.verdict, back.verdict) == ("holds", "contradicted")
    assert there.sets == ("pill", "screw") and there.rows == ("pill3.0", "screw3.0", "pill0.5", "screw0.5")
    assert [one.on for one in there.differences] == ["pill", "screw", "together"]
    one, two = (np.mean([metrics.image_auroc(LABELS, bank) for bank in measured[side.id, "pill"].scores])
                for side in SIDES[:2])
    pill, screw, both = there.differences
    assert pill.points == pytest.approx(100 * (one - two)) and pill.low <= pill.points <= pill.high
    assert both.points == pytest.approx((pill.points + screw.points) / 2)
    assert [one.points for one in back.differences] == pytest.approx([-one.points for one in there.differences])


def test_equal_sides_are_seldom_called_different():
    """Of 200 families of four statements, of which none is true, at most the level has one that is called."""
    pairs = [statement(pairs=(pair,)) for pair in ((0, 1), (0, 2), (1, 2), (2, 3))]
    called = sum(any(found.verdict != "open" or any(one.says != "open" for one in found.differences)
                     for found in judge(pairs, scored(seed, 1, 1, 1, 1, sets=("pill",)), resamples=500, seed=seed))
                 for seed in range(200))
    assert called / 200 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)


def test_an_equality_needs_an_interval_inside_its_margin():
    same, apart = scored(1, 3.0, 3.0), scored(1, 3.0, 0.5)
    wide, narrow = (statement("equality", margin=margin) for margin in (8.0, 0.01))
    assert [found.verdict for found in judge([wide, narrow], same, resamples=2000)] == ["holds", "open"]
    assert [found.verdict for found in judge([wide], apart, resamples=2000)] == ["contradicted"]


def test_always_falls_by_one_counterexample_on_one_set():
    better, worse = scored(0, 3.0, 0.5, sets=("pill",)), scored(0, 0.5, 3.0, sets=("screw",))
    always = statement("always")
    assert judge([always], better, resamples=2000)[0].verdict == "holds"
    assert judge([always], better | worse, resamples=2000)[0].verdict == "contradicted"
    assert judge([statement()], better | worse, resamples=2000)[0].verdict == "open"         # nearly 0 in the mean
    assert judge([always], better | scored(3, 1.0, 1.0, sets=("screw",)), resamples=2000)[0].verdict == "open"
    only = statement("always", sets=("pill",))
    assert judge([only], better | worse, resamples=2000)[0].verdict == "holds"


def test_a_statement_of_several_pairs_holds_where_all_do():
    measured = scored(0, 3.0, 0.5, 3.05)
    assert judge([statement(pairs=((0, 1), (2, 1)))], measured, resamples=2000)[0].verdict == "holds"
    assert judge([statement(pairs=((0, 1), (0, 2)))], measured, resamples=2000)[0].verdict == "open"
    assert judge([statement(pairs=((0, 1), (1, 2)))], measured, resamples=2000)[0].verdict == "contradicted"


def test_what_was_not_measured_is_open():
    found = judge([statement(pairs=((0, 5),))], scored(0, 3.0, 0.5))
    assert (found[0].verdict, found[0].differences, found[0].sets) == ("open", (), ())


def test_one_seed_one_answer():
    measured, asked = scored(0, 1.5, 1.0), [statement()]
    first, again, other = (judge(asked, measured, resamples=1000, seed=seed)[0] for seed in (0, 0, 1))
    assert first == again != other
    # Resamples of a set do not depend on what else is judged.
    more = judge([statement(pairs=((1, 0),)), statement()], measured, resamples=1000)[1]
    assert [one.p for one in more.differences] == [one.p for one in first.differences]


def test_holm_by_hand():
    """0.001 <= 0.05 / 4 and 0.012 <= 0.05 / 3 pass; 0.03 > 0.05 / 2 stops, and 0.031 does not pass although it is
    below 0.05 / 1.
    """
    assert verdicts.holm([0.03, 0.001, 0.031, 0.012]) == pytest.approx([0.025, 0.0125, 0.025, 0.05 / 3])
    assert verdicts.holm([0.9]) == pytest.approx([0.05]) and verdicts.holm([]) == []


@pytest.mark.parametrize("kind", ["direction", "equality"])
def test_an_interval_decides_exactly_where_p_is_at_most_alpha(kind):
    rng, asked = np.random.default_rng(0), statement(kind)
    for _ in range(300):
        resampled = rng.normal(rng.uniform(-3, 3), rng.uniform(0.2, 1.5), 999).round(1)
        p = verdicts.p_value(resampled, asked)
        for alpha in (p, 0.999 * p, 0.05, 0.002):
            decided = verdicts.says(asked, *verdicts.interval(resampled, alpha)) != "open"
            assert decided == (p <= alpha) or p == 1 or alpha < 0.002


def test_too_few_resamples_and_other_pictures_are_refused():
    with pytest.raises(ThesisError, match="resamples=100: 3 hypotheses need at least 120"):
        judge([statement()], scored(0, 1, 1), resamples=100)
    measured = scored(0, 1, 1)
    other = measured[SIDES[1].id, "pill"]
    measured[SIDES[1].id, "pill"] = Scored(other.labels[1:], other.scores[:, 1:])
    with pytest.raises(ThesisError, match="pill: the two sides"):
        judge([statement()], measured)
