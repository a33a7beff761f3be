"""A step of many small operations as one: recorded on CUDA, and played again on other numbers in the same places.

Asked for one token, a GPU is done with each operation before the host has asked for the next. A CUDA graph holds them all, with the
addresses that they read and write; so what goes in has places of its own, and so has the cache that the step writes to.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Play = Callable[[], None]


def record(work: Callable[[], Tensor]) -> tuple[Play, Tensor]:
    """(play, where its output stands afterwards). The work is done twice before, or compiling would be recorded, too."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()
    return graph.replay, output


class Recorded:
    """work(*inputs) → a tensor, for inputs of these shapes."""

    def __init__(self, work: Callable[..., Tensor], *inputs: Tensor):
        self.inputs = [tensor.clone() for tensor in inputs]
        self.play, self.output = record(lambda: work(*self.inputs))

    def __call__(self, *inputs: Tensor) -> Tensor:
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        self.play()
        return self.output.clone()


@dataclass
class Room:
    """The memory of a cache, and the step that was recorded on it."""

    memory: tuple[Tensor, Tensor]
    step: Recorded | None = None


class Rooms:
    """Rooms for caches of some rows. Whose cache is gone is given to the next one, so that nothing is recorded for each answer."""

    def __init__(self, make: Callable[[int], tuple[Tensor, Tensor]]):
        self.make, self.free = make, defaultdict(list)

    def take(self, rows: int) -> Room:
        free = self.free[rows]
        return free.pop() if free else Room(self.make(rows))

    def lend(self, room: Room, rows: int, holder: object) -> None:
        """For as long as the holder lives."""
        weakref.finalize(holder, self.free[rows].append, room)
