"""AUROCs of many configurations on the same pictures, against scikit-learn, plain loops and worked examples."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from thesis_lib.evaluation import metrics, wins
from thesis_lib.evaluation.wins import Wins


def drawn(seed=0, good=12, bad=9, apart=0.8):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, good).round(1), rng.normal(apart, 1, bad).round(1)      # rounded: some of them tie


def area(good, bad):
    return roc_auc_score([0] * len(good) + [1] * len(bad), [*good, *bad])


def test_one_fold_is_the_auroc_and_its_interval():
    good, bad = drawn()
    one = Wins.of(good, bad)
    assert one.auroc == pytest.approx(area(good, bad))
    expected = metrics.auroc_interval(np.r_[np.zeros(len(good)), np.ones(len(bad))], np.r_[good, bad])
    np.testing.assert_allclose(wins.interval(one), expected, atol=0.02)


def test_folds_are_never_put_together():
    """The mean of their AUROCs: the scores of the second fold are a hundred higher, which a pooled AUROC would see."""
    (good, bad), (other, _) = drawn(1), drawn(2)
    runs = [[(range(12), good, bad), (range(12, 24), other + 100, bad + 100)]]
    folded = Wins.folded(runs)
    assert folded.auroc == pytest.approx((area(good, bad) + area(other, bad)) / 2)
    assert folded.auroc != pytest.approx(area([*good, *(other + 100)], [*bad, *(bad + 100)]), abs=0.01)


def test_a_difference_is_paired():
    good, bad = drawn()
    one = Wins.of(good, bad)
    assert wins.difference(one, one) == (0, 0, 0)
    lifted = Wins.of(good, bad + 1)
    gap, low, high = wins.difference(lifted, one)
    assert gap == pytest.approx(lifted.auroc - one.auroc) and 0 <= low <= gap <= high


def test_optimism_values_the_chosen_on_pictures_left_out():
    """Against a plain loop over the same draws."""
    configurations = [Wins.of(*drawn(seed)) for seed in range(6)]
    lost = []
    for goods, bads in wins._drawn(wins._key(configurations[0]), 0):
        for good, bad in zip(goods, bads, strict=True):
            with np.errstate(invalid="ignore"):
                inside = [np.average(one.won, axis=0, weights=good) @ bad / bad.sum() for one in configurations]
                rest = configurations[int(np.argmax(inside))].won[good == 0][:, bad == 0]
            if rest.size:
                lost.append(max(inside) - rest.mean())
    assert wins.optimism(configurations) == pytest.approx(np.mean(lost), abs=2e-3)     # ties
    assert wins.optimism(configurations) > wins.optimism(configurations[:1])    # choosing among more flatters more


def test_one_picture_of_a_class_has_no_interval():
    single = Wins.of([0.1], [0.2, 0.3])
    assert all(map(math.isnan, wins.interval(single))) and math.isnan(wins.optimism([single]))
