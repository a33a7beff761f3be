"""Accuracy of tuned classifiers on their test split, clean and under attack.

    python -m benchmarks.robustness runs/sst2 runs/sst2-fgm --attacks fgm pgd --epsilon 0.02 0.04
    python -m benchmarks.robustness runs/sst2-fgm --split val              where a radius or a weight is being chosen

The attack knows the model and the right labels: each text's embeddings are moved by at most ε to where its loss is larger. FGM takes
one step of length ε; PGD ten of ε/4, so that a model that is merely bent where one step looks is found out.
"""

import argparse
import contextlib
import io
from pathlib import Path

import torch

from minialpaca import classify, run
from minialpaca.adversarial import Passes, attack_on
from minialpaca.adversarial.attack import OnOutputs
from minialpaca.adversarial.embedded import perturbed
from minialpaca.config import AdversarialConfig
from minialpaca.data.texts import TextExamples
from minialpaca.heads import Classifier
from minialpaca.objectives import label_groups_sum
from minialpaca.tasks.classification import Classification
from minialpaca.tokenizer import Tokenizer

ATTACKS = {"fgm": lambda e: AdversarialConfig("fgm", e), "fgsm": lambda e: AdversarialConfig("fgsm", e),
           "pgd": lambda e: AdversarialConfig("pgd", e, steps=10, step_size=e / 4)}


def accuracies(folder: Path, configs: list[AdversarialConfig], split: str = "test") -> list[float]:
    """Of a run on that split, in per cent: clean, then under each attack."""
    model = classify.load_labeller(folder, device=run.pick_device("auto")).model
    with contextlib.redirect_stdout(io.StringIO()):
        task = Classification(run.settings_of(folder), Tokenizer.load(folder / run.TOKENIZER))
    examples = {"test": task.test, "val": task.val}[split]
    if not examples:
        raise SystemExit(f"{folder}: has no test split; its validation split has chosen its weights already")
    attacks = [None, *(attack_on(model.backbone.embed, cfg, tied=False) for cfg in configs)]
    return [right(model, examples, attack) for attack in attacks]


def right(model: Classifier, examples: TextExamples, attack: OnOutputs | None, batch_size: int = 64) -> float:
    """The part of texts whose first group is told right, in per cent."""
    hits, device = 0, model.backbone.embed.weight.device
    for chosen in examples.by_length(batch_size):
        batch = examples.collate(chosen).to(device)
        passes = Passes(lambda b=batch: label_groups_sum(model(b.tokens_BT, b.real_BT), b.labels), batch.real_BT, 0)
        r_BTD = attack.find(passes) if attack else None
        with torch.no_grad(), perturbed(model.backbone.embed, r_BTD) if attack else contextlib.nullcontext():
            hits += int((model(batch.tokens_BT, batch.real_BT)[0].argmax(-1) == batch.labels[0]).sum())
    return 100 * hits / len(examples.ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--attacks", nargs="+", default=["fgm", "pgd"], choices=list(ATTACKS))
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.02, 0.04])
    parser.add_argument("--split", choices=["test", "val"], default="test")
    args = parser.parse_args()
    asked = [(name, e) for name in args.attacks for e in args.epsilon]
    print("| run | clean | " + " | ".join(f"{name} {e:g}" for name, e in asked) + " |\n|---" + "|---" * (1 + len(asked)) + "|")
    for folder in args.runs:
        found = accuracies(folder, [ATTACKS[name](e) for name, e in asked], args.split)
        print(f"| {folder} | " + " | ".join(f"{value:.1f}" for value in found) + " |", flush=True)


if __name__ == "__main__":
    main()
