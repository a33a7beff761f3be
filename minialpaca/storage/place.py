"""Where a run lies, and what stands there: looked at before anything is written.

    config.toml  tokenizer.model  labels.json  metrics.jsonl  .lock     files
    checkpoints/  tensorboard/  tokens/                                 folders
"""

import os
from pathlib import Path

from minialpaca.errors import UserError, reason

CONFIG, TOKENIZER, LABELS, METRICS, LOCK = "config.toml", "tokenizer.model", "labels.json", "metrics.jsonl", ".lock"
CHECKPOINTS, BOARD, TOKENS = "checkpoints", "tensorboard", "tokens"
FILES, FOLDERS = (CONFIG, TOKENIZER, LABELS, METRICS, LOCK), (CHECKPOINTS, BOARD, TOKENS)
PROBE, PART = ".probe", ".part"  # written for a moment
WRITTEN = (*FILES, PROBE, CONFIG + PART, METRICS + PART)


def refuse_unwritable(folder: Path, mend: str) -> None:
    """A path that cannot be a run folder, or one with something else where the run writes. `mend`: what to do about it."""
    nearest = _nearest(folder, mend)
    if not nearest.is_dir():
        what = "is no folder" if nearest.exists() else f"is a link to {os.readlink(nearest)}, which is not there"
        raise UserError(f"{folder}: cannot be a run folder: {nearest} {what}; {mend}")
    _refuse_inside(folder, mend)
    for place in (nearest, *(folder / name for name in FOLDERS if (folder / name).is_dir())):
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: the run folder cannot be written: {place} is read-only for you; {mend}")
    for name in WRITTEN:
        _refuse_kind(folder / name, (folder / name).is_file(), "a file", mend)
    for name in FOLDERS:
        _refuse_kind(folder / name, (folder / name).is_dir(), "a folder", mend)
    _refuse_foreign(folder, mend)


def _refuse_inside(folder: Path, mend: str) -> None:
    """What lies among the checkpoints of another run goes with them."""
    here = folder.resolve()
    for around in here.parents:
        if (around / CONFIG).is_file() and here.relative_to(around).parts[0] in FOLDERS:
            raise UserError(f"{folder}: lies in {around}, which is a run, whose folders are its own; {mend}")


def _refuse_foreign(folder: Path, mend: str) -> None:
    """Files that a run would write over, where none has been: even a dead one leaves its lock's file."""
    if (folder / CONFIG).exists() or (folder / LOCK).exists():
        return
    for name in (*WRITTEN, *FOLDERS):
        if (folder / name).exists():
            raise UserError(f"{folder / name}: is there already and of no run, and a run would write over it; move it away, or {mend}")


def _nearest(folder: Path, mend: str) -> Path:
    """The folder itself, or what of its path is there."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            os.lstat(place)
            return place
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"{folder}: cannot be a run folder: {reason(error)}; {mend}") from None
    return folder.absolute()


def _refuse_kind(place: Path, fits: bool, kind: str, mend: str) -> None:
    if os.path.lexists(place) and not fits:
        raise UserError(f"{place}: is not {kind}, as it has to be in a run folder; move it away, or {mend}")
