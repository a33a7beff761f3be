"""A step of many small operations as one: recorded on CUDA, and played again on other numbers in the same places.

Asked for one token, a GPU is done with each operation before the host has asked for the next. A CUDA graph holds them all, with the
addresses that they read and write; so what goes in has places of its own, and so has the cache that the step writes to.
"""

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minialpaca.cache import KVCache
from minialpaca.config import ModelConfig

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
        with torch.cuda.device(inputs[0].device) if inputs[0].is_cuda else contextlib.nullcontext():  # or it would be recorded on the current one
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


class LentCache(KVCache):
    """A cache as long as the context; its room may have places to spare."""

    def __init__(self, cfg: ModelConfig, rows: int, room: Room):
        super().__init__(cfg, rows, room.memory[0].shape[3], room.memory[0].device, memory=room.memory)
        self.max_len, self.room = cfg.max_seq_len, room


class Rooms:
    """Where caches stand. Whose cache is gone is given to the next one of as many rows, so that nothing is recorded for each answer."""

    def __init__(self, cfg: ModelConfig, device: torch.device, dtype: torch.dtype, places: int):
        self.cfg, self.kind, self.places, self.free = cfg, (device, dtype), places, defaultdict(list)

    def lend(self, rows: int) -> LentCache:
        free = self.free[rows]
        room = free.pop() if free else self._built(rows)
        cache = LentCache(self.cfg, rows, room)
        weakref.finalize(cache, free.append, room)
        return cache

    def _built(self, rows: int) -> Room:
        """Of zeros: what is behind a mask is multiplied by 0, and must be a number."""
        with torch.inference_mode(False), torch.no_grad():  # memory that was made in inference mode may not be written to outside of it
            cache = KVCache(self.cfg, rows, self.places, *self.kind)
            return Room((cache.k_LBGSK.zero_(), cache.v_LBGSK.zero_()))
