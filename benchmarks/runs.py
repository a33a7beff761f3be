"""What the benchmarks share: commands run in processes of their own, what these logged and took, a mean with its spread."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def at_least_one(text: str) -> int:
    """An argument that is counted from 1 on, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def timed(*command: str) -> tuple[float, float]:
    """(seconds, peak GiB resident) of one finished command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def alone(module: str, *arguments: str, **environment: str) -> dict:
    """The JSON object that `python -m benchmarks.MODULE …` prints last, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], cwd=ROOT, env={**os.environ, **environment},
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"benchmarks.{module} {' '.join(arguments)}: ended with code {done.returncode}, for the reason above")
    return json.loads(done.stdout.splitlines()[-1])


def kept(file: Path, key: str, measure: Callable[[], Sequence[float]]) -> list[float]:
    """What `measure` gives, or gave before: rows stay in `file`, so that a comparison of hours goes on where it was cut off."""
    rows = dict(json.loads(line) for line in file.read_text().splitlines()) if file.exists() else {}
    if key not in rows:
        rows[key] = list(measure())
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(json.dumps([key, rows[key]]) + "\n")
    return rows[key]


def peak_bytes() -> int:
    """The largest resident size of this process alone: getrusage's would begin with that of the process that started it."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def records(folder: Path) -> list[dict]:
    """The steps' numbers, as a run logged them."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation; the mean alone of one value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def between(values: Sequence[float], digits: int = 2) -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
