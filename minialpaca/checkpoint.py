"""Checkpoints: one folder per step, complete or not there.

    checkpoints/step-000200/model.pt        the weights
                            optimizer.pt    AdamW's moments
                            state.json      step, best loss, counters
                            manifest.json   sizes and SHA-256 of the others, written last
    checkpoints/last, checkpoints/best      the name of a step folder

A folder is written under a temporary name, synced, and renamed when its manifest is in it; the
pointers move after that, and only then does an old folder go. Loading runs no code:
`weights_only=True` for tensors, JSON for the rest.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from minialpaca.errors import UserError, reason

FOLDER, TEMPORARY = "checkpoints", ".writing-"


def save(run: Path, step: int, tensors: dict[str, dict], state: dict, best: bool) -> Path:
    """Write a complete checkpoint of `tensors` (file stem → state dict) and plain `state`; point `last` at it."""
    folder = run / FOLDER
    target, part = folder / f"step-{step:06d}", folder / f"{TEMPORARY}step-{step:06d}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for stem, content in tensors.items():
            torch.save(content, part / f"{stem}.pt")
        (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
        manifest = {"format": 1, "files": {f.name: _facts(f) for f in sorted(part.iterdir())}}
        for file in part.iterdir():
            _sync(file)
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(part / "manifest.json")
        if target.exists():  # the same step again, after a resume from an earlier one
            shutil.rmtree(target)
        os.replace(part, target)
        _sync(folder)
        for name in ("best", "last") if best else ("last",):  # `last` at the end: who resumes there has its best
            _point(folder / name, target.name)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        why = reason(error) if isinstance(error, OSError) else str(error).splitlines()[0]
        raise UserError(f"{target}: the checkpoint cannot be written: {why}; the one before is untouched") from None
    _clean(folder)
    return target


def find(run: Path, name: str = "last") -> Path | None:
    """The step folder that `last` or `best` points at, None where nothing was saved yet."""
    pointer = run / FOLDER / name
    if not pointer.is_file():
        return None
    folder = run / FOLDER / Path(pointer.read_text(encoding="utf-8").strip()).name  # a name, never a path out of here
    if not folder.name.startswith("step-") or not (folder / "manifest.json").is_file():
        raise UserError(f"{pointer}: points at {folder.name}, which is no complete checkpoint")
    return folder


def verify(folder: Path) -> None:
    """Compare every file with the manifest."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, facts in manifest["files"].items():
            if _facts(folder / Path(name).name) != facts:
                raise UserError(f"{folder / name}: differs from the checkpoint's manifest; it was changed or damaged")
    except OSError as error:
        raise UserError(f"{folder}: the checkpoint is incomplete: {error.filename}: {reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / 'manifest.json'}: is no manifest; the checkpoint is damaged") from None


def read_state(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def read_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """A state dict, on the CPU; the file's bytes were compared with the manifest by `verify`."""
    try:
        return torch.load(folder / f"{stem}.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a file that is no checkpoint
        raise UserError(f"{folder / stem}.pt: cannot be loaded: {str(error).splitlines()[0][:200]}") from None


def _facts(file: Path) -> dict:
    with open(file, "rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(pointer: Path, name: str) -> None:
    part = pointer.with_name(TEMPORARY + pointer.name)
    part.write_text(name + "\n", encoding="utf-8")
    _sync(part)
    os.replace(part, pointer)
    _sync(pointer.parent)


def _clean(folder: Path) -> None:
    """Remove step folders that no pointer names, and what dead runs left half-written."""
    kept = {p.read_text(encoding="utf-8").strip() for p in (folder / "last", folder / "best") if p.is_file()}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in kept and entry.name.startswith(("step-", TEMPORARY)):
            shutil.rmtree(entry, ignore_errors=True)
