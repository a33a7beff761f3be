"""Files as they come: cut off, with flipped bits, of another encoding, of another kind, empty, huge. What do the scripts say?

    python -m benchmarks.broken_inputs --cases 1000

A case breaks one file (a config, a data file, a file of a base run, of a run to be continued, of an adapter) and runs the script
that reads it. Right is one line that begins with «error: » and exit code 2, every file being what it was before, or a run that
ends. Wrong is a traceback, a second line, a changed file, or more than a minute. Which file, how and where is drawn from the case's number.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import finetune
import train
from benchmarks.kills import COMMON, MODEL, write_data
from benchmarks.runs import ROOT
from minialpaca.log import progress
from minialpaca.storage import checkpoint
from minialpaca.trainer import Trainer

TINY = ["run.device=cpu", "train.steps=2", "train.batch_size=4", "train.eval_every=2", "train.eval_batches=1", "samples.count=0"]
PRETRAIN, TUNE, CLASSIFY = (str(ROOT / "configs" / f"{name}.toml") for name in ("pretrain", "alpaca", "classify"))
WRITTEN_ANYHOW = (".lock", "tensorboard")  # beside the inputs, and of no account


class TooLong(BaseException):
    """No `except Exception` may swallow it."""


# ── what is broken ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Reader:
    """A script, its arguments (in the stage folder), and the files there that it reads."""

    main: Callable
    arguments: list[str]
    files: str  # a glob


def readers(stage: Path) -> dict[str, Reader]:
    pretrain = [*TINY, *MODEL, f"run.dir={stage / 'new'}"]
    tune = [*TINY, f"base.run={stage / 'base'}", f"run.dir={stage / 'new'}", "data.val_fraction=0.2"]
    label = [CLASSIFY, *tune, "data.test_source=[]"]
    text, rows, labels = (stage / "data" / name for name in ("text.txt", "rows.json", "labels.csv"))
    return {
        "config of train.py": Reader(train.main, [str(stage / "pretrain.toml"), *pretrain, f"data.source={text}"], "pretrain.toml"),
        "text": Reader(train.main, [PRETRAIN, *pretrain, f"data.source={text}"], "data/text.txt"),
        "packed text": Reader(train.main, [PRETRAIN, *pretrain, f"data.source={text}.gz"], "data/text.txt.gz"),
        "text objects": Reader(train.main, [PRETRAIN, *pretrain, f"data.source={stage / 'data' / 'text.jsonl'}"], "data/text.jsonl"),
        "config of finetune.py": Reader(finetune.main, [str(stage / "tune.toml"), *tune, f"data.source={rows}"], "tune.toml"),
        "rows": Reader(finetune.main, [TUNE, *tune, f"data.source={rows}"], "data/rows.json"),
        "row lines": Reader(finetune.main, [TUNE, *tune, f"data.source={stage / 'data' / 'rows.jsonl'}"], "data/rows.jsonl"),
        "table": Reader(finetune.main, [*label, f"data.source={labels}", "classes.labels=mood"], "data/labels.csv"),
        "base": Reader(finetune.main, [TUNE, *tune, f"data.source={rows}"], "base/**/*"),
        "run to be continued": Reader(train.main, halted_pretraining(stage), "halted/**/*"),
        "adapter to be continued": Reader(finetune.main, halted_tuning(stage), "halted-lora/**/*"),
    }


def halted_pretraining(stage: Path) -> list[str]:
    return [PRETRAIN, *COMMON, *MODEL, "train.steps=4", f"data.source={stage / 'data' / 'text.txt'}", f"run.dir={stage / 'halted'}"]


def halted_tuning(stage: Path) -> list[str]:
    return [TUNE, *COMMON, "train.steps=4", f"base.run={stage / 'base'}", "data.val_fraction=0.2", f"data.source={stage / 'data' / 'rows.json'}",
            "adapter.method=lora", "adapter.rank=2", f"run.dir={stage / 'halted-lora'}"]


def make_stage(stage: Path) -> None:
    """All that the readers read, whole. Its path stands in the runs' configs, so it is always restored to the same place."""
    write_data(stage / "data")
    text = (stage / "data" / "text.txt").read_text(encoding="utf-8")
    (stage / "data" / "text.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (stage / "data" / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text.splitlines()), encoding="utf-8")
    rows = json.loads((stage / "data" / "rows.json").read_text(encoding="utf-8"))
    (stage / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copy(PRETRAIN, stage / "pretrain.toml")
    shutil.copy(TUNE, stage / "tune.toml")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        train.main([PRETRAIN, *TINY, *MODEL, f"data.source={stage / 'data' / 'text.txt'}", f"run.dir={stage / 'base'}"])
        with halting_after(3):
            for main, arguments in ((train.main, halted_pretraining(stage)), (finetune.main, halted_tuning(stage))):
                with contextlib.suppress(InterruptedError, SystemExit):
                    main(arguments)
    for name in ("halted", "halted-lora"):
        place = checkpoint.find(stage / name)
        assert place and checkpoint.read_state(place)["step"] == 2, said.getvalue()


@contextlib.contextmanager
def halting_after(step: int) -> Iterator[None]:
    take = Trainer.take_step

    def halting(trainer):
        if trainer.state["step"] == step:
            raise InterruptedError("enough")
        return take(trainer)

    Trainer.take_step = halting
    try:
        yield
    finally:
        Trainer.take_step = take


# ── how ──────────────────────────────────────────────────────────────────────────────────────────


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[:rng.randrange(len(content) + 1)]


def flip(content: bytes, rng: random.Random) -> bytes:
    broken = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 8, 100))):
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    return bytes(broken)


def recode(content: bytes, rng: random.Random) -> bytes:
    return content.decode("utf-8", errors="replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "cp037")), errors="replace")


def swell(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice((b"[", b"9", b"a", b"\n", b"\0", '"漢'.encode())) * 300_000 + content[at:]


def other_kind(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"null", b"[]", b"{}", b"[1, 2]", b'{"step": "x"}', b'{"files": 1}', b"3", b'"text"', b"\x80\x02cos\nsystem\n.",
                       b"PK\x03\x04", b"a = [", b"[run]\ndir = 1\n", b"[model]\nn_layers = -1\n", b"\xff\xfe\x00"))


def scatter(content: bytes, rng: random.Random) -> bytes:
    """A value somewhere becomes another one."""
    words = content.split(b" ")
    for _ in range(rng.choice((1, 3))):
        words[rng.randrange(len(words))] = rng.choice((b"-1", b"1e999", b"NaN", b"true", b"null", b"''", b"\n", b"99999999999999999999", b'"x"'))
    return b" ".join(words)


WAYS = (cut, flip, recode, swell, other_kind, scatter, lambda content, rng: b"")


# ── a case ───────────────────────────────────────────────────────────────────────────────────────


def prints(stage: Path) -> dict[str, str]:
    return {str(p.relative_to(stage)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(stage.rglob("*"))
            if p.is_file() and not any(part in WRITTEN_ANYHOW for part in p.relative_to(stage).parts)}


def outcome_of(reader: Reader) -> tuple[int, str, str]:
    """(exit code, stderr, traceback)."""
    def late(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        try:
            with contextlib.redirect_stdout(io.StringIO()), everything_on_stderr(err):
                reader.main(reader.arguments)
            code, trace = 0, ""
        except SystemExit as stop:
            code, trace = stop.code or 0, ""
        except TooLong:
            code, trace = -1, "more than a minute"
        except Exception:
            code, trace = 1, traceback.format_exc()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        err.seek(0)
        return code, err.read() if code else "", trace


@contextlib.contextmanager
def everything_on_stderr(file: TextIO) -> Iterator[None]:
    """Also what libraries write there behind Python's back."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        with contextlib.redirect_stderr(file):
            yield
    finally:
        file.flush()
        os.dup2(kept, 2)
        os.close(kept)


def case(number: int, whole: Path, stage: Path) -> tuple[str, str, str]:
    """(reader, what came of it: `refused`, `ran` or `wrong`, and what was broken or wrong)."""
    rng = random.Random(number)
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(whole, stage)
    name, reader = rng.choice(list(readers(stage).items()))
    files = [p for p in sorted(stage.glob(reader.files)) if p.is_file() and not any(part in WRITTEN_ANYHOW for part in p.parts)]
    file, way = rng.choice(files), rng.choice(WAYS)
    file.write_bytes(way(file.read_bytes(), rng))
    before = prints(stage)
    code, err, trace = outcome_of(reader)
    what = f"case {number}: {name}, {file.relative_to(stage)}, {way.__name__}"
    if trace or code not in (0, 2):
        return name, "wrong", f"{what}: {trace or f'exit code {code}'}"
    if code == 0:
        return name, "ran", what
    if not err.startswith("error: ") or err.find("\n") != len(err) - 1:
        return name, "wrong", f"{what}: {err[:500]!r}"
    after = prints(stage)
    if before != after:
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        return name, "wrong", f"{what}: refused ({err.strip()[:200]}), and changed {', '.join(changed)}"
    return name, "refused", f"{what}: {err.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--tell", action="store_true", help="each case, not only the wrong ones")
    args = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as place, progress("breaking", args.cases, "cases") as bar:
        stage, whole = Path(place) / "stage", Path(place) / "whole"
        make_stage(stage)
        shutil.copytree(stage, whole)
        for number in range(args.first, args.first + args.cases):
            name, verdict, what = case(number, whole, stage)
            counts[name, verdict] += 1
            if args.tell or verdict == "wrong":
                bar.write(f"{verdict}: {what}")
            bar.update(1)
    print("| what was broken | refused in one line | ran to the end | wrong |\n|---|---|---|---|")
    for name in sorted({name for name, _ in counts}):
        print(f"| {name} | " + " | ".join(str(counts[name, verdict]) for verdict in ("refused", "ran", "wrong")) + " |")


if __name__ == "__main__":
    main()
