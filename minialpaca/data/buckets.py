"""Which examples a batch takes: alike in length, in an order that is a pure function of (seed, epoch)."""

import math
from collections.abc import Sequence

from minialpaca.data.order import permutation


class Buckets:
    POOL = 50  # batches whose examples are sorted by length together: padding stays under 5 % (docs/PERFORMANCE.md), and kinds mix

    def __init__(self, lengths: Sequence[int]):
        self.lengths = lengths

    def n_batches(self, batch_size: int) -> int:
        return math.ceil(len(self.lengths) / batch_size)

    def chosen(self, number: int, batch_size: int, seed: int) -> list[int]:
        """Of the `number`-th batch of an endless sequence of epochs. Each epoch takes every example once."""
        epoch, position = divmod(number, self.n_batches(batch_size))
        chosen = int(permutation(self.n_batches(batch_size), seed, epoch, 1)[position])
        pool, place = divmod(chosen, self.POOL)
        shuffled = permutation(len(self.lengths), seed, epoch)
        width = self.POOL * batch_size
        by_length = sorted(shuffled[pool * width:(pool + 1) * width].tolist(), key=lambda i: self.lengths[i])
        return by_length[place * batch_size:(place + 1) * batch_size]

    def by_length(self, taken: Sequence[int], batch_size: int) -> list[list[int]]:
        """These examples in batches, the shortest first, for evaluation."""
        order = sorted(taken, key=lambda i: self.lengths[i])
        return [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
