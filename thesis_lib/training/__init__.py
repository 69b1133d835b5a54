"""Networks and pictures go in, trained networks come out: the loop with checkpoints, sources, distillation.

Which losses a method has stands with the method.
"""

from thesis_lib.training.descent import Course, descend
from thesis_lib.training.distillation import distil

__all__ = ["Course", "descend", "distil"]
