"""A request to stop: SIGTERM (Slurm, Kubernetes) and the first SIGINT (Ctrl-C) let the step end and be saved.

The second one is left to Python: it interrupts at once.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

from minialpaca.errors import Stopped


class Stop:
    """Whether somebody has asked for it, and how."""

    def __init__(self):
        self.asked = ""

    def _note(self, number: int, frame) -> None:
        self.asked = signal.Signals(number).name
        print(f"\n{self.asked}: the step will end and be saved; once more leaves at once", file=sys.stderr, flush=True)
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.default_int_handler)


@contextlib.contextmanager
def left() -> Iterator[None]:
    """Within, outside of the steps, a request to stop leaves at once, with the exit code of one: before them there is nothing to
    save, behind them everything is saved.
    """
    def leave(number: int, frame) -> None:
        raise Stopped(f"{signal.Signals(number).name}: stopped outside of the steps; nothing that was trained is lost, and the same command goes on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def heard() -> Iterator[Stop]:
    """Within, signals are noted; afterwards they mean what they meant before. Only the main thread hears any."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {one: signal.signal(one, stop._note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
