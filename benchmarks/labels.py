"""Macro-F1 of each label group: bases pretrained here, the same models untrained, naive Bayes, and the majority class.

    python -m benchmarks.labels configs/phrasebank.toml --base decoder=runs/base-decoder-{seed} \
        --base encoder=runs/base-encoder-{seed} --seeds 0 1 2 --out runs/phrasebank-bench data.source=phrasebank.csv

A row for each method, test split, mean ± standard deviation over the seeds. A seed changes the split (where none is
given), the order, the heads and dropout, and chooses the base. What stands last goes to finetune.py as it is. The
validation split chooses weights (and naive Bayes's smoothing); the test split is looked at once.
"""

import argparse
import contextlib
import io
import json
from collections import defaultdict
from pathlib import Path

from benchmarks.bayes import baselines
from benchmarks.runs import spread, timed
from minialpaca.config import FinetuneConfig, load
from minialpaca.data.splits import split_texts

Marks = dict[tuple[str, str], list[float]]  # (method, group) → macro-F1 in per cent, a number for each seed


def tuned(config: str, base: str, folder: Path, seed: int, changes: list[str]) -> dict[str, float]:
    """Macro-F1 of each group, and the minutes it took."""
    seconds, _ = timed("finetune.py", config, f"base.run={base}", f"run.dir={folder}", f"run.seed={seed}", *changes)
    groups = json.loads((folder / "test_marks.json").read_text())["groups"]
    return {name: 100 * group["macro_f1"] for name, group in groups.items()} | {"minutes": seconds / 60}


def simple(config: str, seed: int, changes: list[str]) -> dict[str, dict[str, float]]:
    """method → group → macro-F1, on the splits that finetune.py makes of the same settings."""
    settings = load(FinetuneConfig, Path(config), [*changes, f"run.seed={seed}"])
    with contextlib.redirect_stdout(io.StringIO()):
        splits = split_texts(settings)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for j, name in enumerate(settings.classes.labels):
        parts = [([t.text for t in part], [t.labels[j][0] for t in part]) for part in (splits.train, splits.val, splits.test)]
        for method, mark in baselines(*parts).items():
            found[method][name] = mark
    return found


def table(marks: Marks) -> None:
    groups = list(dict.fromkeys(group for _, group in marks))
    print("| method | " + " | ".join(groups) + " |\n|---" + "|---" * len(groups) + "|")
    for method in dict.fromkeys(method for method, _ in marks):
        cells = [marks.get((method, group), []) for group in groups]
        print(f"| {method} | " + " | ".join(spread(c) if c else "" for c in cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--base", action="append", default=[], metavar="NAME=RUN", help="{seed} stands for the seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/labels-bench"))
    parser.add_argument("changes", nargs="*", help="section.key=value for finetune.py")
    args = parser.parse_intermixed_args()
    marks: Marks = defaultdict(list)

    def note(method: str, found: dict[str, float]) -> None:
        for group, mark in found.items():
            marks[method, group].append(mark)
        print(f"{method}, seed {seed}: " + ", ".join(f"{group} {mark:.1f}" for group, mark in found.items()), flush=True)

    for seed in args.seeds:
        for method, found in simple(args.config, seed, args.changes).items():
            note(method, found)
        for name, base in (given.split("=", 1) for given in args.base):
            base, folder = str(Path(base.format(seed=seed)).resolve()), args.out.resolve()
            note(f"{name}, untrained", tuned(args.config, base, folder / f"scratch-{name}-{seed}", seed,
                                             [*args.changes, "base.weights=random"]))
            note(f"{name}, pretrained", tuned(args.config, base, folder / f"tuned-{name}-{seed}", seed, args.changes))
    table(marks)


if __name__ == "__main__":
    main()
