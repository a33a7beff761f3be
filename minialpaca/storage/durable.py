"""Files that somebody will rely on: hashed, read back and synced before their name means anything.

The hash is of the bytes that were meant, and what the file has is compared with them. Both happen on threads of their own, mostly
while the disk is waited for; so what is read back comes from the system's cache, and a faulty disk itself shows at the next start.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from minialpaca.errors import UserError

CHUNK = 1 << 24  # bytes read back at a time
LARGE = 1 << 20  # bytes for which another thread is worth its while


class Abandoned(Exception):
    """Whoever asked for the file is leaving and no longer wants it."""


class Writer:
    """A binary file that feeds SHA-256, and is compared with what it was fed.

    `lasting`: tensors that nobody changes until the file is closed; what is not of their memory is copied for the threads.
    torch.save forgets which error a file gave it, so the first one is kept and raised at the end.
    """

    def __init__(self, path: Path, abandoned: Callable[[], bool] = lambda: False, lasting: Iterable[Tensor] = ()):
        self.path, self.abandoned = path, abandoned
        self.sha256, self.bytes, self.error = hashlib.sha256(), 0, None
        storages = [tensor.untyped_storage() for tensor in lasting if tensor.device.type == "cpu"]
        self.lasting = {s.data_ptr(): s for s in storages}
        self.pieces: list[bytes | memoryview] = []  # all that was written
        self.hashed, self.unhashed_bytes = 0, 0     # how many of them are hashed or about to be, and how long the others are
        self.tasks: list[Future] = []

    def __enter__(self) -> "Writer":
        self.file, self.hashing, self.reading = open(self.path, "wb"), ThreadPoolExecutor(1), ThreadPoolExecutor(1)  # no thread yet
        return self

    def write(self, piece: bytes | memoryview) -> int:
        try:
            if self.abandoned():
                raise Abandoned
            self._hash_and_write(piece)
        except BaseException as error:
            self.error = self.error or error
            raise
        self.bytes += len(piece)
        return len(piece)

    def _hash_and_write(self, piece: bytes | memoryview) -> None:
        self.pieces.append(piece if self._lasts(piece) else bytes(piece))
        self.unhashed_bytes += len(piece)
        if self.unhashed_bytes >= LARGE:
            self.tasks.append(self.hashing.submit(self._hash, *self._unhashed()))
        self.file.write(piece)

    def _lasts(self, piece: bytes | memoryview) -> bool:
        """torch.save hands over a storage in one piece, from where it lies."""
        storage = self.lasting.get(np.frombuffer(piece, np.uint8).ctypes.data) if len(piece) else None
        return storage is not None and len(piece) <= storage.nbytes()

    def _unhashed(self) -> tuple[int, int]:
        first, self.hashed, self.unhashed_bytes = self.hashed, len(self.pieces), 0
        return first, self.hashed

    def _hash(self, first: int, last: int) -> None:
        for piece in self.pieces[first:last]:
            self.sha256.update(piece)

    def _reads_back(self) -> bool:
        buffer = memoryview(bytearray(CHUNK if self.tasks else LARGE))
        with open(self.path, "rb") as file:
            for piece in self.pieces:
                for first in range(0, len(piece), len(buffer)):
                    meant = memoryview(piece)[first:first + len(buffer)]
                    read = buffer[:len(meant)]
                    if file.readinto(read) != len(meant) or not _same(read, meant):
                        return False
            return not file.read(1)

    def flush(self) -> None:
        self.file.flush()

    def __exit__(self, kind, error, trace) -> None:
        good = not (kind or self.error)
        try:
            if good:
                self._end()
        finally:
            self._close()
            for beside in (self.hashing, self.reading):
                beside.shutdown(cancel_futures=not good)
        if self.error:
            raise self.error from None

    def _end(self) -> None:
        """What is small is hashed and read back here, all in a row: that is soonest."""
        large = bool(self.tasks)
        if large:
            self.tasks.append(self.hashing.submit(self._hash, *self._unhashed()))
        else:
            self._hash(*self._unhashed())
        self.file.flush()
        reading = self.reading.submit(self._reads_back) if large else None
        os.fsync(self.file.fileno())
        for task in self.tasks:
            task.result()  # raises what it raised
        if not (reading.result() if reading else self._reads_back()):
            self.error = UserError(f"{self.path}: what was written is read back otherwise, so disk or memory are faulty; what was saved "
                                   "before is untouched; train on another machine, or in a run.dir on another disk")

    def _close(self) -> None:
        try:
            self.file.close()
        except OSError as error:  # what was buffered does not fit either
            self.error = self.error or error

    @property
    def facts(self) -> dict:
        return {"bytes": self.bytes, "sha256": self.sha256.hexdigest()}


def _same(a: memoryview, b: memoryview) -> bool:
    return np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8))  # lets other threads run, as == would not


def write(path: Path, text: str) -> dict:
    """A small file, synced; returns its size and hash."""
    with Writer(path) as out:
        out.write(text.encode())
    return out.facts


def sync(folder: Path) -> None:
    """A folder's names are on the disk only when it was synced itself."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
