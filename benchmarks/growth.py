"""How cost grows: a training step with context, width, batch and depth, and tokenising with the text.

    python -m benchmarks.growth --axis context --axis width --axis batch --axis layers --rounds 3
    python -m benchmarks.growth --axis text --rounds 1 --text-folder /tmp

A row for each value: seconds of a step (or of the whole text), median with lowest and highest over the rounds; the exponent
p of seconds ~ valueᵖ between this value and the one before, beside it that of the operations that are needed; peak memory above
imports, on CUDA of what was allocated there. Everything but the axis stays: width 384, 6 layers, context 256, 2 rows, vocabulary 8,192, fp32 (`--options bf16+compile`).
Each value is measured in a process of its own, in each round once; the steps of a process are taken after one that is not counted.
"""

import argparse
import dataclasses
import json
import math
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.contestants import Shape
from benchmarks.runs import alone, at_least_one, between, peak_bytes

START = Shape(batch=2)
VALUES = {
    "context": (256, 512, 1024, 2048, 4096, 8192),
    "width": (96, 192, 384, 768, 1536),
    "batch": (1, 2, 4, 8, 16, 32),
    "layers": (3, 6, 12, 24),
    "text": (1, 4, 16, 64, 256, 1024, 4096),  # MB
}
WORDS = 20_000


def shape_of(axis: str, value: int) -> Shape:
    if axis == "width":
        return dataclasses.replace(START, d_model=value, n_heads=max(1, value // 64), d_ff=8 * value // 3)
    return dataclasses.replace(START, **{{"layers": "n_layers"}.get(axis, axis): value})


def step(axis: str, value: int, options: str, device: str) -> dict:
    import torch

    from benchmarks.workloads import training

    above, take = peak_bytes(), training(f"ours:{options}" if options else "ours", shape_of(axis, value), device)
    take(0)
    turn = take(1)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes() - above
    return {"seconds": turn.seconds * shape_of(axis, value).context * shape_of(axis, value).batch / turn.amount, "peak": peak}


def write_text(path: Path, megabytes: int) -> None:
    """Lines of invented words, a few of them very common, as in a language."""
    rng = random.Random(0)
    words = ["".join(rng.choices("aaeeioutnrshldcmpgbk", k=rng.randint(2, 9))) for _ in range(WORDS)]
    likely = [1 / (rank + 3) for rank in range(WORDS)]
    with path.open("w", encoding="utf-8") as out:
        while out.tell() < megabytes * 1_000_000:
            drawn = rng.choices(words, likely, k=100_000)
            out.writelines(" ".join(drawn[i:i + 20]) + "\n" for i in range(0, len(drawn), 20))


def make(megabytes: int, folder: Path) -> dict:
    """A text and a vocabulary for it: in a process of its own, for both take memory."""
    from minialpaca.tokenizer import Tokenizer

    for size in (1, megabytes):
        write_text(folder / f"{size}.txt", size)
    Tokenizer.train((folder / "1.txt").read_text(encoding="utf-8").splitlines(), vocab_size=8192).save(folder / "tokenizer")
    return {}


def tokenise(megabytes: int, folder: Path) -> dict:
    from minialpaca.config import CorpusConfig
    from minialpaca.data import corpus
    from minialpaca.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory(dir=folder) as made:
        alone("growth", "--one", "make", str(megabytes), "--text-folder", made)
        cfg = CorpusConfig(source=(f"{made}/{megabytes}.txt",), documents="line", val_fraction=0.05)
        tokenizer, above, started = Tokenizer.load(Path(made) / "tokenizer"), peak_bytes(), time.perf_counter()
        corpus.prepare(cfg, tokenizer, Path(made) / "tokens")
        return {"seconds": time.perf_counter() - started, "peak": peak_bytes() - above}


def one(axis: str, value: int, args: argparse.Namespace) -> dict:
    if axis == "make":
        return make(value, args.text_folder)
    return tokenise(value, args.text_folder) if axis == "text" else step(axis, value, args.options, args.device)


def exponent(before: float, now: float, value_before: int, value: int) -> str:
    return f"{math.log(now / before) / math.log(value / value_before):.2f}"


def table(axis: str, values: list[int], found: dict[int, list[dict]]) -> None:
    print(f"\n| {axis} | seconds | exponent | of the operations | peak MiB |\n|---|---|---|---|---|")
    for before, value in zip([None, *values], values):
        seconds = {v: statistics.median(t["seconds"] for t in found[v]) for v in (before, value) if v}
        work = {v: float(v) if axis == "text" else shape_of(axis, v).flops_a_token * shape_of(axis, v).context * shape_of(axis, v).batch
                for v in seconds}
        slopes = [exponent(it[before], it[value], before, value) if before else "" for it in (seconds, work)]
        print(f"| {value:,} | {between([t['seconds'] for t in found[value]], 3)} | {slopes[0]} | {slopes[1]} | "
              f"{max(t['peak'] for t in found[value]) / 2**20:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", action="append", choices=list(VALUES))
    parser.add_argument("--values", type=at_least_one, nargs="+", help="instead of the axis' own")
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--options", default="", help="as of a contestant: bf16, compile, recompute, lora, joined by +")
    parser.add_argument("--text-folder", type=Path, default=Path(tempfile.gettempdir()), help="where texts and their tokens fit")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(one(args.one[0], int(args.one[1]), args)))
    for axis in args.axis or [axis for axis in VALUES if axis != "text"]:
        values = args.values or list(VALUES[axis])
        found: dict[int, list[dict]] = {value: [] for value in values}
        for _ in range(args.rounds):
            for value in values:
                found[value].append(alone("growth", "--one", axis, str(value), "--options", args.options, "--device", args.device,
                                          "--text-folder", str(args.text_folder)))
        table(axis, values, found)
    return None


if __name__ == "__main__":
    main()
