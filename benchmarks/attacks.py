"""What adversarial training buys: the same tuning with each method, tested clean and under attack, paired by seed.

    python -m benchmarks.attacks configs/sst2.toml --base runs/sst2-bench/base-decoder-{seed} --epsilon 0.02 \
        --unlabelled sst2-pretrain/mr.txt --seeds 0 1 2 3 4 --out runs/attacks train.patience=0 data.source=sst2_train.txt …

A seed changes the base, the heads, order and dropout; within a seed the methods differ in nothing but the method. Accuracy on the test
split in per cent, mean ± standard deviation over the seeds: clean, under FGM and under PGD (benchmarks/robustness.py) at the radius
trained with and at twice that. «Lost» is clean less FGM at that radius; the last column the clean accuracy beside clean training,
of the same seed. The validation split chooses the weights of each run, on clean texts. At a large radius an attack begins on a
plateau at chance, on which patience would end it: hence train.patience=0. The same command again goes on where it was cut off.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from benchmarks.robustness import ATTACKS, accuracies
from benchmarks.runs import kept, spread, timed

METHODS = ("none", "fgm", "pgd", "freelb", "vat")


def changes_of(method: str, epsilon: float, vat_epsilon: float, unlabelled: Path | None) -> list[str]:
    """VAT asks for less than a wrong label, and may go further; it alone uses texts without labels."""
    if method == "none":
        return []
    found = [f"adversarial.method={method}", f"adversarial.epsilon={vat_epsilon if method == 'vat' else epsilon}"]
    return found + ([f"adversarial.step_size={epsilon / 2}"] if method in ("pgd", "freelb") else []) + (
        [f"adversarial.unlabelled={unlabelled.resolve()}"] if method == "vat" and unlabelled else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--base", required=True, help="{seed} stands for the seed")
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--vat-epsilon", type=float, default=None, help="--epsilon, where not given")
    parser.add_argument("--unlabelled", type=Path, default=None)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/attacks"))
    parser.add_argument("changes", nargs="*", help="section.key=value for finetune.py")
    args = parser.parse_intermixed_args()
    asked = [ATTACKS[name](radius) for name in ("fgm", "pgd") for radius in (args.epsilon, 2 * args.epsilon)]
    found: dict[str, list[list[float]]] = defaultdict(list)
    out = args.out.resolve()

    def tuned(folder: Path, *changes: str) -> list[float]:
        timed("finetune.py", args.config, f"run.dir={folder}", *args.changes, *changes)
        return accuracies(folder, asked)

    for seed in args.seeds:
        base = Path(args.base.format(seed=seed)).resolve()
        for method in args.methods:
            run_name = f"{method}-{seed}"
            found[method].append(kept(out / "rows.jsonl", run_name, lambda: tuned(
                out / run_name, f"base.run={base}", f"run.seed={seed}",
                *changes_of(method, args.epsilon, args.vat_epsilon or args.epsilon, args.unlabelled))))
            print(f"{method}, seed {seed}: " + ", ".join(f"{v:.1f}" for v in found[method][-1]), flush=True)
    heads = ["clean", *(f"{cfg.method} ε = {cfg.epsilon:g}" for cfg in asked), "lost", "clean beside none"]
    print("| method | " + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|")
    for method, rows in found.items():
        lost = [row[0] - row[1] for row in rows]
        beside = [row[0] - none[0] for row, none in zip(rows, found.get("none", []))]
        print(f"| {method} | " + " | ".join(map(spread, [*zip(*rows), lost])) + f" | {spread(beside) if beside else '—'} |")


if __name__ == "__main__":
    main()
