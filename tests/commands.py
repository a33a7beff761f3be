"""train.py and finetune.py as a user calls them, in this process."""

from pathlib import Path

from running import Outcome, in_process

import finetune
import train


def pretrain(command: list[str], folder: Path, *changes: str) -> Outcome:
    return in_process(train.main, [*command, f"run.dir={folder}", *changes])


def tune(command: list[str], folder: Path, *changes: str) -> Outcome:
    return in_process(finetune.main, [*command, f"run.dir={folder}", *changes])


def is_no_run(folder: Path) -> bool:
    """Nothing was left behind."""
    return not folder.exists()
