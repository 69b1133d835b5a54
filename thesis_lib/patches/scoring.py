"""From the neighbours of all patches to one score per picture.

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
    distances: torch.Tensor         # (B, P, k) ascending; of search "pruned" upper bounds but for the farthest patch
    indices: torch.Tensor           # (B, P, k) rows of the bank
    patches: Patches


@dataclass(frozen=True)
class Rule:
    score: Callable[[Neighbours, Search, int], torch.Tensor]        # -> (B,)
    searched: Callable[[int], int]                                  # neighbours per patch it needs, from b
    weighted: bool                                                  # exponentials of distances: plain l2 only


def maximum(found: Neighbours, search: Search, b: int) -> torch.Tensor:
    """s = s*: what the thesis and the official code measured (b is not used)."""
    return found.distances[..., 0].amax(dim=1)


def reweighted(found: Neighbours, search: Search, b: int) -> torch.Tensor:
    """s = (1 - exp|m_test* - m*| / sum over the b bank rows m nearest to m* of exp|m_test* - m|) s*.

    Source: Roth et al. 2022, Eq. 7; thesis sec. 3.2.3. The b rows include m* itself, otherwise the weight can
    turn negative. The quotient is a soft-max, so no exponential overflows. The weight is below 1: it never
    increases s, it reduces it less where m* lies lonely in the bank.
    """
    s_star, patch = found.distances[..., 0].max(dim=1)                              # (B,), (B,)
    picture = torch.arange(len(patch))
    m_test = found.patches.vectors[picture, patch]                                  # (B, D)
    m_star = found.indices[picture, patch, 0]                                       # (B,)
    _, rows = search.query(search.bank[m_star], b)                                  # (B, b)
    # Equal rows tie at distance 0, so m* need not be the first of its own neighbours, nor among them.
    missing = ~(rows == m_star[:, None]).any(dim=1)
    rows[missing, -1] = m_star[missing]
    distances = (m_test[:, None, :] - search.bank[rows]).norm(dim=2)                # (B, b)
    share = torch.softmax(distances, dim=1)[rows == m_star[:, None]]
    return (1 - share) * s_star


def author_cdist(found: Neighbours, search: Search, b: int) -> torch.Tensor:
    """The rule behind the cdist bars of Fig. 3.3, for comparison only: b nearest rows of the *test patch*, the
    farthest of them in the numerator, after dropping patches whose distances sum to over 50 medians.
    """
    distances = found.distances / FEATURE_SCALE                                     # (B, P, b)
    sums = distances.sum(dim=2)
    kept = sums <= OUTLIER * sums.median(dim=1, keepdim=True).values
    s_star, patch = distances[..., 0].where(kept, -torch.inf).max(dim=1)
    own = distances[torch.arange(len(patch)), patch]                                # (B, b)
    return (1 - torch.softmax(own, dim=1).amax(dim=1)) * s_star


RULES = {
    "max": Rule(maximum, lambda b: 1, weighted=False),
    "reweighted": Rule(reweighted, lambda b: 1, weighted=True),
    "author_cdist": Rule(author_cdist, lambda b: b, weighted=True),
}
