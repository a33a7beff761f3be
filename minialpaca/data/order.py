"""The order of the data: a pure function of (seed, epoch, position).

Nothing is drawn from global random state, so a run that goes on after a stop sees what the
uninterrupted run would have seen.
"""

import functools

import numpy as np


def raw(n: int, *key: int) -> np.ndarray:
    """n random 64-bit numbers that depend on the key alone (Philox, whose raw stream NumPy keeps stable)."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(n)


def whole(*key: int) -> int:
    """One such number as Python's: NumPy 1 makes a float of a 64-bit number and an int, and rounds it."""
    return int(raw(1, *key)[0])


@functools.lru_cache(maxsize=4)
def permutation(n: int, *key: int) -> np.ndarray:
    """The numbers 0 … n − 1 in an order that depends on the key alone."""
    return np.argsort(raw(n, *key), kind="stable")
