"""The bank's rows: greedy is farthest-first index for index; sizes and memory are refused by number."""

import itertools

import numpy as np
import pytest
import torch

from thesis_lib.core import memory
from thesis_lib.core.memory import MemoryLimitError
from thesis_lib.patches import coreset


def gaussian(n=60, dim=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def farthest_first(features, rows, first):
    """The oracle, a loop: float64, every distance to every row written out, the lowest index among ties."""
    features, chosen = features.astype(np.float64), [first]
    nearest = np.full(len(features), np.inf)
    while len(chosen) < rows:
        nearest = np.minimum(nearest, ((features - features[chosen[-1]]) ** 2).sum(axis=1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


def clustered(n, dim, seed):
    """Clusters of very different size and width, as patches of pictures have them."""
    rng = np.random.default_rng(seed)
    which = (20 * rng.random(n) ** 3).astype(int)
    return (3 * gaussian(20, dim, seed + 1)[which] + 0.02 * (1 + which[:, None]) * gaussian(n, dim, seed)).astype("f4")


def with_outliers(n, dim, seed):
    features = gaussian(n, dim, seed)
    features[::max(n // 3, 1)] *= 100
    return features


DATA = {
    "gaussian": gaussian,
    "clustered": clustered,
    "copies": lambda n, dim, seed: np.tile(clustered(-(-n // 3), dim, seed), (3, 1))[:n],
    "few outliers": with_outliers,
    "low rank": lambda n, dim, seed: gaussian(n, 3, seed) @ gaussian(3, dim, seed + 1),
    "far from zero": lambda n, dim, seed: gaussian(n, dim, seed) + 1000,
    # Differences of small integers: nearly every distance ties with others, and all are exact.
    "integers": lambda n, dim, seed: np.random.default_rng(seed).integers(0, 3, (n, dim)).astype("f4"),
    "all at one distance": lambda n, dim, seed: np.eye(n, dtype="f4"),
}


@pytest.mark.parametrize(("competing", "tile"), [(4096, 1024), (11, 7), (1, 1)])
@pytest.mark.parametrize(("n", "dim", "rows"), [(400, 16, 150), (300, 1, 120), (120, 64, 119), (2, 3, 1), (5, 2, 4)])
@pytest.mark.parametrize("data", DATA)
def test_greedy_is_farthest_first(monkeypatch, data, n, dim, rows, competing, tile):
    monkeypatch.setattr(coreset, "COMPETING", competing)
    monkeypatch.setattr(coreset, "TILE", tile)
    features = DATA[data](n, dim, 1)
    chosen = coreset.select(features, rows, seed=3)
    assert chosen.tolist() == farthest_first(features, rows, chosen[0])


def test_greedy_is_farthest_first_among_many():
    """As many rows and picks as it takes for the constants of the library to matter."""
    features = clustered(30_000, 8, 0)
    chosen = coreset.select(features, 1500)
    assert chosen.tolist() == farthest_first(features, 1500, chosen[0])


@pytest.mark.parametrize("sink", [0.3, 0.999])
def test_where_the_floor_lies_changes_nothing(monkeypatch, sink):
    expected = coreset.select(clustered(700, 16, 0), 300)
    monkeypatch.setattr(coreset, "SINK", sink)
    assert (coreset.select(clustered(700, 16, 0), 300) == expected).all()


def test_few_rows_are_looked_at_pick_by_pick(monkeypatch):
    """What makes it fast: all others wait, and the product they wait for is far from all rows times all picks."""
    seen, genuine = [], coreset._squared
    monkeypatch.setattr(coreset, "_squared", lambda rows, others: seen.append(len(rows)) or genuine(rows, others))
    coreset.select(clustered(5000, 16, 0), 500)
    assert sum(seen) < 0.1 * 5000 * 500


def test_threads_change_nothing():
    features, chosen = clustered(5000, 16, 0), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        chosen.append(coreset.select(features, 500).tolist())
    assert chosen[0] == chosen[1] == chosen[2]


def test_greedy_after_a_projection_is_farthest_first_there(monkeypatch):
    monkeypatch.setattr(coreset, "BLOCK", 7)
    projected, genuine = [], coreset._project
    monkeypatch.setattr(coreset, "_project", lambda *how: projected.append(genuine(*how)) or projected[0])
    chosen = coreset.select(clustered(200, 32, 0), 90, projection=5)
    assert projected[0].shape == (200, 5)
    assert chosen.tolist() == farthest_first(projected[0], 90, chosen[0])


def test_ties_go_to_the_lowest_index():
    corners = np.array([[0, 0], [4, 0], [0, 4], [4, 4], [0, 0], [4, 4]], dtype=np.float32)
    first = {seed: coreset.select(corners, 1, seed=seed)[0] for seed in range(20)}
    seed = next(seed for seed, row in first.items() if row == 0)
    assert coreset.select(corners, 5, seed=seed).tolist() == [0, 3, 1, 2, 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_greedy_refuses_what_is_not_finite(bad):
    features = gaussian()
    features[7, 2] = bad
    with pytest.raises(ValueError, match="features: needs finite numbers"):
        coreset.select(features, 5)


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
    assert coreset.check_memory(1_000_000, 88, None) == pytest.approx(0.4)
    with pytest.raises(MemoryLimitError, match=r"1000000 .* dimension 88 need 0.40 GB.* 0.39 GB"):
        coreset.check_memory(1_000_000, 88, 0.39)


@pytest.mark.parametrize(("projection", "gigabytes"), [(10, 0.44), (87, 0.748), (88, 0.4), (None, 0.4)])
def test_memory_counts_the_projected_copy(projection, gigabytes):
    assert coreset.check_memory(1_000_000, 88, None, projection) == pytest.approx(gigabytes)


def test_memory_limit_defaults_to_three_quarters_of_the_machine():
    gigabytes = memory.usable_bytes() / 1e9
    coreset.check_memory(int(0.7e9 * gigabytes / 400), 88, None)
    with pytest.raises(MemoryLimitError):
        coreset.check_memory(int(0.8e9 * gigabytes / 400), 88, None)
