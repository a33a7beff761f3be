"""Which examples a batch takes: alike in length, in an order that is a pure function of (seed, epoch)."""

import math
from collections.abc import Sequence

import numpy as np

from minialpaca.data.order import permutation


class Buckets:
    """Examples are shuffled, and sorted by length within pools of some batches: few mix their kinds better, many save padding."""

    POOLS = (8, 16, 32, 64)  # batches in a pool
    PADDING = 0.045          # the fewest are taken with which no more of the places than this are empty: a twentieth in any order

    def __init__(self, lengths: Sequence[int]):
        self.lengths = lengths
        self.pools: dict[int, int] = {}  # batch size → batches in a pool

    def n_batches(self, batch_size: int) -> int:
        return math.ceil(len(self.lengths) / batch_size)

    def chosen(self, number: int, batch_size: int, seed: int) -> list[int]:
        """Of the `number`-th batch of an endless sequence of epochs. Each epoch takes every example once."""
        epoch, position = divmod(number, self.n_batches(batch_size))
        chosen = int(permutation(self.n_batches(batch_size), seed, epoch, 1)[position])
        batches = self.pool(batch_size)
        pool, place = divmod(chosen, batches)
        shuffled = permutation(len(self.lengths), seed, epoch)
        width = batches * batch_size
        by_length = sorted(shuffled[pool * width:(pool + 1) * width].tolist(), key=lambda i: self.lengths[i])
        return by_length[place * batch_size:(place + 1) * batch_size]

    def pool(self, batch_size: int) -> int:
        """How many batches; a function of the lengths alone, so that all seeds and epochs have the same."""
        if batch_size not in self.pools:
            enough = (batches for batches in self.POOLS if self.padding(batches, batch_size) <= self.PADDING)
            self.pools[batch_size] = next(enough, self.POOLS[-1])
        return self.pools[batch_size]

    def padding(self, batches: int, batch_size: int) -> float:
        """The empty places as a part of all, in one epoch in some order."""
        shuffled = np.asarray(self.lengths)[permutation(len(self.lengths), 0, 0)]
        places = 0
        for start in range(0, len(shuffled), batches * batch_size):
            by_length = np.sort(shuffled[start:start + batches * batch_size])
            places += sum(int(batch[-1]) * len(batch) for batch in np.split(by_length, range(batch_size, len(by_length), batch_size)))
        return 1 - int(shuffled.sum()) / places if places else 0.0

    def by_length(self, taken: Sequence[int], batch_size: int) -> list[list[int]]:
        """These examples in batches, the shortest first, for evaluation."""
        order = sorted(taken, key=lambda i: self.lengths[i])
        return [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
