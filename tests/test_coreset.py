"""The bank's rows: greedy is farthest-first whatever the blocks; sizes and memory are refused by number."""

import itertools

import numpy as np
import psutil
import pytest

from thesis_lib import coreset
from thesis_lib.memory import MemoryLimitError


def gaussian(n=60, dim=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def farthest_first(features, rows, first):
    """The oracle: float64, every distance written out."""
    features, chosen = features.astype(np.float64), [first]
    nearest = np.full(len(features), np.inf)
    while len(chosen) < rows:
        nearest = np.minimum(nearest, np.linalg.norm(features - features[chosen[-1]], axis=1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


@pytest.mark.parametrize("block", [7, 65_536])
@pytest.mark.parametrize(("dim", "seed"), [(1, 0), (3, 1), (8, 2), (64, 3)])
def test_greedy_is_farthest_first(monkeypatch, block, dim, seed):
    monkeypatch.setattr(coreset, "BLOCK", block)
    features = gaussian(dim=dim, seed=seed)
    chosen = coreset.select(features, 25, seed=seed)
    assert chosen.tolist() == farthest_first(features, 25, chosen[0])


def test_first_row_comes_from_the_seed():
    firsts = [coreset.select(gaussian(), 1, seed=seed)[0] for seed in range(12)]
    assert len(set(firsts)) > 6
    assert all(coreset.select(gaussian(), 5, seed=seed)[0] == first for seed, first in enumerate(firsts))


def test_rows_are_distinct_also_among_copies():
    copies = np.repeat(gaussian(4, 3), 5, axis=0)
    chosen = coreset.select(copies, 15)
    assert len(set(chosen)) == 15
    assert len(np.unique(copies[chosen[:4]], axis=0)) == 4


@pytest.mark.parametrize("method", coreset.METHODS)
def test_all_rows_asked_gives_all_rows(method):
    assert sorted(coreset.select(gaussian(), 60, method=method)) == list(range(60))


@pytest.mark.parametrize("method", coreset.METHODS)
@pytest.mark.parametrize("projection", [None, 4])
def test_seed_decides(method, projection):
    how = {"method": method, "projection": projection}
    one, same, other = (coreset.select(gaussian(), 20, seed=seed, **how).tolist() for seed in (5, 5, 6))
    assert one == same != other
    assert len(set(one)) == 20


def test_radius_is_brute_force_and_never_grows(monkeypatch):
    monkeypatch.setattr(coreset, "BLOCK", 7)
    features = gaussian()
    order = coreset.select(features, 30)
    radii = [coreset.radius(features, features[order[:rows]]) for rows in range(1, 31)]
    distances = np.linalg.norm(features[:, None] - features[None, order[:9]], axis=2)
    assert radii[8] == pytest.approx(distances.min(axis=1).max(), rel=1e-5)
    assert all(later <= earlier for earlier, later in itertools.pairwise(radii))


def test_projection_still_reaches_every_cluster():
    """Twenty clusters, most patches in one: random rows miss clusters, farthest-first rows do not."""
    centres = 20 * gaussian(20, 64, seed=1)
    cluster = np.repeat(np.arange(20), [305] + [5] * 19)
    features = centres[cluster] + gaussian(400, 64)
    reached = {how: len(set(cluster[coreset.select(features, 20, method=how[0], projection=how[1])]))
               for how in (("greedy", None), ("greedy", 16), ("random", None))}
    assert reached["greedy", None] == reached["greedy", 16] == 20 > reached["random", None]


@pytest.mark.parametrize("projection", [8, 9])
def test_projection_to_no_fewer_dimensions_is_none(projection):
    assert (coreset.select(gaussian(), 20, projection=projection) == coreset.select(gaussian(), 20)).all()


def test_features_on_disk(tmp_path):
    features = gaussian()
    features.tofile(tmp_path / "features")
    mapped = np.memmap(tmp_path / "features", dtype=np.float32, mode="r+", shape=features.shape)
    assert (coreset.select(mapped, 20) == coreset.select(features, 20)).all()
    assert (np.asarray(mapped) == features).all()


@pytest.mark.parametrize(("bank", "n", "rows"), [
    (1000, 5000, 1000), ("1000", 5000, 1000), ("1%", 5000, 50), (" 0.1% ", 5000, 5), ("100%", 7, 7),
    (7, 7, 7), ("1%", 199, 1)])
def test_size(bank, n, rows):
    assert coreset.size(bank, n) == rows


@pytest.mark.parametrize(("bank", "numbers"), [
    (5001, " 5001 rows.* 1 to 5000"), (0, " 0 rows.* 1 to 5000"), (-3, " -3 rows.* 1 to 5000"),
    ("0.01%", " 0 rows.* 1 to 5000"), ("150%", " 7500 rows.* 1 to 5000"), ("many", "'many'.*1000 .*1%"),
    ("1.5", "'1.5'.*1000 .*1%"), ("inf%", "'inf%'.*1000 .*1%"), ("nan%", "'nan%'.*1000 .*1%")])
def test_size_refuses_with_both_numbers(bank, numbers):
    with pytest.raises(ValueError, match=numbers):
        coreset.size(bank, 5000)


@pytest.mark.parametrize("arguments", [{"rows": 61}, {"rows": 0}])
def test_select_refuses_more_rows_than_there_are(arguments):
    with pytest.raises(ValueError, match=f"{arguments['rows']} rows asked of 60"):
        coreset.select(gaussian(), **arguments)


def test_select_refuses_an_unknown_method():
    with pytest.raises(ValueError, match=r"coreset='best'.*greedy, random"):
        coreset.select(gaussian(), 5, method="best")


def test_memory_limit_names_all_sizes():
    assert coreset.check_memory(1_000_000, 99, None) == pytest.approx(0.8)
    with pytest.raises(MemoryLimitError, match=r"1000000 .* dimension 99 need 0.80 GB.* 0.79 GB"):
        coreset.check_memory(1_000_000, 99, 0.79)


def test_memory_limit_defaults_to_three_quarters_of_the_machine():
    gigabytes = psutil.virtual_memory().total / 1e9
    coreset.check_memory(int(0.7e9 * gigabytes / 800), 99, None)
    with pytest.raises(MemoryLimitError):
        coreset.check_memory(int(0.8e9 * gigabytes / 800), 99, None)
