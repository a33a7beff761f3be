"""SST-2, measured: a decoder and an encoder, pretrained here and untrained, tuned and tested alike.

    python -m benchmarks.sst2 --text sst2-pretrain --data classification --seeds 0 1 2 --out runs/sst2-bench
    python -m benchmarks.sst2 --architectures encoder --pretrain train.precision=bf16 …

`--text` is what benchmarks.sst2_text wrote, `--data` the folder of sst2_train.txt, sst2_dev.txt and sst2_test.txt. A row
per seed and architecture: minutes of pretraining and of tuning, test accuracy, and that from random weights; mean ±
standard deviation below. A seed changes weights, order, noise and dropout. The dev split chooses the weights; the test
split is looked at once, at the end. `--pretrain` goes to train.py as it is, what stands last to finetune.py.
"""

import argparse
import json
from pathlib import Path

from benchmarks.runs import spread, timed

OBJECTIVES = {"decoder": ["objective.name=causal"], "encoder": ["objective.name=masked", "train.epochs=6"]}

# What tuned best on the dev split, seed 0 (docs/LOG.md), beside configs/sst2.toml.
TUNING = {"decoder": ["adversarial.method=fgm", "adversarial.epsilon=0.02"], "encoder": []}


def accuracy(folder: Path) -> float:
    return 100 * json.loads((folder / "test_marks.json").read_text())["groups"]["label"]["accuracy"]


def measure(seed: int, architecture: str, text: Path, data: Path, out: Path, pretrain: list[str], changes: list[str]) -> list[float]:
    base, tuned, scratch = (out / f"{name}-{architecture}-{seed}" for name in ("base", "tuned", "scratch"))
    pretraining, _ = timed("train.py", "configs/reviews.toml", f"data.source={text}", f"run.dir={base}", f"run.seed={seed}",
                           f"model.architecture={architecture}", *OBJECTIVES[architecture], *pretrain)
    tune = ["finetune.py", "configs/sst2.toml", f"base.run={base}", f"run.seed={seed}",
            *TUNING[architecture], *changes,
            *(f"data.{key}={data / f'sst2_{name}.txt'}" for key, name in
              (("source", "train"), ("val_source", "dev"), ("test_source", "test")))]
    tuning, _ = timed(*tune, f"run.dir={tuned}")
    timed(*tune, f"run.dir={scratch}", "base.weights=random")
    return [pretraining / 60, tuning / 60, accuracy(tuned), accuracy(scratch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--architectures", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/sst2-bench"))
    parser.add_argument("--pretrain", action="append", default=[], metavar="section.key=value")
    parser.add_argument("changes", nargs="*", help="section.key=value for finetune.py")
    args = parser.parse_intermixed_args()
    print("| architecture | seed | minutes of pretraining | of tuning | test accuracy % | from random weights % |")
    print("|---|---|---|---|---|---|")
    for architecture in args.architectures:
        rows = []
        for seed in args.seeds:
            rows.append(measure(seed, architecture, args.text.resolve(), args.data.resolve(), args.out.resolve(), args.pretrain, args.changes))
            print(f"| {architecture} | {seed} | " + " | ".join(f"{v:.1f}" for v in rows[-1]) + " |", flush=True)
        if len(rows) > 1:
            print(f"| {architecture} | mean ± sd | "
                  + " | ".join(map(spread, zip(*rows))) + " |", flush=True)


if __name__ == "__main__":
    main()
