"""Accuracy of tuned classifiers on their test split, clean and under attack.

    python -m benchmarks.robustness runs/sst2 runs/sst2-fgm --method fgm --epsilon 0.02 0.04

The attack knows the model and the right labels: each text's embeddings are moved by ε where its loss rises fastest.
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
from minialpaca.objectives import label_groups_sum
from minialpaca.tasks.classification import Classification
from minialpaca.tokenizer import Tokenizer


def right(model: classify.Classifier, examples: TextExamples, attack: OnOutputs | None, batch_size: int = 64) -> float:
    """The part of texts whose first group is told right, in per cent."""
    hits = 0
    for chosen in examples.by_length(batch_size):
        batch = examples.collate(chosen)
        passes = Passes(lambda b=batch: label_groups_sum(model(b.tokens_BT, b.real_BT), b.labels), batch.real_BT, 0)
        r_BTD = attack.find(passes) if attack else None
        with torch.no_grad(), perturbed(model.backbone.embed, r_BTD) if attack else contextlib.nullcontext():
            hits += int((model(batch.tokens_BT, batch.real_BT)[0].argmax(-1) == batch.labels[0]).sum())
    return 100 * hits / len(examples.ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--method", default="fgm", choices=("fgm", "fgsm", "pgd"))
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.02, 0.04])
    args = parser.parse_args()
    print("| run | clean | " + " | ".join(f"{args.method} {e:g}" for e in args.epsilon) + " |\n|---" + "|---" * (1 + len(args.epsilon)) + "|")
    for folder in args.runs:
        model = classify.load_labeller(folder).model
        with contextlib.redirect_stdout(io.StringIO()):
            task = Classification(run.settings_of(folder), Tokenizer.load(folder / run.TOKENIZER))
        examples = task.test or task.val
        attacks = [None, *(attack_on(model.backbone.embed, AdversarialConfig(args.method, e), tied=False) for e in args.epsilon)]
        print(f"| {folder} | " + " | ".join(f"{right(model, examples, attack):.1f}" for attack in attacks) + " |", flush=True)


if __name__ == "__main__":
    main()
