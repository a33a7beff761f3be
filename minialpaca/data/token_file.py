"""Token files: ids on disk behind a header that names tokenizer, count and digest, read as a memory map.

Layout: 512 bytes of header (a JSON object, filled up with spaces), then `count` little-endian
uint16 ids (uint32 where the vocabulary has more than 65,536 pieces). A file is written under
another name and renamed when it is complete.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from minialpaca.errors import UserError, reason
from minialpaca.tokenizer import Tokenizer

HEADER_BYTES = 512
FORMAT = "minialpaca tokens 2"
BUFFER = 1 << 20  # ids kept in memory before they are written


class TokenWriter:
    """Appends ids to a new token file; `close` completes it, leaving it with an exception removes it."""

    def __init__(self, path: Path, tokenizer: Tokenizer, source: str):
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.header = {"format": FORMAT, "dtype": self.dtype.name, "tokenizer": tokenizer.sha256, "source": source}
        self.count, self.buffer = 0, []
        try:
            self.file = open(self.part, "wb")
            self.file.write(b" " * HEADER_BYTES)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {reason(error)}") from None

    def __len__(self) -> int:
        return self.count + len(self.buffer)

    def write(self, ids: list[int]) -> None:
        self.buffer += ids
        if len(self.buffer) >= BUFFER:
            self._flush()

    def move_tail(self, to: "TokenWriter", fraction: float) -> None:
        """Take the last `fraction` of what was written away and write it to another file, in bounded pieces."""
        self._flush()
        self.file.flush()
        keep = self.count - round(self.count * fraction)
        with open(self.part, "rb") as file:
            file.seek(HEADER_BYTES + keep * self.dtype.itemsize)
            while data := file.read(BUFFER * self.dtype.itemsize):
                to.write(np.frombuffer(data, self.dtype).tolist())
        self.file.truncate(HEADER_BYTES + keep * self.dtype.itemsize)
        self.file.seek(0, os.SEEK_END)
        self.count = keep

    def _flush(self) -> None:
        try:
            self.file.write(np.asarray(self.buffer, dtype=self.dtype).tobytes())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {reason(error)}") from None
        self.count += len(self.buffer)
        self.buffer = []

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            with contextlib.suppress(OSError):  # a full disk has been reported already
                self.file.close()
            self.part.unlink(missing_ok=True)

    def close(self) -> None:
        self._flush()
        try:
            self.file.flush()
            with open(self.part, "rb") as written:
                written.seek(HEADER_BYTES)
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            self.file.seek(0)
            self.file.write(json.dumps({**self.header, "count": self.count, "sha256": digest}).encode().ljust(HEADER_BYTES))
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.part, self.path)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {reason(error)}") from None


class TokenFile:
    """A complete token file, checked against its header and the tokenizer; `ids` is the memory map."""

    def __init__(self, path: Path, tokenizer: Tokenizer):
        self.path, self.header = path, read_header(path)
        dtype = np.dtype(self.header["dtype"]).newbyteorder("<")
        expected = HEADER_BYTES + self.header["count"] * dtype.itemsize
        if path.stat().st_size != expected:
            raise UserError(f"{path}: has {path.stat().st_size} bytes where its header says {expected}; delete it")
        if self.header["tokenizer"] != tokenizer.sha256:
            raise UserError(f"{path}: was written with another tokenizer; delete it or give that tokenizer")
        self.ids = (np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES) if self.header["count"]
                    else np.empty(0, dtype))

    def __len__(self) -> int:
        return self.header["count"]


def read_header(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(HEADER_BYTES))
        if header["format"] == FORMAT and header["dtype"] in ("uint16", "uint32") and header["count"] >= 0:
            return header
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}: is no token file of this version; delete it and run train.py again")
