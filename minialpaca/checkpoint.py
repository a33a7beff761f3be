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
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from minialpaca.errors import UserError, reason

FOLDER, TEMPORARY, MANIFEST = "checkpoints", ".writing-", "manifest.json"
FILES = {"model.pt", "optimizer.pt", "state.json"}
NAME = re.compile(r"step-\d{6,18}")
MENDING = "delete it, and training goes on from the newest whole checkpoint"


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
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(part / MANIFEST)
        if target.exists():  # the same step again, after a resume from an earlier one
            shutil.rmtree(target)
        os.replace(part, target)
        _sync(folder)
        for name in ("best", "last") if best else ("last",):  # `last` at the end: who resumes there has its best
            point(folder / name, target.name)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{target}: the checkpoint cannot be written: {_why(error)}; the one before is untouched") from None
    clean(run)
    return target


def find(run: Path, name: str = "last") -> Path | None:
    """The step folder that `last` or `best` points at, None where nothing was saved yet."""
    pointer = run / FOLDER / name
    try:
        target = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{pointer}: cannot be read: {reason(error)}; {MENDING}") from None
    except UnicodeDecodeError:
        raise UserError(f"{pointer}: holds no name of a checkpoint; {MENDING}") from None
    if not NAME.fullmatch(target) or not (run / FOLDER / target / MANIFEST).is_file():  # a name, never a path out of here
        raise UserError(f"{pointer}: points at {ascii(target)[1:-1][:60]}, which is no complete checkpoint; {MENDING}")
    return run / FOLDER / target


def steps(run: Path) -> list[Path]:
    """All step folders, whole or not, the newest last."""
    return sorted((p for p in (run / FOLDER).glob("step-*") if NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


def verify(folder: Path) -> None:
    """Compare every file with the manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if not FILES <= files.keys():
            raise UserError(f"{folder / MANIFEST}: lists no {min(FILES - files.keys())}; the checkpoint is damaged")
        for name, facts in files.items():
            if _facts(folder / Path(name).name) != facts:
                raise UserError(f"{folder / name}: differs from the checkpoint's manifest; it was changed or damaged")
    except OSError as error:
        raise UserError(f"{folder}: the checkpoint is incomplete: {error.filename}: {reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{folder / MANIFEST}: is no manifest; the checkpoint is damaged") from None


def read_state(folder: Path) -> dict:
    place = folder / "state.json"
    try:
        state = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {reason(error)}; the checkpoint is incomplete") from None
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise UserError(f"{place}: is no state of a run; the checkpoint is damaged")
    return state


def read_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """A state dict, on the CPU; the file's bytes were compared with the manifest by `verify`."""
    try:
        return torch.load(folder / f"{stem}.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a file that is no checkpoint
        raise UserError(f"{folder / stem}.pt: cannot be loaded: {str(error).splitlines()[0][:200]}") from None


def restore(folder: Path, stem: str, into: nn.Module | torch.optim.Optimizer, part: Callable[[dict], dict] = dict) -> None:
    """Give a model or an optimizer back the state that was saved of it, or `part` of that."""
    content = read_tensors(folder, stem)
    try:
        into.load_state_dict(part(content))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: does not fit the {stem} of its config.toml: "
                        f"{' '.join(str(error).split())[:300]}") from None


# ── pointers ─────────────────────────────────────────────────────────────────────────────────────


def clean(run: Path) -> None:
    """Remove step folders that no pointer names, and what dead runs left half-written."""
    kept = {find(run, "last"), find(run, "best")}
    for entry in (run / FOLDER).iterdir():
        if entry.is_dir() and entry not in kept and entry.name.startswith(("step-", TEMPORARY)):
            shutil.rmtree(entry, ignore_errors=True)


def point(pointer: Path, name: str) -> None:
    part = pointer.with_name(TEMPORARY + pointer.name)
    part.write_text(name + "\n", encoding="utf-8")
    _sync(part)
    os.replace(part, pointer)
    _sync(pointer.parent)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def _facts(file: Path) -> dict:
    with open(file, "rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why(error: OSError | RuntimeError) -> str:
    """torch.save tells a full disk as `[enforce fail at inline_container.cc:…] . unexpected pos 64 vs 0`."""
    if isinstance(error, OSError):
        return reason(error)
    if "enforce fail" in str(error) or "PytorchStreamWriter" in str(error):
        return "no space left, or the disk failed"
    return str(error).splitlines()[0]
