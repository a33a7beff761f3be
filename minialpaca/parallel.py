"""Several processes, one training: each takes its share of a step's micro-batches, and what they found is added up once.

`torchrun --nproc-per-node n train.py …` starts them; without it there is one, and nothing here does anything. The first
one writes, prints and evaluates; the others hear of it. A process that dies takes the others with it (torchrun sees to that).
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minialpaca.errors import UserError

PATIENCE = timedelta(days=1)  # the others wait while the first one evaluates or answers a test; the library's default is 30 minutes, with NCCL 10


def start() -> None:
    """Join the processes that torchrun has started; the others fall silent."""
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        return
    # Numbers that the host knows travel by gloo, so that nobody waits for a device on their account.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    if torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise UserError(f"process {rank()}: this machine has {torch.cuda.device_count()} CUDA devices, one for each process; start "
                            "fewer (torchrun --nproc-per-node), or hide them to train on the CPU (CUDA_VISIBLE_DEVICES=)")
        torch.cuda.set_device(local_rank())
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as long as the process lives)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return rank() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within, all processes are needed. The one that went says why; a traceback of each other would bury that."""
    try:
        yield
    except RuntimeError as error:
        if "onnection" not in str(error):  # closed or reset by peer; another failure is a fault, to be seen whole
            raise
        raise UserError(f"process {rank()}: another process of this run has gone; mend what it says, and start all again") from None


def meet() -> None:
    """Nobody goes on before all are here."""
    if dist.is_initialized():
        from_first(lambda: None)


def from_first(make: Callable):
    """What the first process makes, for all."""
    if not dist.is_initialized():
        return make()
    box = [make() if is_first() else None]
    with together():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def summed(counts: Sequence[int]) -> list[int]:
    """Each number, over all processes."""
    if not dist.is_initialized():
        return list(counts)
    total = torch.tensor(counts, dtype=torch.int64)  # of bools the sum would be one
    with together():
        dist.all_reduce(total)
    return total.tolist()


def add_up(parameters: Iterable[nn.Parameter], numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    """g ← Σ_processes g, and the same of `numbers`, in one all-reduce; a gradient that no process has stays none.

    Gradients are of sums over the whole step's tokens already, so there is nothing to average.
    """
    if not dist.is_initialized():
        return numbers
    trained = [p for p in parameters if p.requires_grad]
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    there = torch.tensor([p.grad is not None for p in trained])
    flat = torch.cat([*(g.flatten() for g in parts), *(n.reshape(1).to(parts[0]) for n in numbers.values()), there.to(parts[0])])
    del parts
    for p in trained:
        p.grad = None  # or the gradient would be there three times
    with together():
        dist.all_reduce(flat)
    sums = flat.split([*(p.numel() for p in trained), len(numbers), len(trained)])
    anywhere = there if there.all() else sums[-1] > 0  # where all is here the device need not be asked
    for p, found, somewhere in zip(trained, sums, anywhere.tolist()):
        p.grad = found.view_as(p) if somewhere else None
    return dict(zip(numbers, sums[-2]))


@contextlib.contextmanager
def joined():
    """Within, this process is one of torchrun's, if torchrun started it."""
    start()
    try:
        yield
    finally:
        stop()
