"""SIGKILL at random moments: does every run that is started again end as if it had been left alone?

    python -m benchmarks.kills --kills 200 --out runs/kills

Each way of training (pretraining causal, masked and span; instructions and classes, full, LoRA, Houlsby and AdaLoRA; with and
without FGM; accumulation 1 and 4) runs once alone. Then it runs again, killed at moments drawn evenly from the time that it took, and
started again by the same command until it ends. Compared to the bit: the weights, the optimizer's state, the counters, which
checkpoints there are, every line of the log but for clocks, and TensorBoard's steps. A checkpoint is saved at every other step, so
that many kills fall into saving; how many is said.
"""

import argparse
import csv
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.runs import ROOT
from minialpaca.log import progress
from minialpaca.storage import checkpoint

STEPS = 24
COMMON = ["run.device=cpu", f"train.steps={STEPS}", "train.batch_size=4", "train.eval_every=6", "train.eval_batches=2", "train.save_every=2",
          "optim.lr=1e-3", "optim.warmup_steps=3", "samples.count=1", "samples.max_new_tokens=4"]
MODEL = ["tokenizer.vocab_size=512", "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.d_ff=48", "model.max_seq_len=96",
         "model.dropout=0.1", "data.documents=line"]
ATTACK = ["adversarial.method=fgm", "adversarial.epsilon=0.02"]
CLOCKS = ("tokens_per_s", "save_s")  # what a log may say differently

Ways = Iterator[tuple[str, list[str]]]


def ways(data: Path, base: Path) -> Ways:
    """name → command without run.dir."""
    switches = list(itertools.product(("clean", "fgm"), (1, 4)))
    for objective, architecture in {"causal": "decoder", "masked": "encoder", "span": "encoder_decoder"}.items():
        for attack, accumulation in switches:
            yield f"{objective}-{attack}-{accumulation}", [
                "train.py", f"data.source={data / 'text.txt'}", *COMMON, *MODEL, f"objective.name={objective}",
                f"model.architecture={architecture}", f"train.accumulation={accumulation}", *(ATTACK if attack == "fgm" else [])]
    tasks = {"instructions": ["configs/alpaca.toml", f"data.source={data / 'rows.json'}"],
             "classes": ["configs/classify.toml", f"data.source={data / 'labels.csv'}", "classes.labels=mood", "data.test_source=[]"]}
    methods = {"none": [], "lora": ["adapter.rank=4"], "houlsby": ["adapter.bottleneck=4"],
               "adalora": ["adapter.rank=4", "adapter.target_rank=2"]}
    for (task, files), (method, changes), (attack, accumulation) in itertools.product(tasks.items(), methods.items(), switches):
        yield f"{task}-{method}-{attack}-{accumulation}", [
            "finetune.py", *files, f"base.run={base}", *COMMON, "data.val_fraction=0.2", "train.patience=0", "base.dropout=0.1",
            f"adapter.method={method}", *changes, f"train.accumulation={accumulation}", *(ATTACK if attack == "fgm" else [])]


def write_data(folder: Path) -> None:
    rng = random.Random(0)
    names, things = ("Mira", "Tolen", "Velusk", "Bado"), ("lamps", "ropes", "bells", "maps")
    told = [(rng.choice(names), rng.randrange(2, 99), rng.choice(things)) for _ in range(300)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("".join(f"{who} has {n} {what}.\n" for who, n, what in told), encoding="utf-8")
    rows = [{"instruction": f"How many {what} has {who}? ({i})", "input": "", "output": f"{n}"} for i, (who, n, what) in enumerate(told)]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "mood"), *((f"{who} has {n} {what}. ({i})", "many" if n > 50 else "few")
                                                        for i, (who, n, what) in enumerate(told))])


# ── running ──────────────────────────────────────────────────────────────────────────────────────


def started(command: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *command, f"run.dir={folder}"], cwd=ROOT, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(command: list[str], folder: Path) -> float:
    """Seconds it took."""
    at, process = time.perf_counter(), started(command, folder)
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} run.dir={folder}: ended with {process.returncode}: {said[-500:]}")
    return time.perf_counter() - at


def kill(command: list[str], folder: Path, after: float) -> str:
    """Where it was hit: `before` its first step, in `steps`, in `saving`, or `too late`."""
    process = started(command, folder)
    try:
        process.wait(after)
        return "too late" if process.returncode == 0 else f"failed: {process.stderr.read()[-500:]}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if any((folder / checkpoint.FOLDER).glob(checkpoint.TEMPORARY + "*")):
        return "saving"
    return "steps" if (folder / "metrics.jsonl").exists() else "before"


# ── comparing ────────────────────────────────────────────────────────────────────────────────────


def contents(folder: Path) -> dict:
    """All that has to be equal."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    places = {name: checkpoint.find(folder, name) for name in ("last", "best")}
    for place in places.values():
        checkpoint.verify(place)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {"checkpoints": sorted(p.name for p in (folder / checkpoint.FOLDER).iterdir()),
            "log": [{k: v for k, v in record.items() if k not in CLOCKS} for record in log],
            "curve": [point.step for point in board.Scalars("loss")],
            **{f"{name}, {stem}": checkpoint.read_tensors(place, stem) for name, place in places.items() for stem in ("model", "optimizer")},
            **{f"{name}, state": checkpoint.read_state(place) for name, place in places.items()}}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    args = parser.parse_args()
    out, rng = args.out.resolve(), random.Random(args.seed)
    shutil.rmtree(out, ignore_errors=True)
    write_data(out / "data")
    finish(["train.py", f"data.source={out / 'data' / 'text.txt'}", *COMMON, *MODEL], out / "base")
    chosen, hit, wrong = list(ways(out / "data", out / "base")), dict.fromkeys(("before", "steps", "saving", "too late"), 0), []
    kills = {name: args.kills // len(chosen) + (i < args.kills % len(chosen)) for i, (name, _) in enumerate(chosen)}
    with progress("killing", args.kills, "kills") as bar:
        for name, command in chosen:
            alone, killed = out / f"{name}-alone", out / f"{name}-killed"
            seconds = finish(command, alone)
            for _ in range(kills[name]):
                where = kill(command, killed, rng.uniform(0, seconds))
                hit[where] = hit.get(where, 0) + 1
                bar.update()
            finish(command, killed)
            one, other = contents(alone), contents(killed)
            if different := [key for key in one if not same(one[key], other[key])]:
                wrong.append(f"{name}: {', '.join(different)}")
                bar.write(wrong[-1])
                continue
            shutil.rmtree(alone)
            shutil.rmtree(killed)
    print(f"{args.kills} kills over {len(chosen)} ways of training: " + ", ".join(f"{n} {where}" for where, n in hit.items()))
    print("all equal to the bit" if not wrong else f"{len(wrong)} differ: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
