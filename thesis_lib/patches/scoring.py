"""From the neighbours of all patches to one score per picture: `Neighbours` go in, scores (B,) come out.

m_test* is the patch farthest from the bank, m* its nearest bank row, s* their distance (thesis sec. 3.2.3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from thesis_lib.patches.embedding import Patches
from thesis_lib.patches.search import Search

FEATURE_SCALE = 10.0        # the author's code divides the features by this before searching
OUTLIER = 50.0              # ... and drops patches above so many medians


class Neighbours(NamedTuple):
    """What the search of all patches of B pictures gave, and the patches themselves."""

    # (B, P, k) ascending; of search "pruned" upper bounds but for the farthest patch; OUTSIDE where none counts
    distances: torch.Tensor
    indices: torch.Tensor           # (B, P, k) rows of the bank
    patches: Patches


@dataclass(frozen=True)
class Rule:
    """One way to make scores of neighbours, and what it needs for that."""

    score: Callable[[Neighbours, Search, int], torch.Tensor]        # -> (B,)
    searched: Callable[[int], int]                                  # neighbours per patch it needs, from b
    weighted: bool                                                  # exponentials of distances: plain l2 only


def maximum(neighbours: Neighbours, search: Search, b: int) -> torch.Tensor:
    """s = s*: what the thesis and the official code measured (search and b are not used).

    >>> from thesis_lib.patches.search import Torch
    >>> search = Torch().fit(torch.tensor([[0.0], [1.0]]))              # a bank of two rows
    >>> patches = Patches(torch.tensor([[[0.0], [4.0]]]), (1, 2))       # one picture of two patches
    >>> distances, rows = search.query(patches.vectors[0])              # (2, 1): 0 and 3
    >>> maximum(Neighbours(distances[None], rows[None], patches), search, 1)
    tensor([3.])
    """
    return neighbours.distances[..., 0].amax(dim=1)


def reweighted(neighbours: Neighbours, search: Search, b: int) -> torch.Tensor:
    """s = (1 - exp|m_test* - m*| / sum over the b bank rows m nearest to m* of exp|m_test* - m|) s*.

    Source: Roth et al. 2022, Eq. 7; thesis sec. 3.2.3. The b rows include m* itself, otherwise the weight can
    turn negative. The quotient is a soft-max, so no exponential overflows. The weight is below 1: it never
    increases s, it reduces it less where m* lies lonely in the bank.
    """
    # 1. s* and the patch m_test* of each picture, m* from the search.
    s_star, patch = neighbours.distances[..., 0].max(dim=1)                         # (B,), (B,)
    picture = torch.arange(len(patch))
    m_test = neighbours.patches.vectors[picture, patch]                             # (B, D)
    m_star = neighbours.indices[picture, patch, 0]                                  # (B,), rows of the bank
    # 2. The b rows m of the bank nearest to m*.
    _, rows = search.query(search.bank[m_star], b)                                  # (B, b)
    # Equal rows tie at distance 0, so m* need not be the first of its own neighbours, nor among them.
    missing = ~(rows == m_star[:, None]).any(dim=1)
    rows[missing, -1] = m_star[missing]
    # 3. exp|m_test* - m*| over the sum of exp|m_test* - m|.
    distances = (m_test[:, None, :] - search.bank[rows]).norm(dim=2)                # (B, b)
    share = torch.softmax(distances, dim=1)[rows == m_star[:, None]]
    return (1 - share) * s_star


def author_cdist(neighbours: Neighbours, search: Search, b: int) -> torch.Tensor:
    """The rule behind the cdist bars of Fig. 3.3, for comparison only: b nearest rows of the *test patch*, the
    farthest of them in the numerator, after dropping patches whose distances sum to over 50 medians.
    """
    distances = neighbours.distances / FEATURE_SCALE                                # (B, P, b)
    sums = distances.sum(dim=2)                                                     # (B, P)
    medians = sums.where(sums.isfinite(), torch.nan).nanmedian(dim=1, keepdim=True).values      # of those that count
    plausible = sums <= OUTLIER * medians
    s_star, patch = distances[..., 0].where(plausible, -torch.inf).max(dim=1)
    to_bank = distances[torch.arange(len(patch)), patch]                            # (B, b), of m_test*
    return (1 - torch.softmax(to_bank, dim=1).amax(dim=1)) * s_star


RULES = {
    "max": Rule(maximum, lambda b: 1, weighted=False),
    "reweighted": Rule(reweighted, lambda b: 1, weighted=True),
    "author_cdist": Rule(author_cdist, lambda b: b, weighted=True),
}
