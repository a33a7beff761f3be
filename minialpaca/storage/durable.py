"""Files that somebody will rely on: hashed while they are written, flushed and synced before their name means anything.

The hash is of the bytes that were meant; what the disk has of them is read back and compared by who wrote them.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PARALLEL_FROM = 1 << 20  # bytes: a smaller piece is hashed sooner than another thread hears of it


class Abandoned(Exception):
    """Whoever asked for the file is leaving and no longer wants it."""


class Writer:
    """A binary file that feeds SHA-256; with large pieces on a second thread, while the first one writes them.

    torch.save forgets which error a file gave it, so the first one is kept and raised at the end.
    """

    def __init__(self, path: Path, abandoned: Callable[[], bool] = lambda: False):
        self.path, self.abandoned = path, abandoned
        self.sha256, self.bytes, self.error = hashlib.sha256(), 0, None

    def __enter__(self) -> "Writer":
        self.file, self.beside = open(self.path, "wb"), ThreadPoolExecutor(1)
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
        if len(piece) < PARALLEL_FROM:
            self.sha256.update(piece)
            self.file.write(piece)
            return
        hashing = self.beside.submit(self.sha256.update, piece)
        try:
            self.file.write(piece)
        finally:
            hashing.result()  # the piece's memory is ours until we return, no longer

    def flush(self) -> None:
        self.file.flush()

    def __exit__(self, kind, error, trace) -> None:
        self.beside.shutdown()
        try:
            if not (kind or self.error):
                self.file.flush()
                os.fsync(self.file.fileno())
        finally:
            self._close()
        if self.error:
            raise self.error from None

    def _close(self) -> None:
        try:
            self.file.close()
        except OSError as error:  # what was buffered does not fit either
            self.error = self.error or error

    @property
    def facts(self) -> dict:
        return {"bytes": self.bytes, "sha256": self.sha256.hexdigest()}


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
