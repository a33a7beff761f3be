"""What another device is worth: train.py alone and under torchrun, a core or a GPU and the same number of rows for each process.

    python -m benchmarks.devices --processes 2
    python -m benchmarks.devices --processes 4 --device cuda

On the built-in world, in turns, `--rounds` of them. The rate of a run is the median over its steps from the fifth on; `efficiency` is that rate
divided by n times the rate of one process in the same round. On CPUs the processes speak through gloo, on GPUs through NCCL.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.runs import ROOT, at_least_one, between, records

WAYS = ("one process", "ddp", "fsdp")
WARM = 4  # steps that are not counted
SHAPES = {"cpu": ["model.d_model=384", "model.n_layers=6", "model.n_heads=6", "model.d_ff=1024", "model.max_seq_len=256", "train.batch_size=8"],
          "cuda": ["model.d_model=768", "model.n_layers=12", "model.n_heads=12", "model.d_ff=2048", "model.max_seq_len=1024", "train.batch_size=64"]}


def rate(way: str, processes: int, device: str, steps: int) -> float:
    """Tokens a second, of all processes together."""
    launcher = [sys.executable] if way == WAYS[0] else [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*launcher, "train.py", "configs/pretrain.toml", f"run.dir={folder}/run", f"run.device={device}", *SHAPES[device],
                               f"train.steps={steps}", f"train.eval_every={steps}", "train.eval_batches=1", "samples.count=0",
                               *([f"train.parallel={way}"] if way != WAYS[0] else [])],
                              cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{way}: train.py ended with code {done.returncode}\n{done.stderr[-2000:]}")
        return statistics.median(record["tokens_per_s"] for record in records(Path(folder) / "run") if record["step"] > WARM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=at_least_one, default=2)
    parser.add_argument("--device", choices=tuple(SHAPES), default="cpu")
    parser.add_argument("--steps", type=at_least_one, default=12, help="that are counted")
    parser.add_argument("--rounds", type=at_least_one, default=3)
    args = parser.parse_args()
    found = [{way: rate(way, args.processes, args.device, WARM + args.steps) for way in WAYS} for _ in range(args.rounds)]
    print("| | tokens/s | efficiency |\n|---|---|---|")
    for way in WAYS:
        n = 1 if way == WAYS[0] else args.processes
        print(f"| {way if n == 1 else f'{n} processes, {way}'} | {between([rates[way] for rates in found], 0)} | "
              f"{between([rates[way] / n / rates[WAYS[0]] for rates in found])} |")


if __name__ == "__main__":
    main()
