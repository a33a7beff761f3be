"""One process at a time trains in a folder: two would mix their logs and clean away each other's checkpoints.

The lock is the system's (flock on `.lock`) and goes with the process, however that ends: a kill
leaves none behind. Where the system or the disk knows no such lock, a run goes on without.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from minialpaca.errors import UserError
from minialpaca.storage.place import LOCK

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with open(folder / LOCK, "a") as file:
        if not _take(file, folder / LOCK):
            raise UserError(f"{folder}: another process is training in this folder; wait for it, or choose another run.dir")
        yield


def _take(file: IO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks
        return True
    # Who held it before may have removed the file on leaving; a lock on what has no name keeps nobody out.
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
