"""What is promised of a threshold holds when it is drawn again and again; every rank equals counting with fractions."""

import re
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from scipy.stats import beta

from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import thresholds
from thesis_lib.evaluation.thresholds import Promise, Share

TEXTS = ("0.5", "0.2", "0.1", "0.07", "0.05", "0.03", "0.02", "0.01", "0.003", "0.001")


@pytest.mark.parametrize("text", TEXTS)
def test_rank_is_the_ceiling_counted_with_fractions(text):
    """In floats 0.07 of 100 is more than 7."""
    asked = Fraction(text)
    for n in range(1, 2000):
        k = ceil((n + 1) * (1 - asked))
        if k > n:
            with pytest.raises(ThesisError, match=f"1 in {n + 1}"):
                thresholds.rank(n, float(text))
        else:
            assert thresholds.rank(n, float(text)) == k
            assert Promise.of(np.arange(n), false_alarms=float(text)).expected <= asked + 1e-12


@pytest.mark.parametrize("n", [1, 2, 6, 59, 60, 98, 299, 320, 999])
def test_a_rate_that_cannot_be_given_is_refused_with_the_lowest_one_and_the_pictures_it_takes(n):
    with pytest.raises(ThesisError) as told:
        thresholds.rank(n, 0.9999 / (n + 1))
    assert "\n" not in str(told.value)
    lowest, pictures = re.search(r"needs ([\d.e-]+) or more, or the scores of at least (\d+)", str(told.value)).groups()
    assert thresholds.rank(n, float(lowest)) == n, "what is printed may be asked for"
    assert 1 / (n + 1) <= float(lowest) < 1.1 / (n + 1)
    assert int(pictures) == n + 1 and thresholds.rank(n + 1, 0.9999 / (n + 1)) == n + 1


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_what_is_no_rate_is_refused(rate):
    with pytest.raises(ThesisError, match=r"false_alarms=.*needs a share above 0 and below 1"):
        thresholds.rank(100, rate)


@pytest.mark.parametrize(("n", "rate"), [(60, 0.05), (60, 1 / 61), (200, 0.01), (300, 0.1)])
def test_expected_rate_interval_and_bound_hold_for_scores_of_any_distribution(n, rate):
    """Of 4000 draws of n scores; the rate of uniform ones is known: 1 - threshold. Skewed ones have the same ranks."""
    rng, rates, inside, below = np.random.default_rng(0), [], 0, 0
    for _ in range(4000):
        uniform = rng.uniform(size=n)
        promised = Promise.of(uniform ** 7, false_alarms=rate)      # any growing function of them
        true = 1 - promised.threshold ** (1 / 7)
        low, high = promised.interval
        rates.append(true)
        inside, below = inside + (low <= true <= high), below + (true <= promised.at_most)
    assert np.mean(rates) == pytest.approx(promised.expected, rel=0.05)
    assert 0.94 < inside / 4000 < 0.96 and 0.94 < below / 4000 < 0.96


def test_where_scores_tie_the_rate_is_at_most_what_is_promised():
    """Flagged is what is above: a tie with the threshold is not. At or above would break the promise."""
    rng, n, levels = np.random.default_rng(0), 100, 12
    above, at, below = [], [], 0
    for _ in range(2000):
        promised = Promise.of(rng.integers(0, levels, n), false_alarms=0.1)
        above.append((levels - 1 - promised.threshold) / levels)
        at.append((levels - promised.threshold) / levels)
        below += above[-1] <= promised.at_most
    assert np.mean(above) < promised.expected < np.mean(at)
    assert below / 2000 > 0.95


def test_quantiles_are_those_of_the_beta_distribution():
    promised = Promise.of(np.arange(300), false_alarms=0.01)
    assert (promised.rank, promised.threshold, promised.n) == (298, 297, 300)
    assert promised.expected == 3 / 301
    assert promised.interval == pytest.approx(beta.ppf([0.025, 0.975], 3, 298))
    assert promised.at_most == pytest.approx(beta.ppf(0.95, 3, 298))


@pytest.mark.parametrize("n", [1, 20, 60, 298, 299, 1000])
def test_what_can_be_shown_is_the_bound_of_the_highest_score(n):
    """Which is about 3/n, and `needed` is the first number of pictures that shows it."""
    highest = Promise.of(np.arange(n), false_alarms=1 / (n + 1))
    assert highest.rank == n and highest.at_most == pytest.approx(thresholds.lowest_shown(n))
    if n > 20:
        assert thresholds.lowest_shown(n) == pytest.approx(3 / n, rel=0.05)
    count = thresholds.needed(0.01)
    assert thresholds.lowest_shown(count) <= 0.01 < thresholds.lowest_shown(count - 1)


def test_the_lines_say_what_cannot_be_shown_and_only_then():
    few, many = (Promise.of(np.arange(n), false_alarms=0.02) for n in (60, 200))
    (line,) = [line for line in few.lines if "cannot be shown" in line]
    assert line == ("2.0 % cannot be shown with 95 % confidence by 60 pictures: even their highest score shows at most "
                    "4.9 %; it takes 149 pictures or more")
    assert many.lines == ["false alarms: 2.0 % of good parts expected, 95 % interval 0.5 % to 4.3 %; with 95 % "
                          "confidence at most 3.8 %"]
    assert str(many).splitlines() == ["threshold 196.0000, number 197 of 200 scores (given)", *many.lines]


def test_spread_is_the_interquartile_range():
    assert Promise.of([0, 1, 2, 3, 4, 5, 6, 7, 8], false_alarms=0.1).spread == 4
    assert Promise.of([3.0] * 20, false_alarms=0.1).spread == 0


@pytest.mark.parametrize("bad", [[1.0, np.nan] * 20, [1.0, np.inf] * 20])
def test_scores_that_are_no_numbers_are_refused(bad):
    for scores in ({"nominal": bad}, {"nominal": range(40), "good": bad}, {"nominal": range(40), "defective": bad}):
        with pytest.raises(ThesisError, match="NaN or infinity"):
            Promise.of(**scores)


# ---- recall

def test_a_share_has_the_interval_of_clopper_and_pearson():
    assert Share(20, 20).interval == pytest.approx((0.025 ** (1 / 20), 1))
    assert Share(0, 20).interval == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert Share(3, 20).interval == pytest.approx((beta.ppf(0.025, 3, 18), beta.ppf(0.975, 4, 17)))
    promised = Promise.of(np.arange(100), defective=[1000] * 20)
    assert promised.lines[-1] == "defective pictures: 20 of 20 found: at least 83 %, for defects like these"


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_recall_is_had_with_the_fewest_false_alarms(recall, seed):
    """Against trying every nominal score; some tie with defective ones, which are then not found."""
    rng = np.random.default_rng(seed)
    nominal, defective = rng.normal(0, 1, 80).round(1), rng.normal(1.5, 1, 17).round(1)
    promised = Promise.of(nominal, recall=recall, defective=defective)
    fine = [score for score in nominal if (defective > score).mean() >= recall - 1e-9]
    assert promised.threshold == max(fine)
    assert promised.rank == (nominal <= max(fine)).sum(), "ties count as below"
    assert promised.found == Share((defective > max(fine)).sum(), 17)
    assert (promised.rule, promised.wanted) == ("recall", recall)
    assert "were asked for" in promised.lines[-1]


def test_lower_end_of_a_recall_holds_though_the_same_defects_have_chosen_the_threshold():
    """2000 draws of 20 defects; of normal ones the true recall at any threshold is known."""
    from scipy.stats import norm
    rng, holds = np.random.default_rng(0), 0
    for _ in range(2000):
        promised = Promise.of(rng.normal(0, 1, 200), recall=0.9, defective=rng.normal(2, 1, 20))
        holds += promised.found.interval[0] <= norm.sf(promised.threshold - 2)
    assert holds / 2000 > 0.97


def test_a_recall_that_would_flag_every_part_is_refused_with_what_can_be_had():
    with pytest.raises(ThesisError, match=r"recall=1: needs a threshold below .* every part; at most 0.75 can be had"):
        Promise.of([1, 2, 3], recall=1.0, defective=[0, 4, 5, 6])
    assert Promise.of([1, 2, 3], recall=0.75, defective=[0, 4, 5, 6]).found == Share(3, 4)
    with pytest.raises(ThesisError, match=r"recall=0.9: needs defective test pictures, there is none"):
        Promise.of([1, 2, 3], recall=0.9)
    with pytest.raises(ThesisError, match=r"recall=1.5: needs a share above 0, at most 1"):
        Promise.of([1, 2, 3], recall=1.5, defective=[4])


# ---- good pictures that try it out

def test_good_pictures_that_differ_from_the_training_pictures_are_told():
    nominal = np.arange(300)
    usual, other = (Promise.of(nominal, false_alarms=0.05, good=[299.0] * count + [0.0] * (20 - count))
                    for count in (2, 5))
    assert usual.flagged == Share(2, 20) and usual.lines[-1] == "good test pictures: 2 of 20 flagged"
    assert other.lines[-1].startswith("good test pictures: 5 of 20 flagged: so many have a chance of 0.4 %, so they "
                                      "differ from the training pictures")


def test_the_chance_of_so_many_is_that_of_drawing_both_again():
    rng, promised, count = np.random.default_rng(0), Promise.of(np.arange(60), good=[100.0] * 3 + [0.0] * 17), 0
    for _ in range(20_000):
        scores = rng.uniform(size=80)
        count += (scores[60:] > np.sort(scores[:60])[promised.rank - 1]).sum() >= 3
    assert promised.chance == pytest.approx(count / 20_000, abs=0.01)
    assert Promise.of(np.arange(60)).chance == 1


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 %"), (1, "100 %"), (0.00012, "0.012 %"), (0.001, "0.1 %"), (0.0164, "1.6 %"), (0.123, "12 %"),
    (0.8316, "83 %"), (0.9966, "99.7 %")])
def test_a_share_is_written_as_one_reads_it(value, text):
    assert thresholds.percent(value) == text
