"""What a run says while it works: a progress bar, `metrics.jsonl`, and TensorBoard.

`metrics.jsonl` has one object a line: `step`, `loss`, `lr`, `grad_norm`, `tokens_per_s`, and
`val_loss` where there was an evaluation (step 0 has nothing else); a line with `changed` says what of the recipe
is another one from its step on. It is the record; the TensorBoard
events show the same numbers, with sample answers and attention maps beside them.
"""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minialpaca import parallel
from minialpaca.errors import UserError, reason
from minialpaca.storage.place import BOARD, METRICS, PART

PLAIN_LINE_EVERY = 15.0  # seconds between plain progress lines where the output is no terminal


class PlainBar:
    """tqdm's stand-in for logs and pipes: a whole line now and then, with the time that is left."""

    def __init__(self, total: int, name: str, unit: str, done: int = 0):
        self.total, self.name, self.unit, self.n, self.first = total, name, unit, done, done
        self.started = self.said = time.monotonic()
        self.about = ""

    def update(self, n: int = 1) -> None:
        self.n += n
        if time.monotonic() - self.said >= PLAIN_LINE_EVERY or (self.n == self.total and n):
            self._say()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.about = text

    def _say(self) -> None:
        self.said = time.monotonic()
        spent, done = self.said - self.started, self.n - self.first
        left = spent / done * (self.total - self.n) if done else 0.0
        print(f"{self.name} {self.n:,}/{self.total:,} {self.unit}, {_clock(spent)} spent, {_clock(left)} left"
              f"{', ' + self.about if self.about else ''}", flush=True)

    def write(self, text: str) -> None:
        print(text, flush=True)

    def __enter__(self) -> "PlainBar":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        pass


def progress(name: str, total: int, unit: str, done: int = 0):
    """A tqdm bar with ETA on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty() and parallel.is_first():
        return tqdm(total=total, initial=done, desc=name, unit=unit, unit_scale=unit == "B", dynamic_ncols=True)
    return PlainBar(total, name, unit, done)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def kept(path: Path, step: int) -> tuple[list[bytes], str]:
    """The lines of a log up to a step, and what is to be said of it; a line that is no record of a step is refused."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if not step:
        return [], f"note: {path}: its {len(lines):,} records are of a run that has no checkpoint and begins anew" * (len(lines) > 1)
    steps = [_step_of(path, line, i) if line.endswith(b"\n") else math.inf for i, line in enumerate(lines, 1)]
    lost = step + 1 - len({its for its in steps if 0 <= its <= step})
    note = f"note: {path}: has lost {lost:,} of the {step + 1:,} records before its checkpoint; the run goes on without them" if lost else ""
    return [line for line, its in zip(lines, steps) if its <= step], note


def _step_of(path: Path, line: bytes, number: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        raise UserError(f"{path}, line {number}: is no record of a step; mend it or remove the line") from None


class RunLog:
    """The log of one run folder, going on behind `step` if there is one already."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # 1 s of imports that a failing config need not wait for

        self.path = folder / METRICS
        try:
            self._forget_after(step)
            self.file = open(self.path, "a", encoding="utf-8")
            self.board = SummaryWriter(str(folder / BOARD), purge_step=step + 1 if step else 0)
        except OSError as error:
            raise UserError(f"{folder}: the log cannot be written: {reason(error)}; let it be written, or choose another run.dir") from None

    def _forget_after(self, step: int) -> None:
        """Drop what a killed run logged after its last checkpoint; those steps are about to be repeated."""
        lines, note = kept(self.path, step)
        if note:
            print(note)
        part = self.path.with_name(self.path.name + PART)
        part.write_bytes(b"".join(lines))
        os.replace(part, self.path)

    def metrics(self, record: dict[str, float]) -> None:
        """One line in metrics.jsonl, one point in each TensorBoard curve."""
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {reason(error)}") from None
        for name, value in record.items():
            if name != "step":
                self.board.add_scalar(name, value, record["step"])

    def note(self, record: dict) -> None:
        """A line that is no step's numbers but holds from its step on; once, however often the run is continued there."""
        line = json.dumps(record, ensure_ascii=False)
        print(f"note: from step {record['step']:,} on: {'; '.join(record['changed'])} ({record['note']})")
        try:
            if line not in self.path.read_text(encoding="utf-8").splitlines():
                self.file.write(line + "\n")
                self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {reason(error)}") from None
        self.board.add_text("recipe", line, record["step"])

    def text(self, name: str, text: str, step: int) -> None:
        self.board.add_text(name, text, step)

    def image(self, name: str, pixels_HWC: np.ndarray, step: int) -> None:
        self.board.add_image(name, pixels_HWC, step, dataformats="HWC")

    def flush(self) -> None:
        """TensorBoard writes in a thread of its own; what waits there a kill would lose."""
        self.board.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # every line was flushed as it came, or its fault was reported then
            self.file.close()
        self.board.close()


class NoLog:
    """Of the processes beside the first: nothing is written twice."""

    def metrics(self, record: dict[str, float]) -> None:
        pass

    def note(self, record: dict) -> None:
        pass

    def text(self, name: str, text: str, step: int) -> None:
        pass

    def image(self, name: str, pixels_HWC: np.ndarray, step: int) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def visible(text: str) -> str:
    """Control characters (C0, DEL, C1) other than newline and tab as \\x1b, for terminals that would obey them."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def table(rows: list[tuple], heads: tuple[str, ...]) -> str:
    """Rows in columns: texts to the left, numbers to the right."""
    cells = [heads, *(tuple(f"{c:,}" if isinstance(c, int) else f"{c:.3f}" if isinstance(c, float) else str(c)
                            for c in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    numeric = [bool(rows) and not isinstance(rows[0][i], str) for i in range(len(heads))]
    return "\n".join("  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric)).rstrip()
                     for row in cells)


def markdown(rows: Sequence[Sequence], heads: Sequence[str]) -> str:
    """The same for TensorBoard."""
    told = [[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    cells = [heads, ["---"] * len(heads), *told]
    return "\n".join("| " + " | ".join(c.replace("|", "&#124;") for c in row) + " |" for row in cells)
