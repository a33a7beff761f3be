"""Checkpoints: one folder per step, complete or not there.

    checkpoints/step-000200/model.pt        the weights
                            optimizer.pt    AdamW's moments
                            state.json      step, best loss, counters
                            manifest.json   sizes and SHA-256 of the others, written last
    checkpoints/last, checkpoints/best      the name of a step folder

Where weights are dealt out to processes (shards.py), each writes its rows: model-0-of-2.pt, model-1-of-2.pt. A folder is written under a temporary name, read back, synced, and renamed when its manifest is in it; the pointers move
after that, and only then does an old folder go. Loading runs no code: `weights_only=True` for tensors, JSON for the rest.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minialpaca.errors import UserError, reason
from minialpaca.shards import joined
from minialpaca.storage import durable, space
from minialpaca.storage.crew import Alone
from minialpaca.storage.place import CHECKPOINTS as FOLDER

TEMPORARY, ASIDE, MANIFEST = ".writing-", ".replaced-", "manifest.json"
STEMS, STATE = ("model", "optimizer"), "state.json"
NAME, PART = re.compile(r"step-\d{6,18}"), re.compile(r"-\d{1,6}-of-(\d{1,6})\.pt")
MEND = "put a copy of it back, or delete its folder to go on from an earlier one"


def save(run: Path, step: int, tensors: dict[str, dict], state: dict, best: bool, keep: int = 1,
         abandoned: Callable[[], bool] = lambda: False, crew: Alone = Alone()) -> Path:
    """Write a complete checkpoint of `tensors` (file stem → state dict) and plain `state`; point `last` at it.

    The newest `keep` stay, and `best`. Once `abandoned` says so, the writing ends as if it had failed. Each of a crew brings its part
    of the tensors; the first does the rest.
    """
    folder = run / FOLDER
    target, part = folder / f"step-{step:06d}", folder / f"{TEMPORARY}step-{step:06d}"
    try:
        crew.first(lambda: _begin(part, crew.size * space.size_of(tensors), f"the checkpoint of step {step:,}"))
        written = crew.each(lambda: _write_tensors(part, tensors, abandoned, crew))
        crew.first(lambda: _end(part, target, dict(itertools.chain.from_iterable(facts.items() for facts in written)), state, best))
    except (OSError, RuntimeError, UserError, durable.Abandoned) as error:
        if crew.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            with contextlib.suppress(OSError):
                recover(run)
        if isinstance(error, (UserError, durable.Abandoned)):
            raise
        raise UserError(f"{target}: the checkpoint cannot be written: {_why(error)}; the one before is untouched") from None
    if crew.rank == 0:
        clean(run, keep)
    return target


def _begin(part: Path, needed: int, what: str) -> None:
    space.refuse_little(part.parents[1], needed, what)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)


def _write_tensors(part: Path, tensors: dict[str, dict], abandoned: Callable[[], bool], crew: Alone) -> dict[str, dict]:
    """This process's files; what the manifest is to say of each."""
    facts = {}
    for stem, content in tensors.items():
        _refuse_objects(stem, content)
        name = f"{stem}.pt" if crew.size == 1 else f"{stem}-{crew.rank}-of-{crew.size}.pt"
        with durable.Writer(part / name, abandoned, space.tensors_in(content)) as out:
            torch.save(content, out)
        facts[name] = out.facts
    return facts


def _end(part: Path, target: Path, facts: dict[str, dict], state: dict, best: bool) -> None:
    """The other files, the manifest last; then the folder's name, and the pointers to it."""
    for name, fact in facts.items():
        if not (part / name).is_file() or (part / name).stat().st_size != fact["bytes"]:
            raise UserError(f"{part / name}: was written by another process and is not seen by the first one; choose a run.dir that all "
                            "processes share")
    facts[STATE] = durable.write(part / STATE, json.dumps(state))
    durable.write(part / MANIFEST, json.dumps({"format": 1, "files": facts}, indent=1))
    durable.sync(part)
    _put(part, target)
    for name in ("best", "last") if best else ("last",):  # `last` at the end: who resumes there has its best
        point(target.parent / name, target.name)


def _refuse_objects(stem: str, content) -> None:
    """Loading would refuse them, when the checkpoint before is long gone."""
    for part in content.values() if isinstance(content, dict) else content:
        if isinstance(part, (dict, list, tuple)):
            _refuse_objects(stem, part)
        elif not isinstance(part, (Tensor, int, float, str, type(None))) or isinstance(part, np.generic):
            raise TypeError(f"{stem} holds a {type(part).__name__}, which is no tensor, number or text")


def _put(part: Path, target: Path) -> None:
    """Give the folder its name. One that has it already (the same step, after a resume from an earlier one) may be `best` or
    `last`: it stays within reach of `recover` until the new one is there."""
    aside = target.with_name(ASIDE + target.name)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(target, aside)
    os.replace(part, target)
    durable.sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover(run: Path) -> None:
    """What a dead run left: a folder that was set aside for one that never came is put back, half-written ones go.

    Only for who holds the run's lock: a living run writes under these names.
    """
    folder = run / FOLDER
    for entry in list(folder.iterdir()) if folder.is_dir() else ():
        if entry.name.startswith(ASIDE) and not (target := folder / entry.name.removeprefix(ASIDE)).exists():
            os.replace(entry, target)
        elif entry.name.startswith((ASIDE, TEMPORARY)):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()


def find(run: Path, name: str = "last") -> Path | None:
    """The step folder that `last` or `best` points at, None where nothing was saved yet."""
    pointer = run / FOLDER / name
    if pointer.exists() and not pointer.is_file():  # of a pipe the reading would not end
        raise UserError(f"{pointer}: is no file; delete it{_goes_on(run)}")
    try:
        target = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{pointer}: cannot be read: {reason(error)}; let it be read, or delete it{_goes_on(run)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{pointer}: holds no name of a checkpoint; delete it{_goes_on(run)}") from None
    if not NAME.fullmatch(target) or not (run / FOLDER / target / MANIFEST).is_file():  # a name, never a path out of here
        what = f"points at {ascii(target)[1:-1][:60]}, which is no complete checkpoint" if target else "is empty"
        raise UserError(f"{pointer}: {what}; delete it{_goes_on(run)}")
    return run / FOLDER / target


def _goes_on(run: Path) -> str:
    """What then becomes of the run."""
    if any((place / MANIFEST).is_file() for place in steps(run)):
        return ", and training goes on from the newest whole checkpoint"
    return " to begin the run anew, for it has no other checkpoint; or put one back"


def steps(run: Path) -> list[Path]:
    """All step folders, whole or not, the newest last."""
    return sorted((p for p in (run / FOLDER).glob("step-*") if NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


def verify(folder: Path) -> None:
    """Compare every file with the manifest."""
    files = listed(folder)
    lacking = [f"{stem}.pt" for stem in STEMS if not files_of(stem, files)] + [STATE] * (STATE not in files)
    if lacking:
        raise UserError(f"{folder / MANIFEST}: lists no {lacking[0]}; the checkpoint is damaged; {MEND}")
    try:
        for name, facts in files.items():
            if _facts(folder / Path(name).name) != facts:
                raise UserError(f"{folder / name}: differs from the checkpoint's manifest; it was changed or damaged; {MEND}")
    except OSError as error:
        raise UserError(f"{folder}: the checkpoint is incomplete: {error.filename}: {reason(error)}; {MEND}") from None
    except ValueError:  # a name with a NUL
        raise UserError(f"{folder / MANIFEST}: is no manifest; the checkpoint is damaged; {MEND}") from None


def is_count(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def is_dict(value) -> bool:
    return isinstance(value, dict)


COUNTERS = {  # of state.json, and what they may be
    "step": is_count, "evaluations_without_gain": is_count, "examples": is_count, "best_step": lambda value: value is None or is_count(value),
    "stopped_early": lambda value: type(value) is bool,
    "best": lambda value: value is None or type(value) in (int, float) and value == value,
    "recipe": is_dict, "labels": is_dict, "surroundings": is_dict, "scaler": is_dict, "changes": lambda value: isinstance(value, list),
}


def listed(folder: Path) -> dict[str, dict]:
    """The files of a checkpoint, as its manifest has them; a file beside these is none of it."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name: dict(facts) for name, facts in files.items()}
    except OSError as error:
        raise UserError(f"{folder}: the checkpoint is incomplete: {error.filename}: {reason(error)}; {MEND}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{folder / MANIFEST}: is no manifest; the checkpoint is damaged; {MEND}") from None


def read_state(folder: Path) -> dict:
    place = folder / "state.json"
    try:
        state = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {reason(error)}; the checkpoint is incomplete; {MEND}") from None
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict) or not all(is_right(state[key]) for key, is_right in COUNTERS.items() if key in state):
        raise UserError(f"{place}: is no state of a run; the checkpoint is damaged; {MEND}")
    return state


def files_of(stem: str, names: Collection[str]) -> list[str]:
    """Which of these files hold it, in the order of processes; none where one is lacking."""
    if f"{stem}.pt" in names:
        return [f"{stem}.pt"]
    sizes = {int(found[1]) for name in names if name.startswith(stem) and (found := PART.fullmatch(name, len(stem)))}
    for size in sizes:
        wanted = [f"{stem}-{rank}-of-{size}.pt" for rank in range(size)]
        if set(wanted) <= set(names):
            return wanted
    return []


def read_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """A state dict, whole, on the CPU; the files' bytes were compared with the manifest by `verify`."""
    names = files_of(stem, listed(folder)) or [f"{stem}.pt"]
    try:
        return joined([_load(folder / name) for name in names])
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError):
        raise UserError(f"{folder / names[0]}: does not fit {', '.join(names[1:])}; the checkpoint is damaged; {MEND}") from None


def _load(place: Path) -> dict:
    try:
        with warnings.catch_warnings():  # of a pickle's kind, before it is refused
            warnings.simplefilter("ignore")
            return torch.load(place, map_location="cpu", weights_only=True)
    except Exception:  # torch raises half a dozen kinds for a file that is no checkpoint, and advises what must not be done
        raise UserError(f"{place}: cannot be loaded: it is damaged, or holds something else than tensors; {MEND}") from None


def restore(folder: Path, stem: str, into: nn.Module | torch.optim.Optimizer, part: Callable[[dict], dict] = dict) -> None:
    """Give a model or an optimizer back the state that was saved of it, or `part` of that."""
    content = read_tensors(folder, stem)
    try:
        into.load_state_dict(part(content))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: does not fit the {stem} of its config.toml: {' '.join(str(error).split())[:300]}; put back what the "
                        "run wrote, or choose another run.dir") from None


# ── pointers ─────────────────────────────────────────────────────────────────────────────────────


def clean(run: Path, keep: int = 1) -> None:
    """Remove step folders but `best`, `last` and the newest `keep`, and what dead runs left half-written."""
    last, best = find(run, "last"), find(run, "best")
    kept = {last, best}
    if last:  # what is newer than `last` was never pointed at, so it is no checkpoint of this run
        whole = [place for place in steps(run) if (place / MANIFEST).is_file()]
        kept |= set(whole[:whole.index(last) + 1][-keep:])
    for entry in (run / FOLDER).iterdir():
        ours = NAME.fullmatch(entry.name) or entry.name.startswith(TEMPORARY)  # a copy that somebody made has another name
        if ours and entry.is_dir() and entry not in kept:
            _remove(entry)


def _remove(entry: Path) -> None:
    """Under a temporary name, so that a kill leaves no half of a checkpoint."""
    if not entry.name.startswith(TEMPORARY):
        gone = entry.with_name(f"{TEMPORARY}gone-{entry.name}")
        with contextlib.suppress(OSError):
            entry = entry.rename(gone)
    shutil.rmtree(entry, ignore_errors=True)


def point_back(run: Path, last: Path, best_step: int | None) -> None:
    """A kill between the two pointers leaves a `best` that is newer than `last`: it is what it was when that was saved."""
    best, before = find(run, "best"), run / FOLDER / f"step-{best_step or 0:06d}"
    if best and int(best.name[5:]) > int(last.name[5:]):
        if best_step is not None and (before / MANIFEST).is_file():
            point(run / FOLDER / "best", before.name)
        else:
            (run / FOLDER / "best").unlink()


def point(pointer: Path, name: str) -> None:
    part = pointer.with_name(TEMPORARY + pointer.name)
    durable.write(part, name + "\n")
    os.replace(part, pointer)
    durable.sync(pointer.parent)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def _facts(file: Path) -> dict:
    with open(file, "rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def _why(error: OSError | RuntimeError) -> str:
    """torch.save tells a full disk as `[enforce fail at inline_container.cc:…] . unexpected pos 64 vs 0`."""
    if isinstance(error, OSError):
        return reason(error)
    if "enforce fail" in str(error) or "PytorchStreamWriter" in str(error):
        return "no space left, or the disk failed"
    return str(error).splitlines()[0]
