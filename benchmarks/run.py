"""minialpaca beside what a user would pick instead: the same shape, the same weights, in one run, in turns.

    python -m benchmarks.run                                   everything that is installed, on the CPU
    python -m benchmarks.run --workload train --rounds 7 ours ours:bf16 litgpt litgpt:tuned
    python -m benchmarks.run --device cuda --shape gpt2 --workload train ours:bf16 ours:bf16+compile

Each contestant (benchmarks/contestants says how they are written) has a process of its own, which waits while the others
take their turns; the first turn, of all at once, warms up and is not counted. Medians of the rounds, with the lowest and the highest;
`beside` is the median over the rounds of the rate divided by the first contestant's in the same round. Peak memory is
what the process holds above what importing took. FLOP/s and bytes/s are shares of what the machine was measured to do at the start.
`--profile FOLDER` gives each one more turn under torch.profiler, whose trace TensorBoard and Perfetto show, and whose
table of the most expensive operations lies beside it. All contestants have to find the same loss, or say the same tokens: `check` is that of the first turn. `--out` gets all of it as JSON.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.contestants import SHAPES, Shape
from benchmarks.runs import ROOT, at_least_one, between, peak_bytes

FIELD = {
    "train": ["ours", "ours:compile", "ours:bf16", "ours:bf16+compile", "ours:lora", "ours:lora+compile", "ours:lora+bf16", "ours:lora+bf16+compile",
              "ours:adalora", "ours:fgm", "transformers", "transformers:tuned", "litgpt",
              "litgpt:tuned", "litgpt:tuned+compile", "litgpt:tuned+bf16", "litgpt:tuned+bf16+compile", "peft", "peft:tuned", "peft:tuned+bf16"],
    "decode": ["ours", "ours:compile", "ours:bf16+compile", "ours:int8+compile", "transformers", "litgpt"],
    "decode8": ["ours", "ours:compile", "ours:bf16+compile", "ours:int8+compile", "transformers", "litgpt"],
    "tokenise": ["sentencepiece", "ours"],
    "load": ["ours"],
    "save": ["ours", "torch.save"],
    "start": ["python", "import", "help"],
}


class Worker:
    """A contestant in a process of its own."""

    def __init__(self, workload: str, name: str, shape: Shape, device: str, folder: Path | None):
        self.name, self.turns = name, []
        self.process = subprocess.Popen([sys.executable, "-m", "benchmarks.run", "--serve", workload, name, json.dumps(dataclasses.asdict(shape)),
                                         "--device", device,
                                         *(["--profile", str(folder.resolve())] if folder else [])],
                                        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, number: int) -> None:
        print(number, file=self.process.stdin, flush=True)

    def hear(self) -> None:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended with code {self.process.wait()}")
        self.turns.append(json.loads(line))

    def profile(self) -> None:
        print("profile", file=self.process.stdin, flush=True)
        self.process.stdout.readline()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(workload: str, name: str, shape: str, device: str, folder: Path | None) -> None:
    """The other end: a number in, a turn out; `profile` in, a trace in the folder."""
    import torch

    from benchmarks.workloads import WORKLOADS

    if name.startswith("ours"):
        import minialpaca.trainer  # noqa: F401, so that `above` is the work's own
    above, take = peak_bytes(), None
    for line in sys.stdin:
        if line == "profile\n":
            profiled(lambda: take(1), folder / f"{workload}-{name.replace(':', '-')}")
            print("{}", flush=True)
            continue
        with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(io.StringIO()):  # progress lines are no turns
            take = take or WORKLOADS[workload](name, Shape(**json.loads(shape)), device)
            found = dataclasses.asdict(take(int(line)))
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes() - above
        print(json.dumps(found | {"peak": peak}), flush=True)


def profiled(work, folder: Path) -> None:
    import torch

    kind = "device" if torch.cuda.is_available() else "cpu"
    with torch.profiler.profile(on_trace_ready=torch.profiler.tensorboard_trace_handler(str(folder))) as profile:
        work()
    (folder / "operations.txt").write_text(profile.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=30), encoding="utf-8")


def installed(name: str) -> bool:
    package = name.partition(":")[0]
    return package not in ("transformers", "peft", "litgpt") or importlib.util.find_spec(package) is not None


def field(workload: str, asked: list[str]) -> list[str]:
    """Who takes part. Of those who are not asked for by name, whoever is installed."""
    models = workload in ("train", "decode", "decode8")
    for name in asked:
        if not installed(name):
            raise SystemExit(f"{name}: is not installed; pip install {name.partition(':')[0]}, or leave it out")
        if not models and name not in FIELD[workload]:
            raise SystemExit(f"{name}: takes no part in --workload {workload}, which has {', '.join(FIELD[workload])}")
    return asked or [name for name in FIELD[workload] if installed(name)]


def rates(turns: list[dict], key: str) -> list[float]:
    return [t[key] / t["seconds"] for t in turns]


def row(worker: Worker, first: Worker, machine: dict) -> list[str]:
    turns = worker.turns[1:]
    beside = [a / b for a, b in zip(rates(turns, "amount"), rates(first.turns[1:], "amount"))]
    short = "bf16" in worker.name
    flops, read = statistics.median(rates(turns, "flops")), statistics.median(rates(turns, "read"))
    return [worker.name, between(rates(turns, "amount"), 0 if turns[0]["amount"] > 1 else 2), between(beside),
            f"{flops / machine['bf16' if short else 'fp32']:.0%}" if flops else "—", f"{read / machine['read']:.0%}" if read else "—",
            f"{max(t['peak'] for t in worker.turns) / 2**20:,.0f}", f"{worker.turns[0]['check']:.6g}"]


def measure_machine(device: str) -> dict:
    """In a process of its own, before the others are there."""
    code = ("import json, torch; from benchmarks.machine import *; d = torch.device('" + device + "'); "
            "print(json.dumps({'fp32': product_rate(torch.float32, d), 'bf16': product_rate(torch.bfloat16, d), 'read': read_rate(d), "
            "'threads': torch.get_num_threads(), 'torch': torch.__version__}))")
    found = json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found | {"machine": platform.machine(), "python": platform.python_version()}


def contest(workload: str, names: list[str], shape: Shape, device: str, rounds: int, machine: dict, folder: Path | None) -> list[Worker]:
    workers = [Worker(workload, name, shape, device, folder) for name in names]
    for worker in workers:
        worker.ask(0)
    for worker in workers:
        worker.hear()
    for number in range(1, rounds + 1):
        for worker in workers[number % len(workers):] + workers[:number % len(workers)]:  # nobody always follows the same one
            worker.ask(number)
            worker.hear()
    for worker in workers:
        if folder:
            worker.profile()
        worker.close()
    print(f"\n**{workload}**, {shape}\n\n"
          "| | a second, median (lowest to highest) | beside the first | of the product rate | of the read rate | peak MiB | check |\n" + "|---" * 7 + "|")
    for worker in workers:
        print("| " + " | ".join(row(worker, workers[0], machine)) + " |", flush=True)
    return workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contestants", nargs="*", help="all that are installed, where left out")
    parser.add_argument("--workload", action="append", choices=list(FIELD))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--context", type=int, help="instead of the shape's own")
    parser.add_argument("--batch", type=int, help="likewise")
    parser.add_argument("--rounds", type=at_least_one, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", type=Path, metavar="FOLDER")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.serve:
        return serve(*args.serve, args.device, args.profile)
    fields = {workload: field(workload, args.contestants) for workload in args.workload or FIELD}
    shape = SHAPES[args.shape]
    shape = dataclasses.replace(shape, context=args.context or shape.context, batch=args.batch or shape.batch)
    machine, found = measure_machine(args.device), {}
    print(f"{args.device}: products {machine['fp32'] / 1e9:,.0f} GFLOP/s in fp32, {machine['bf16'] / 1e9:,.0f} in bf16, read {machine['read'] / 1e9:,.1f} GB/s, "
          f"{machine['threads']} threads, torch {machine['torch']}")
    for workload, names in fields.items():
        found[workload] = {w.name: w.turns for w in contest(workload, names, shape, args.device, args.rounds, machine, args.profile)}
        if args.out:
            args.out.write_text(json.dumps({"machine": machine, "shape": dataclasses.asdict(shape), "turns": found}, indent=1))
    return None


if __name__ == "__main__":
    main()
