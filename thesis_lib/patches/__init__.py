"""Feature maps go in, a score per picture comes out: patch vectors, a memory bank, its search and the score rule.

Every piece works alone, on arrays; what puts them together to a method does not belong here.
"""

from thesis_lib.patches.coreset import greedy, radius
from thesis_lib.patches.embedding import Patches
from thesis_lib.patches.scoring import RULES, Neighbours
from thesis_lib.patches.search import ENGINES, Search

__all__ = ["ENGINES", "RULES", "Neighbours", "Patches", "Search", "greedy", "radius"]
