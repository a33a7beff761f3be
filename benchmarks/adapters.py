"""Methods that train few parameters, side by side: score, trained share, speed and memory, on one base.

    python -m benchmarks.adapters --base runs/pretrain --seeds 0 1 2 3 4 --out runs/adapters
    python -m benchmarks.adapters --base runs/reviews --config configs/sst2.toml --out runs/adapters-sst2 \
        data.source=sst2_train.txt data.val_source=sst2_dev.txt data.test_source=sst2_test.txt

A row for each method: the test's score (exact match, or the mean accuracy of the label groups), mean ± standard deviation over
the seeds; the trained parameters as per cent of the base; tokens/s beside full tuning's, medians of the training steps; peak memory.
The seed changes order, dropout and what the method draws; the base stays. Methods take turns within a seed. The budget is
LoRA's with r = 8 on all matrices where the method has one to choose. What stands last goes to finetune.py as it is.
The same command again goes on where it was cut off. On a machine that is busy meanwhile its speeds say little: `--speed 3` measures them
alone, in three rounds of twenty steps of each method in turns, each in a process of its own.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from benchmarks.runs import alone, between, kept, peak_bytes, records, spread, timed
from minialpaca import run
from minialpaca.config import PretrainConfig
from minialpaca.model import Transformer

STEPS = 23  # of which three warm up
MATRICES = 'adapter.targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]'


def methods(base: PretrainConfig) -> dict[str, list[str]]:
    """method → what its run changes in the config."""
    m = base.model
    widths = [(m.d_model, m.d_model)] * 2 + [(m.kv_heads * m.d_head, m.d_model)] * 2 + [(m.d_ff, m.d_model)] * 3
    budget = 8 * m.n_layers * sum(o + i for o, i in widths)
    bottleneck = round((budget / (2 * m.n_layers) - m.d_model) / (2 * m.d_model + 1))
    prefix = round(budget / (2 * m.n_layers * m.kv_heads * m.d_head))
    return {
        "none": [],
        "freeze": ["adapter.layers=-1:", 'adapter.also=["norm"]'],
        "bitfit": ["optim.lr=1e-2"],
        "lora": [MATRICES, "adapter.rank=8", "optim.lr=3e-3"],
        "dora": [MATRICES, "adapter.rank=8", "optim.lr=3e-3"],
        "houlsby": [f"adapter.bottleneck={bottleneck}", "optim.lr=3e-3"],
        "adalora": [MATRICES, "adapter.rank=12", "adapter.target_rank=8", "adapter.alpha=24", "train.patience=0", "optim.lr=3e-3"],
        "ia3": ["optim.lr=1e-2"],
        "prefix": [f"adapter.length={prefix}", "optim.lr=1e-2"],
        "prompt": [f"adapter.length={min(64, budget // m.d_model)}", "optim.lr=1e-2"],
    }


def score(folder: Path) -> float:
    marks = json.loads((folder / "test_marks.json").read_text())
    if "groups" in marks:
        return 100 * statistics.mean(group["accuracy"] for group in marks["groups"].values())
    right, asked = marks["all"]
    return 100 * right / asked


def speed(folder: Path) -> float:
    return statistics.median(r["tokens_per_s"] for r in records(folder) if "tokens_per_s" in r)


def trained_share(folder: Path, base: PretrainConfig) -> float:
    """Per cent of the base's parameters that the optimiser moved: it keeps two moments of each."""
    import torch

    from minialpaca.storage import checkpoint

    moments = torch.load(checkpoint.find(folder) / "optimizer.pt", weights_only=True)["state"].values()
    return 100 * sum(s["exp_avg"].numel() for s in moments) / sum(p.numel() for p in Transformer(base.model).parameters())


def steps_alone(config: str, changes: list[str]) -> dict[str, float]:
    """Tokens a second, the median of the steps, and the peak of a run that is prepared and not begun."""
    from minialpaca.check import prepared_tuning
    from minialpaca.config import FinetuneConfig, load

    above = peak_bytes()
    _, trainer, _ = prepared_tuning(load(FinetuneConfig, config, changes))
    found = [trainer.take_step()["tokens_per_s"] for _ in range(STEPS)]
    return {"tokens_per_s": statistics.median(found[3:]), "peak": peak_bytes() - above}


def show_speeds(args: argparse.Namespace, chosen: dict[str, list[str]]) -> None:
    found: dict[str, list[dict]] = defaultdict(list)
    for _ in range(args.speed):
        for name, how in chosen.items():
            found[name].append(alone("adapters", "--base", str(args.base.resolve()), "--config", args.config, "--one", *args.changes, *how,
                                     f"adapter.method={name}", f"base.run={args.base.resolve()}", f"run.dir={args.out.resolve() / 'never'}"))
    print("| method | tokens/s, full tuning = 1 | MiB above imports |\n|---|---|---|")
    for name, turns in found.items():
        beside = [turn["tokens_per_s"] / full["tokens_per_s"] for turn, full in zip(turns, found.get("none", turns))]
        print(f"| {name} | {between(beside)} | {max(turn['peak'] for turn in turns) / 2**20:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--config", default="configs/alpaca.toml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS", help="speeds and memory alone, in so many rounds")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("changes", nargs="*", help="section.key=value for finetune.py")
    args = parser.parse_intermixed_args()
    if args.one:
        return print(json.dumps(steps_alone(args.config, args.changes)))
    base, out = run.settings_of(args.base), args.out.resolve()
    chosen = {name: how for name, how in methods(base).items() if name in (args.methods or methods(base))}
    if args.speed:
        return show_speeds(args, chosen)
    found: dict[str, list[list[float]]] = defaultdict(list)

    def tuned(folder: Path, *changes: str) -> tuple[float, float, float, float]:
        _, gib = timed("finetune.py", args.config, f"base.run={args.base.resolve()}", f"run.dir={folder}", "samples.count=0",
                       *args.changes, *changes)
        return score(folder), trained_share(folder, base), speed(folder), gib

    for seed in args.seeds:
        for name, how in chosen.items():
            run_name = f"{name}-{seed}"
            found[name].append(kept(out / "rows.jsonl", run_name, lambda: tuned(
                out / run_name, f"run.seed={seed}", f"adapter.method={name}", *how)))
            print(f"{name}, seed {seed}: " + ", ".join(f"{v:.2f}" for v in found[name][-1]), flush=True)
    print("| method | score % | trained % | tokens/s, full tuning = 1 | peak GiB |\n|---|---|---|---|---|")
    for name, rows in found.items():
        scores, shares, _, gib = zip(*rows)
        beside = [r[2] / f[2] for r, f in zip(rows, found.get("none", rows))]
        print(f"| {name} | {spread(scores)} | {shares[0]:.2f} | "
              f"{statistics.median(beside):.2f} | {max(gib):.2f} |")
    return None


if __name__ == "__main__":
    main()
