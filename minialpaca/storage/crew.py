"""Work that several processes share, each its part: what one of them fails at, all of them hear of.

They talk over a line of their own, so that a thread may do so beside the training, which has another.
"""

from collections.abc import Callable

import torch.distributed as dist

from minialpaca import parallel
from minialpaca.errors import UserError


class Alone:
    """One process, which does all of it."""

    rank, size = 0, 1

    def each(self, work: Callable) -> list:
        """What everyone's work came to, in the order of processes; nobody goes on before all have done theirs."""
        return [work()]

    def first(self, work: Callable) -> None:
        """The first one's work, for which all wait."""
        self.each(lambda: work() if self.rank == 0 else None)


class Crew(Alone):
    """All processes of this run. To be made by all, and asked by all in the same order."""

    def __init__(self):
        self.line = dist.new_group(backend="gloo", timeout=parallel.PATIENCE)
        self.rank, self.size = parallel.rank(), parallel.size()

    def each(self, work: Callable) -> list:
        found, error = None, None
        try:
            found = work()
        except Exception as caught:  # noqa: BLE001 (raised below, when the others know)
            error = caught
        told = [None] * self.size
        with parallel.together():
            dist.all_gather_object(told, (found, error and str(error)), group=self.line)
        if error:
            raise error
        failed = [f"process {rank}: {fault}" for rank, (_, fault) in enumerate(told) if fault is not None]
        if failed:
            raise UserError(failed[0])
        return [found for found, _ in told]
