"""The main job, measured: pretrain and tune on the built-in world, and tune untrained weights beside it.

    python -m benchmarks.main_job --seeds 0 1 2 --out runs/main-job

Prints one row per seed (minutes, peak memory, exact match overall and on the questions about facts,
the same from random weights) and mean ± standard deviation below. A seed changes the world as well as
the weights and the order.
"""

import argparse
import json
from pathlib import Path

from benchmarks.runs import spread, timed


def per_cent(folder: Path, kind: str) -> float:
    right, asked = json.loads((folder / "test_marks.json").read_text())[kind]
    return 100 * right / asked


def measure(seed: int, out: Path) -> list[float]:
    base, tuned, scratch = (out / f"{name}-{seed}" for name in ("base", "tuned", "scratch"))
    common = (f"run.seed={seed}", f"data.source=world:{seed}")
    parts = [timed("train.py", f"run.dir={base}", *common),
             timed("finetune.py", f"base.run={base}", f"run.dir={tuned}", *common)]
    timed("finetune.py", f"base.run={base}", f"run.dir={scratch}", "base.weights=random", *common)
    return [sum(s for s, _ in parts) / 60, max(gib for _, gib in parts), per_cent(tuned, "all"),
            per_cent(tuned, "fact"), per_cent(scratch, "all"), per_cent(scratch, "fact")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/main-job"))
    args = parser.parse_args()
    print("| seed | minutes | peak GiB | all % | facts % | from random: all % | from random: facts % |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for seed in args.seeds:
        rows.append(measure(seed, args.out.resolve()))
        print(f"| {seed} | " + " | ".join(f"{v:.2f}" if i < 2 else f"{v:.1f}" for i, v in enumerate(rows[-1])) + " |",
              flush=True)
    if len(rows) > 1:
        print("| mean ± sd | " + " | ".join(spread(c, 2) for c in zip(*rows)) + " |")


if __name__ == "__main__":
    main()
