"""Seeds of random streams that must not depend on what was drawn before."""


def mixed(seed: int, number: int) -> int:
    """Seed of the random numbers of one step or picture. torch's generator on the CPU reads the low 32 bits alone, so
    both have to be in these; numbers below 2^32 never meet under one seed.

    >>> mixed(0, 7), mixed(1, 7) == mixed(0, 7)
    (7, False)
    """
    return (seed * 0x9E3779B1 + number) % 2**32
