"""Calling the scripts from tests, and asking what came of it: in this process where that will do, in one of its own where it has to die."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from minialpaca.errors import UserError

ROOT = Path(__file__).parent.parent

TINY_PRETRAIN = """
[run]
device = "cpu"
[data]
documents = "line"
val_fraction = 0.1
[tokenizer]
vocab_size = 512
[model]
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 24
max_seq_len = 96
[optim]
lr = 0.01
warmup_steps = 3
[train]
steps = 6
batch_size = 4
eval_every = 4
eval_batches = 2
[samples]
count = 1
max_new_tokens = 4
"""

TINY_FINETUNE = """
[run]
device = "cpu"
[data]
val_fraction = 0.2
[optim]
lr = 0.01
warmup_steps = 3
[train]
steps = 6
batch_size = 4
eval_every = 4
[samples]
count = 2
max_new_tokens = 4
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def in_process(main: Callable, arguments: Sequence[str] | None = None, stdin: str = "") -> Outcome:
    """Run a script's `main` with these arguments; None leaves them to sys.argv."""
    out, err, old_stdin = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(*([] if arguments is None else [list(arguments)]))
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdin = old_stdin
    return Outcome(code, out.getvalue(), err.getvalue())


def module(main: Callable, monkeypatch, *arguments, stdin: str = "") -> Outcome:
    """Run the `main` of a `python -m …`."""
    monkeypatch.setattr(sys, "argv", ["python -m", *map(str, arguments)])
    return in_process(main, stdin=stdin)


def own_process(code: str, arguments: Sequence[str]) -> subprocess.CompletedProcess:
    """Run Python `code` in the project's folder."""
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=300)


def refused(outcome: Outcome, *parts: str) -> str:
    """The one line that a script ended with because of bad input; it has to contain `parts`."""
    assert outcome.code == 2, (outcome.code, outcome.err)
    assert outcome.err.startswith("error: ") and outcome.err.find("\n") == len(outcome.err) - 1, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    for part in parts:
        assert part in outcome.err, (part, outcome.err)
    return outcome.err


def refusal(call: Callable[[], object], *parts: str) -> str:
    """The message of the UserError that `call` raises: one line that contains `parts`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, (part, message)
    return message


def written(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    """A file as a user would have it, in folders that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
