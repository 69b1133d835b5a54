"""The score rules on three patches computed by hand, with ties, copies and distances that would overflow."""

import math

import pytest
import torch

from thesis_lib.patches import scoring, search
from thesis_lib.patches.embedding import Patches

BANK = torch.tensor([[0.0, 0], [3, 0], [0, 4], [50, 0]])
PICTURE = [[0.0, 1], [3, 2], [0.5, 0]]          # distances 1, 2 and 0.5: m_test* is (3, 2), m* is (3, 0)
FAR = math.sqrt(13)                             # from (3, 2) to (0, 0), and to (0, 4)


@pytest.fixture(params=search.ENGINES)
def engine(request):
    return search.ENGINES[request.param]


def score(rule, pictures, bank, b, engine=search.Faiss):
    """pictures: list of lists of patches, all of the same length."""
    vectors, finder = torch.tensor(pictures), engine().fit(bank)
    shape, k = vectors.shape[:2], scoring.RULES[rule].searched(b)
    distances, indices = finder.query(vectors.flatten(0, 1), k)
    patches = Patches(vectors, (1, shape[1]))
    found = scoring.Neighbours(distances.view(*shape, k), indices.view(*shape, k), patches)
    return scoring.RULES[rule].score(found, finder, b).tolist()


def weight(own, *all_distances):
    return 1 - math.exp(own) / sum(map(math.exp, all_distances))


def test_maximum(engine):
    pictures = [PICTURE, [[0.0, 0], [3, 0], [0, 4]]]
    assert score("max", pictures, BANK, 9, engine) == pytest.approx([2, 0])


@pytest.mark.parametrize(("b", "expected"), [
    (1, 0.0), (2, 2 * weight(2, 2, FAR)), (3, 2 * weight(2, 2, FAR, FAR))])
def test_reweighted_counts_b_rows_with_m_star(engine, b, expected):
    assert score("reweighted", [PICTURE], BANK, b, engine) == pytest.approx([expected], abs=1e-6)


def test_reweighted_takes_the_rows_nearest_to_m_star_not_to_the_patch(engine):
    """Nearest to m* = (0, 0) is (-1, 0); nearest to the patch (2, 0) after m* would be (4.5, 0)."""
    bank = torch.tensor([[0.0, 0], [-1, 0], [4.5, 0]])
    assert score("reweighted", [[[2.0, 0]]], bank, 2, engine) == pytest.approx([2 * weight(2, 2, 3)])


def test_reweighted_picture_by_picture(engine):
    other = [[0.0, 4], [0, 9], [0, 0]]          # m_test* is (0, 9), m* is (0, 4), next to it (0, 0)
    expected = [2 * weight(2, 2, FAR), 5 * weight(5, 5, 9)]
    assert score("reweighted", [PICTURE, other], BANK, 2, engine) == pytest.approx(expected)


@pytest.mark.parametrize("copies", [2, 3, 6])
def test_reweighted_with_copies_of_m_star(engine, copies):
    """All b rows tie at distance 0 from m*: each has the share 1/b, whichever of them was named m*."""
    bank = torch.tensor([[5.0, 0]] + [[0, 0]] * copies)
    assert score("reweighted", [[[0.0, 2]]], bank, 2, engine) == pytest.approx([1.0])


def test_reweighted_counts_m_star_when_other_copies_crowd_it_out(engine, monkeypatch):
    """A tie may hand back b copies without m* itself; it still counts, once."""
    finder = engine().fit(torch.tensor([[0.0, 0], [0, 0], [0, 0], [5, 0]]))
    monkeypatch.setattr(finder, "query", lambda vectors, k: (torch.zeros(1, k), torch.arange(k)[None]))
    patches = Patches(torch.tensor([[[0.0, 2]]]), (1, 1))
    found = scoring.Neighbours(torch.tensor([[[2.0]]]), torch.tensor([[[2]]]), patches)
    assert scoring.reweighted(found, finder, 2).tolist() == pytest.approx([1.0])


def test_reweighted_survives_distances_that_overflow_exp(engine):
    bank = torch.tensor([[0.0, 0], [0, 1], [0, 2]])
    near, far = score("reweighted", [[[0.0, -1e4]], [[0.0, 1e4]]], bank, 2, engine)
    assert near == pytest.approx(1e4 * weight(0, 0, 1), rel=1e-3)      # distances 1e4 and 1e4 + 1
    assert far == pytest.approx((1e4 - 2) * weight(0, 0, 1), rel=1e-3)


def test_reweighted_never_increases_the_score(engine):
    vectors = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0)).tolist()
    bank = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    plain, weighted = (score(rule, vectors, bank, 9, engine) for rule in ("max", "reweighted"))
    assert all(0 < w < p for w, p in zip(weighted, plain, strict=True))


def test_author_cdist_by_hand(engine):
    """Three nearest rows of (3, 2): 2, FAR, FAR, divided by 10; the farthest stands in the numerator."""
    expected = 0.2 * weight(FAR / 10, 0.2, FAR / 10, FAR / 10)
    assert score("author_cdist", [PICTURE], BANK, 3, engine) == pytest.approx([expected])


@pytest.mark.parametrize(("height", "kept"), [(49.0, True), (51.0, False)])
def test_author_cdist_drops_patches_over_fifty_medians(engine, height, kept):
    bank = torch.tensor([[0.0, 0], [0, 0]])     # sums of two distances: 2 for the three others, 2 * height
    patches = [[0.0, 1], [1, 0], [-1, 0], [0, height]]
    expected = (height if kept else 1) / 10 / 2
    assert score("author_cdist", [patches], bank, 2, engine) == pytest.approx([expected])


@pytest.mark.parametrize(("rule", "searched", "weighted"), [("max", 1, False), ("reweighted", 1, True),
                                                            ("author_cdist", 9, True)])
def test_rules_declare_what_they_need(rule, searched, weighted):
    assert scoring.RULES[rule].searched(9) == searched
    assert scoring.RULES[rule].weighted is weighted
