"""Room on the disk, asked for before it is needed: a run that ends with a full disk at night has lost the night."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from minialpaca.errors import UserError

AROUND = 1 << 17  # bytes: headers, state.json, manifest.json, and what a file system rounds up


def tensors_in(*contents) -> Iterator[Tensor]:
    """Of nested state dicts."""
    for one in contents:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (dict, list, tuple)):
            yield from tensors_in(*(one.values() if isinstance(one, dict) else one))


def size_of(*contents) -> int:
    """About how many bytes these state dicts take on disk; tensors that share their memory count once."""
    found = {one.data_ptr() or id(one): one.numel() * one.element_size() + 256 for one in tensors_in(*contents)}
    return sum(found.values()) + AROUND


def free(folder: Path) -> int:
    """Bytes that this user may still write where the folder lies, or will lie."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(place).free


def refuse_little(folder: Path, needed: int, what: str) -> None:
    there = free(folder)
    if there < needed:
        raise UserError(f"{folder}: the disk is nearly full: {what} needs {in_words(needed)}, and {in_words(there)} are free; "
                        f"make room for {in_words(needed - there)} more, or choose another run.dir on another disk; what was "
                        "saved is untouched")


def in_words(n: int) -> str:
    return next(f"{n / size:,.1f} {unit}" for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
                if n >= size or unit == "KiB")
