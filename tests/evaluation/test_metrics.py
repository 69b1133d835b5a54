"""Metrics equal counting by hand: pairs for AUROC, every threshold and every region for PRO."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score, roc_curve

from thesis_lib.evaluation import metrics

NAN, INF = float("nan"), float("inf")


def count_pairs(labels, scores):
    """Share of (nominal, anomalous) pairs in the right order, ties half."""
    pairs = [(bad > good) + (bad == good) / 2
             for bad, one in zip(scores, labels, strict=True) if one
             for good, other in zip(scores, labels, strict=True) if not other]
    return sum(pairs) / len(pairs)


def graded(n, seed=0, shift=1.0, levels=None):
    """Half nominal, half anomalous; rounded to so many levels to make ties."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    scores = rng.standard_normal(n) + shift * labels
    return labels, np.round(scores * levels) / levels if levels else scores


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_image_auroc_counts_pairs(seed, levels):
    labels, scores = graded(31, seed, levels=levels)
    assert metrics.image_auroc(labels, scores) == pytest.approx(count_pairs(labels, scores))


@pytest.mark.parametrize(("scores", "expected"), [
    ([1, 1, 1, 1], 0.5), ([0, 0, 1, 1], 1), ([1, 1, 0, 0], 0), ([0, 1, 1, 2], 7 / 8),
    ([1e4, 1e4 + 1e-7, 1e4 + 2e-7, 1e4 + 3e-7], 1),         # float32 would tie them
    ([-1e308, 0, 1, 1e308], 1)])
def test_image_auroc_by_hand(scores, expected):
    assert metrics.image_auroc([0, 0, 1, 1], scores) == pytest.approx(expected)


def test_image_auroc_depends_on_the_order_only():
    labels, scores = graded(40)
    assert metrics.image_auroc(labels, scores) == metrics.image_auroc(labels, 1e4 * np.exp(scores))


@pytest.mark.parametrize("call", [metrics.image_auroc, metrics.auroc_interval])
@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
def test_scores_that_are_no_numbers(call, wrong):
    with pytest.raises(ValueError, match="1 of 4 scores are NaN or infinite, first: 2"):
        call([0, 1, 1, 0], np.array([1, 2, wrong, 4]))


def test_wrong_scores_are_named():
    names = [f"hole/{index:03d}.png" for index in range(8)]
    with pytest.raises(ValueError, match=r"6 of 8 .*first: hole/002.png, hole/003.png.*hole/006.png$"):
        metrics.image_auroc([0, 1] * 4, [1, 2] + [NAN, INF] * 3, names)


@pytest.mark.parametrize(("labels", "only"), [
    ([0, 0, 0], "all 3 here are nominal"), ([1, 1], "all 2 here are anomalous")])
@pytest.mark.parametrize("call", [metrics.image_auroc, metrics.auroc_interval])
def test_one_class_is_an_error(call, labels, only):
    with pytest.raises(ValueError, match=only):
        call(labels, np.arange(len(labels)))


@pytest.mark.parametrize(("labels", "scores"), [([0, 1], [1, 2, 3]), ([[0, 1]], [[1, 2]])])
def test_lists_of_different_length(labels, scores):
    with pytest.raises(ValueError, match="two lists of the same length"):
        metrics.image_auroc(labels, scores)


@pytest.mark.parametrize("seed", range(5))
def test_interval_contains_the_value_and_repeats(seed):
    labels, scores = graded(60, seed)
    low, high = metrics.auroc_interval(labels, scores)
    assert low < metrics.image_auroc(labels, scores) < high
    assert metrics.auroc_interval(labels, scores) == (low, high)
    assert metrics.auroc_interval(labels, scores, seed=1) != (low, high)


def test_interval_shrinks_with_pictures_and_level():
    widths = [np.diff(metrics.auroc_interval(*graded(n))).item() for n in (20, 80, 320)]
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2] > 0
    assert np.diff(metrics.auroc_interval(*graded(80), level=0.5)).item() < 0.6 * widths[1]


def test_interval_has_the_width_theory_says():
    """Hanley and McNeil 1982 for the standard error of an AUROC."""
    labels, scores = graded(400)
    area, n = metrics.image_auroc(labels, scores), 200
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt((area * (1 - area) + (n - 1) * (q1 + q2 - 2 * area**2)) / n**2)
    assert np.diff(metrics.auroc_interval(labels, scores)).item() == pytest.approx(2 * 1.96 * error, rel=0.15)


@pytest.mark.parametrize(("scores", "expected"), [([0, 0, 0, 1, 1], (1, 1)), ([1, 1, 1, 1, 1], (0.5, 0.5))])
def test_interval_without_spread_is_a_point(scores, expected):
    assert metrics.auroc_interval([0, 0, 0, 1, 1], scores) == expected


@pytest.mark.parametrize("labels", [[0, 1, 1, 1], [1, 0, 0, 0], [0, 1]])
def test_of_a_single_picture_there_is_a_value_and_no_interval(labels):
    """Drawn again it is always itself: an interval would only tell of the other class."""
    up, down = np.arange(len(labels)), np.arange(len(labels))[::-1]
    assert np.isnan(metrics.auroc_interval(labels, up)).all()
    assert np.isnan(metrics.auroc_interval(labels, [up, down])).all()
    found, *ends = metrics.auroc_difference(labels, up, down)
    assert found == (1 if labels[0] == 0 else -1) and np.isnan(ends).all() and len(ends) == 2


def test_interval_of_several_seeds_is_about_their_mean():
    labels, good = graded(60, 0, shift=3)
    _, poor = graded(60, 1, shift=0)
    rows = np.stack([good, poor])
    low, high = metrics.auroc_interval(labels, rows)
    assert low < np.mean([metrics.image_auroc(labels, row) for row in rows]) < high
    assert high < metrics.auroc_interval(labels, good)[0]
    assert metrics.auroc_interval(labels, np.stack([good, good])) == metrics.auroc_interval(labels, good)


def test_difference_is_that_of_the_two_areas_and_lies_in_its_interval():
    labels, good = graded(60, 0, shift=2)
    _, poor = graded(60, 1, shift=0.5)
    found, low, high = metrics.auroc_difference(labels, good, poor)
    assert found == pytest.approx(metrics.image_auroc(labels, good) - metrics.image_auroc(labels, poor))
    assert low < found < high
    turned = metrics.auroc_difference(labels, poor, good)
    assert turned == pytest.approx((-found, -high, -low), abs=1e-9)


def test_difference_is_paired():
    """A hair of noise moves both alike: the interval is far narrower than that of either, and none for equal scores."""
    labels, scores = graded(80)
    nudged = scores + 0.02 * np.random.default_rng(3).standard_normal(80)
    _, low, high = metrics.auroc_difference(labels, nudged, scores)
    assert 0 < high - low < 0.2 * np.diff(metrics.auroc_interval(labels, scores)).item()
    assert metrics.auroc_difference(labels, scores, scores) == pytest.approx((0, 0, 0))


def test_difference_of_several_seeds_is_that_of_the_means():
    labels, good = graded(60, 0, shift=2)
    _, poor = graded(60, 1, shift=0.5)
    found, *_ = metrics.auroc_difference(labels, np.stack([good, good, poor]), poor)
    each = [metrics.image_auroc(labels, row) for row in (good, poor)]
    assert found == pytest.approx(2 / 3 * (each[0] - each[1]))


def test_difference_of_nan_is_an_error():
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        metrics.auroc_difference([0, 1, 1, 0], np.arange(4.0), np.array([1, 2, NAN, 4]))


def regions(mask):
    """Connected pixels, corners count: list of sets of (row, column)."""
    left, found = {tuple(pixel) for pixel in np.argwhere(mask)}, []
    while left:
        region, front = set(), [left.pop()]
        while front:
            row, column = front.pop()
            region.add((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(region)
    return found


def overlap_by_sweep(masks, maps, limit):
    """Every threshold, every region; the polygon through the points, cut at the limit."""
    all_regions = [(number, region) for number, mask in enumerate(masks) for region in regions(mask)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        overlaps = [np.mean([found[number][pixel] for pixel in region]) for number, region in all_regions]
        points.append((found[~masks].mean(), np.mean(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 > x0 and x0 < limit:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def test_pixels_outside_have_no_part():
    """Whatever they hold, infinity too; the same as if they had been cut off."""
    masks, maps = masks_and_maps(0, 5, side=12)
    inside = np.zeros_like(masks)
    inside[:, 2:9, 1:11] = True
    masks &= inside
    disturbed = np.where(inside, maps, -np.inf)
    for metric in (metrics.pixel_auroc, metrics.pro):
        expected = metric(masks[:, 2:9, 1:11], maps[:, 2:9, 1:11])
        assert metric(masks, disturbed, inside) == expected != metric(masks, maps)
    disturbed[0, 4, 4] = np.nan
    with pytest.raises(ValueError, match="1 of 210 scores are NaN or infinite"):
        metrics.pixel_auroc(masks, disturbed, inside)


def masks_and_maps(seed, levels, n=3, side=12):
    """Two defects of different size in each picture but the last; the small one's touch at corners."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), dtype=bool)
    masks[:-1, 1:4, 1:6] = True
    masks[:-1, 8, 8] = masks[:-1, 9, 9] = True
    maps = rng.random(masks.shape) + 0.7 * masks
    return masks, np.round(maps * levels) / levels if levels else maps


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [None, 2, 10])
@pytest.mark.parametrize("seed", range(3))
def test_pro_equals_a_threshold_sweep(seed, levels, limit):
    masks, maps = masks_and_maps(seed, levels)
    expected = overlap_by_sweep(masks, maps, limit)
    assert metrics.pro(masks, maps, limit=limit) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("levels", [None, 30])
def test_pixel_metrics_equal_the_curves_of_scikit_learn(levels):
    """The oracle of the way without a curve; float32 maps as the detectors give them."""
    rng = np.random.default_rng(5)
    masks = np.zeros((6, 40, 40), dtype=bool)
    masks[1:, 3:9, 4:20] = masks[2:, 30, 30] = masks[4:, 20:23, 1:4] = True
    maps = rng.random(masks.shape) + 0.4 * masks
    maps = (np.round(maps * levels) if levels else maps).astype(np.float32)
    weights = np.ones(masks.shape)
    for mask, weight in zip(masks, weights, strict=True):
        for region in regions(mask):
            weight[tuple(zip(*region, strict=True))] = 1 / len(region)
    fpr, overlap, _ = roc_curve(masks.ravel(), maps.ravel(), sample_weight=weights.ravel())
    for limit in (0.05, 0.3, 1.0):
        cut = np.append(fpr[fpr < limit], limit)
        expected = auc(cut, np.append(overlap[fpr < limit], np.interp(limit, fpr, overlap))) / limit
        assert metrics.pro(masks, maps, limit=limit) == pytest.approx(expected, abs=1e-9)
    assert metrics.pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


def test_pixel_auroc_is_exact():
    """The order of the sums has no part in it: any rank-preserving change gives the same bits."""
    masks, maps = masks_and_maps(2, None)
    assert metrics.pixel_auroc(masks, maps) == metrics.pixel_auroc(masks[::-1], 3 * maps[::-1])


def test_pro_limit_defaults_to_30_percent():
    masks, maps = masks_and_maps(0, None)
    assert metrics.pro(masks, maps) == metrics.pro(masks, maps, limit=0.3)


def test_pro_weighs_regions_not_pixels():
    """Only the big region is found: half the regions, most of the pixels."""
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[0, :4, :8] = masks[0, 9, 9] = True
    maps = np.zeros(masks.shape)
    maps[0, :4, :8] = 1
    assert metrics.pro(masks, maps) == pytest.approx(0.5 + 0.5 * 0.3 / 2)     # then ties up to (1, 1)


def test_perfect_maps():
    masks, _ = masks_and_maps(0, None)
    assert metrics.pro(masks, masks.astype(float)) == metrics.pixel_auroc(masks, masks) == 1


def test_pixel_auroc_counts_pairs_of_pixels():
    masks, maps = masks_and_maps(0, 5, side=11)
    assert metrics.pixel_auroc(masks, maps) == pytest.approx(count_pairs(masks.ravel(), maps.ravel()))


@pytest.mark.parametrize("call", [metrics.pixel_auroc, metrics.pro])
def test_pixel_metrics_refuse_too(call):
    masks, maps = masks_and_maps(0, None)
    with pytest.raises(ValueError, match="all 432 here are nominal"):
        call(np.zeros_like(masks), maps)
    maps[0, 0, 0] = NAN
    with pytest.raises(ValueError, match="NaN or infinite"):
        call(masks, maps)
