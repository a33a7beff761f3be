"""Files that somebody will rely on: hashed, read back and synced before their name means anything.

The hash is of the bytes that were meant, and what the file has is compared with them. Both happen on threads of their own, mostly
while the disk is waited for.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from minialpaca.errors import UserError

CHUNK = 1 << 24  # bytes read back at a time
LARGE = 1 << 20  # bytes from which a thread is worth its while


class Abandoned(Exception):
    """Whoever asked for the file is leaving and no longer wants it."""


class Writer:
    """A binary file that feeds SHA-256, and is compared with what it was fed.

    `lasting`: tensors that stay as they are until the file is closed; what is not of their memory is copied for the threads.
    torch.save forgets which error a file gave it, so the first one is kept and raised at the end.
    """

    def __init__(self, path: Path, abandoned: Callable[[], bool] = lambda: False, lasting: Iterable[Tensor] = ()):
        self.path, self.abandoned = path, abandoned
        self.sha256, self.bytes, self.error = hashlib.sha256(), 0, None
        self.pieces: list[bytes | memoryview] = []  # all that was written so far, but for what is gathered
        self.gathered = bytearray()
        storages = [tensor.untyped_storage() for tensor in lasting if tensor.device.type == "cpu"]
        self.lasting = {s.data_ptr(): s.nbytes() for s in storages}

    def __enter__(self) -> "Writer":
        self.file, self.hashing, self.reading = open(self.path, "wb"), ThreadPoolExecutor(1), ThreadPoolExecutor(1)  # no thread yet
        return self

    def write(self, piece: bytes | memoryview) -> int:
        try:
            if self.abandoned():
                raise Abandoned
            self._hash_and_write(piece)
        except (OSError, Abandoned) as error:
            self.error = self.error or error
            raise
        self.bytes += len(piece)
        return len(piece)

    def _hash_and_write(self, piece: bytes | memoryview) -> None:
        if len(piece) >= LARGE and self._lasts(piece):
            self._hash_gathered()
            self.pieces.append(piece)
            self.hashing.submit(self.sha256.update, piece)
        else:
            self.gathered += piece
            if len(self.gathered) >= CHUNK:
                self._hash_gathered()
        self.file.write(piece)

    def _lasts(self, piece: bytes | memoryview) -> bool:
        """torch.save hands over a storage in one piece, from where it lies."""
        return len(piece) <= self.lasting.get(np.frombuffer(piece, np.uint8).ctypes.data, 0)

    def _hash_gathered(self) -> None:
        self.pieces.append(bytes(self.gathered))
        self.hashing.submit(self.sha256.update, self.pieces[-1])
        self.gathered.clear()

    def _reads_back(self) -> bool:
        buffer = bytearray(min(CHUNK, max(map(len, self.pieces))))
        with open(self.path, "rb", buffering=0) as file:
            for piece in self.pieces:
                for first in range(0, len(piece), CHUNK):
                    meant = memoryview(piece)[first:first + CHUNK]
                    read = memoryview(buffer)[:len(meant)]
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
            self.pieces.clear()
        if self.error:
            raise self.error from None

    def _end(self) -> None:
        if small := not self.pieces:  # then all in a row is soonest
            self.pieces.append(bytes(self.gathered))
            self.sha256.update(self.gathered)
        else:
            self._hash_gathered()
        self.file.flush()
        reading = None if small else self.reading.submit(self._reads_back)
        os.fsync(self.file.fileno())
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
