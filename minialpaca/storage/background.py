"""Saving beside the training: a consistent copy of all tensors is taken at once, and one thread writes it.

A step changes weights and moments in place, so the copy has to be whole before the next step begins; it stays and is
filled again at the next save. A kill in the middle finds the checkpoint before, as a kill during any save does.
"""

import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from minialpaca.storage.space import tensors_in


def copied(value, into=None, seen: dict | None = None):
    """Tensors in memory of the host that nobody else writes to; `into`, an earlier copy, is filled again where it fits.

    Tensors that are one stay one: a tied matrix is copied, and saved, once.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in seen or not value.numel():
            fits = isinstance(into, Tensor) and into.shape == value.shape and into.dtype == value.dtype
            free = fits and not any(into is other for other in seen.values())
            place = into if free else torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            seen[key] = place.copy_(value.detach(), non_blocking=value.is_cuda)
        return seen[key]
    if isinstance(value, dict):
        earlier = into if isinstance(into, dict) else {}
        return {name: copied(part, earlier.get(name), seen) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        earlier = into if isinstance(into, (list, tuple)) and len(into) == len(value) else [None] * len(value)
        return type(value)(copied(part, old, seen) for part, old in zip(value, earlier))
    return value


class Background:
    """One piece of work at a time; what it raises is raised again where the training goes on.

    As a context: left in peace it waits for the work; left by Ctrl-C it lets the work go.
    """

    def __init__(self):
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.leaving = threading.Event()
        self.copy, self.count, self.worked, self.held_up = None, 0, 0.0, 0.0

    def start(self, tensors: dict, work: Callable[[dict], object]) -> None:
        """Copy the tensors and hand them to `work` on the thread; the work before is waited for."""
        started = time.perf_counter()
        self.join()
        self.copy = copied(tensors, self.copy)
        for device in {tensor.device for tensor in tensors_in(tensors) if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        self.thread = threading.Thread(target=self._run, args=(work,), name="saving")
        self.thread.start()
        self.count += 1
        self.held_up += time.perf_counter() - started

    def _run(self, work: Callable[[dict], object]) -> None:
        started = time.perf_counter()
        try:
            work(self.copy)
        except BaseException as error:  # noqa: BLE001 (raised again by `join`, in the thread that trains)
            self.error = error
        self.worked += time.perf_counter() - started

    def check(self) -> None:
        """Raise what the work that is done has raised; wait for nothing."""
        if self.thread and not self.thread.is_alive():
            self.join()

    def join(self) -> None:
        """Wait for the work and raise what it raised."""
        self._wait()
        error, self.error = self.error, None
        if error:
            raise error

    def _wait(self) -> None:
        if self.thread:
            self.thread.join()
            self.thread = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.join()
            elif not issubclass(kind, KeyboardInterrupt):
                self._wait()
        finally:  # at once, if it is Ctrl-C that leads here
            self.leaving.set()
            self._wait()

    def __str__(self) -> str:
        return (f"saving: {self.count} checkpoint{'s' * (self.count != 1)}, {self.worked:.1f} s beside the training, which waited "
                f"{self.held_up:.1f} s for it")
