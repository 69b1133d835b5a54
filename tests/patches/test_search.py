"""Every engine equals brute force, ties allowed, and leaves the thread settings as they were."""

import faiss
import numpy as np
import pytest
import torch

from thesis_lib.patches import search


def brute_force(bank, vectors, k):
    """Distances (Q, k) in float64, ascending, and all distances (Q, M)."""
    every = np.linalg.norm(vectors.double().numpy()[:, None] - bank.double().numpy()[None], axis=2)
    return np.sort(every, axis=1)[:, :k], every


def assert_same_neighbours(distances, indices, bank, vectors, tolerance=1e-3):
    """Distances agree rank by rank; each row named is as far as its rank says, and named once."""
    expected, every = brute_force(bank, vectors, distances.shape[1])
    np.testing.assert_allclose(distances, expected, atol=tolerance)
    np.testing.assert_allclose(np.take_along_axis(every, indices.numpy(), axis=1), expected, atol=tolerance)
    assert all(len(set(row)) == len(row) for row in indices.tolist())


def data(queries=23, rows=600, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator), torch.randn(queries, dim, generator=generator)


@pytest.fixture(params=search.ENGINES)
def engine(request):
    return search.ENGINES[request.param]


@pytest.mark.parametrize("k", [1, 2, 9, 300, 600])
@pytest.mark.parametrize("dim", [1, 6, 70])
def test_equals_brute_force(engine, k, dim):
    bank, vectors = data(dim=dim)
    distances, indices = engine().fit(bank).query(vectors, k)
    assert distances.shape == indices.shape == (23, k)
    assert (distances.dtype, indices.dtype) == (torch.float32, torch.int64)
    assert_same_neighbours(distances, indices, bank, vectors)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(("block", "fewest", "rows"), [(4200, 1, 7), (1, 3, 3), (1, 1, 1), (2**21, 64, 23)])
def test_blocks_of_any_size_give_the_same(monkeypatch, k, block, fewest, rows):
    """23 queries of a bank of 600: a last block of two, the fewest, single queries, one block."""
    monkeypatch.setattr(search, "BLOCK", block)
    monkeypatch.setattr(search, "FEWEST", fewest)
    sizes, genuine = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args, **kw: sizes.append(len(args[1])) or genuine(*args, **kw))
    bank, vectors = data()
    assert_same_neighbours(*search.Torch().fit(bank).query(vectors, k), bank, vectors)
    assert max(sizes) == rows and sum(sizes) == 23


@pytest.mark.parametrize("many", [138, 139])
@pytest.mark.parametrize("k", [1, 4])
def test_auto_takes_faiss_for_many_queries(monkeypatch, k, many):
    monkeypatch.setattr(search, "MANY", many)
    asked, genuine = [], search.faiss.knn
    monkeypatch.setattr(search.faiss, "knn", lambda *given: asked.append(len(given[0])) or genuine(*given))
    bank, vectors = data()
    assert_same_neighbours(*search.Auto().fit(bank).query(vectors, k), bank, vectors)
    assert asked == [23] * (many == 138), "23 queries of 6 numbers"


@pytest.mark.parametrize(("k", "tolerance"), [(1, 1e-5), (3, 1e-2)])      # of nearly equal ones another may be third
def test_auto_is_exact_where_distances_cancel(k, tolerance):
    """Queries beside bank rows far from the origin: FAISS alone has lost all digits."""
    bank, noise = data(queries=2000, rows=50, dim=70)
    assert noise.numel() >= search.MANY
    bank = 100 + bank
    vectors = bank[torch.arange(2000) % 50] + 1e-3 * noise
    exact, _ = brute_force(bank, vectors, k)
    found, alone = (kind().fit(bank).query(vectors, k)[0].numpy() for kind in (search.Auto, search.Faiss))
    np.testing.assert_allclose(found, exact, rtol=tolerance)
    assert np.abs(alone / exact - 1).max() > 0.1


def test_no_queries_give_no_neighbours(engine):
    distances, indices = engine().fit(data()[0]).query(torch.empty(0, 6))
    assert distances.shape == indices.shape == (0, 1)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_ties_name_each_row_once(engine, k):
    bank = torch.tensor([[0.0, 0], [0, 0], [0, 0], [2, 0], [0, 2], [0, 2], [9, 9]])
    vectors = torch.tensor([[0.0, 0], [1, 1], [0, 2]])
    assert_same_neighbours(*engine().fit(bank).query(vectors, k), bank, vectors)


@pytest.mark.parametrize("k", [1, 5])
def test_squared_is_the_square(engine, k):
    bank, vectors = data()
    plain, rows = engine("l2").fit(bank).query(vectors, k)
    squared, same_rows = engine("l2_squared").fit(bank).query(vectors, k)
    torch.testing.assert_close(squared, plain**2)
    assert torch.equal(rows, same_rows)


def test_a_bank_row_is_at_distance_zero(engine):
    bank, _ = data(dim=64)
    distances, indices = engine().fit(bank + 30).query(bank + 30)
    assert not distances.isnan().any()
    # FAISS leaves what its product form gives, |x|^2 = 60000 rounded to about 0.02; all others write the difference.
    assert distances.max() < 0.4 if engine is search.Faiss else (distances == 0).all()
    assert indices[:, 0].tolist() == list(range(600))


def test_takes_slices_and_doubles(engine):
    bank, vectors = data(dim=8)
    expected = engine().fit(bank[:, ::2].clone()).query(vectors[:, ::2].clone(), 2)
    got = engine().fit(bank.double()[:, ::2]).query(vectors.double()[:, ::2], 2)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_fit_replaces_the_bank(engine):
    bank, vectors = data()
    finder = engine().fit(bank).fit(bank[:10])
    assert_same_neighbours(*finder.query(vectors, 2), bank[:10], vectors)
    with pytest.raises(ValueError, match="k=11 neighbours asked of a bank of 10 rows"):
        finder.query(vectors, 11)


def test_input_is_left_alone(engine):
    bank, vectors = data()
    before = bank.clone(), vectors.clone()
    engine().fit(bank).query(vectors, 3)
    assert torch.equal(bank, before[0])
    assert torch.equal(vectors, before[1])


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("name", "read", "write"), [
    ("faiss", faiss.omp_get_max_threads, faiss.omp_set_num_threads),
    ("torch", torch.get_num_threads, torch.set_num_threads)])
def test_threads_are_set_while_searching_and_restored(monkeypatch, name, read, write, fails):
    """Read the setting inside the engine's own call, also when that call fails."""
    seen, (bank, vectors) = [], data()
    finder = search.ENGINES[name](threads=1).fit(bank)
    owner, method = (faiss.IndexFlatL2, "search") if name == "faiss" else (torch, "addmm")
    genuine = getattr(owner, method)

    def spy(*args, **kwargs):
        seen.append(read())
        if fails:
            raise RuntimeError("broken on purpose")
        return genuine(*args, **kwargs)

    monkeypatch.setattr(owner, method, spy)
    before = read()
    try:
        write(2)
        with pytest.raises(RuntimeError, match="on purpose") if fails else monkeypatch.context():
            finder.query(vectors)
        assert (seen, read()) == ([1], 2)
    finally:
        write(before)


@pytest.mark.parametrize("engine", search.ENGINES)
@pytest.mark.parametrize("dim", [1, 6, 70])
@pytest.mark.parametrize(("first", "fewest"), [(2, 1), (5, 4), (200, 64), (599, 7), (600, 7)])
def test_bounds_find_the_farthest_patch(monkeypatch, first, fewest, dim, engine):
    """Against brute force; some patches are rows of the bank, and two are equally far."""
    monkeypatch.setattr(search, "FIRST", first)
    monkeypatch.setattr(search, "FEWEST", fewest)
    bank, vectors = data(dim=dim, queries=90)
    vectors = torch.cat([bank[590:], vectors, vectors[vectors.norm(dim=1).argmax()][None]])
    _, every = brute_force(bank, vectors, 1)
    nearest = every.min(axis=1)
    for order in (torch.arange(101), torch.arange(101).flip(0)):
        distances, indices = search.ENGINES[engine]().fit(bank).bounds(vectors[order])
        np.testing.assert_allclose(distances[:, 0], every[order, indices[:, 0]], atol=1e-3)
        assert (distances[:, 0].numpy() > nearest[order] - 1e-4).all()
        assert distances.argmax() == torch.from_numpy(nearest[order]).argmax()      # the first of the equal ones
        assert distances.max().item() == pytest.approx(nearest.max(), abs=1e-4)


def test_bounds_are_of_the_last_bank():
    bank, vectors = data(dim=4)
    finder = search.Auto().fit(bank + 100)
    finder.bounds(vectors)
    torch.testing.assert_close(finder.fit(bank).bounds(vectors), search.Auto().fit(bank).bounds(vectors))


def test_pruned_looks_at_the_whole_bank_for_few_patches(monkeypatch):
    """Clusters, and one patch that lies far from all of them: 1 + 1 blocks of the exact search are enough."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(2000, 8, generator=generator)
    vectors = torch.cat([bank[:1000] + 0.01, torch.full((1, 8), 9.0)])
    finder, asked = search.Pruned().fit(bank), []
    genuine = search.Pruned._nearest
    monkeypatch.setattr(search.Pruned, "_nearest", lambda self, x, k: asked.append(len(x)) or genuine(self, x, k))
    distances, _ = finder.bounds(vectors)
    assert distances.argmax() == 1000 and asked == [len(vectors), search.FEWEST]


def test_no_threads_given_keeps_the_setting():
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    for engine in search.ENGINES.values():
        engine().fit(data()[0]).query(data()[1])
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before


def test_unknown_distance_is_refused(engine):
    with pytest.raises(ValueError, match=r"distance='cosine'.*l2, l2_squared"):
        engine("cosine")


BAD = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("k", [1, 3])
def test_what_is_not_finite_is_refused_by_number(engine, value, k):
    """FAISS answers such a query with 1.8e19 and row -1."""
    bank, vectors = data(queries=2000)
    vectors[7, 2] = value
    with pytest.raises(ValueError, match="vectors: number 7 of 2000 holds NaN or infinity"):
        engine().fit(bank).query(vectors, k)
    bank[5, 0] = value
    with pytest.raises(ValueError, match="bank: number 5 of 600 holds NaN or infinity"):
        engine().fit(bank)


@pytest.mark.parametrize("value", BAD)
def test_bounds_refuse_it_too(value):
    bank, vectors = data()
    finder = search.Pruned().fit(bank)
    vectors[3, 1] = value
    with pytest.raises(ValueError, match="vectors: number 3 of 23"):
        finder.bounds(vectors)


@pytest.mark.parametrize("queries", [3, 60_000])
def test_distances_beyond_float32_are_refused(engine, queries):
    """Every number is finite, its square is not: FAISS finds no neighbour at all."""
    bank, vectors = data(queries=3, rows=20)
    vectors = vectors.repeat(queries // 3, 1)
    vectors[1] = 1e20
    with pytest.raises(ValueError, match="beyond the range of float32"):
        engine().fit(bank).query(vectors)


def test_large_finite_numbers_are_not_taken_for_infinity(engine):
    """Their sum overflows, they do not."""
    vectors = torch.full((2, 3), 3e38)
    search.check_finite("vectors", vectors)
    with pytest.raises(ValueError, match="beyond the range"):
        engine().fit(torch.zeros(4, 3)).query(vectors)
