"""Seeds of random streams: every purpose has streams of its own, which depend on no draw before.

What is not trained draws all that it needs from one generator with the plain seed: coreset, channels of PaDiM,
bootstrap, random weights. Published rows hold what these gave. A training never draws from a plain seed.
"""

import hashlib
from typing import Literal

# The last three are seeds that other streams are made from: of pictures that set a target's statistics, of the pictures
# of a penalty, and of all that a teacher needs.
Purpose = Literal["weights", "split", "shuffle", "step", "picture", "crop", "statistics", "penalty", "teacher"]


def seed_of(purpose: Purpose, seed: int, number: int = 0) -> int:
    """Seed of what one purpose draws at a step, epoch or batch of this number.

    torch's generator on the CPU reads the low 32 bits alone: within a purpose and seed no two numbers below 2^32 meet,
    and a test holds the purposes against each other.

    >>> seed_of("step", 0, 7) == seed_of("picture", 0, 7), seed_of("step", 0, 7) == seed_of("step", 1, 7)
    (False, False)
    """
    start = hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:4]
    return (int.from_bytes(start) + number) % 2**32
