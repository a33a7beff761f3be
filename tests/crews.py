"""A checkpoint written by a crew of threads, which tell and hear as processes do."""

import threading

import torch

from minialpaca.errors import UserError
from minialpaca.shards import chunk
from minialpaca.storage import checkpoint
from minialpaca.storage.crew import Alone


class Thread(Alone):
    def __init__(self, rank, size, told, barrier):
        self.rank, self.size, self.told, self.barrier = rank, size, told, barrier

    def each(self, work):
        error = None
        try:
            self.told[self.rank] = (work(), None)
        except Exception as caught:
            error, self.told[self.rank] = caught, (None, str(caught))
        self.barrier.wait(10)
        told = list(self.told)
        self.barrier.wait(10)
        if error:
            raise error
        for rank, (_, fault) in enumerate(told):
            if fault is not None:
                raise UserError(f"process {rank}: {fault}")
        return [found for found, _ in told]


W = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def tensors(rank, size):
    return {"model": {"w": chunk(W, rank, size)}, "optimizer": {"m": chunk(W * 2, rank, size), "lr": None if rank else 0.1}}


def saved(run, step, size=2, of=tensors):
    """What each of the crew said in the end."""
    told, barrier, said = [None] * size, threading.Barrier(size), [None] * size

    def save(rank):
        try:
            checkpoint.save(run, step, of(rank, size), {"step": step}, best=True, crew=Thread(rank, size, told, barrier))
        except UserError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=save, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return said
