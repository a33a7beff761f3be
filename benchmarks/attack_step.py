"""What an attack costs: a training step with each beside a clean one, in one process, in turn.

    python -m benchmarks.attack_step --rounds 9

A decoder of SST-2's size (configs/reviews.toml: width 192, 4 layers, vocabulary 6,000) labels batches of 32 texts of 32 tokens; AdamW,
fp32. Each round takes one step of every method. Medians of the rounds, as multiples of the clean step of the same round, and what
the number of passes would let one expect. PGD and FreeLB with three steps; VAT with as many texts without labels.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.runs import between
from minialpaca.adversarial import attack_on
from minialpaca.config import AdversarialConfig, ModelConfig, OptimConfig, TrainConfig
from minialpaca.data.batch import LabelBatch, TextBatch
from minialpaca.heads import Classifier
from minialpaca.model import Transformer
from minialpaca.objectives import label_groups_sum
from minialpaca.tasks import Task
from minialpaca.trainer import Trainer

MODEL = ModelConfig(vocab_size=6000, d_model=192, n_layers=4, n_heads=6, d_ff=512, max_seq_len=128)
# VAT: the labelled pass; of twice as many texts one pass without a backward, one for the direction, one that trains.
EXPECTED = {"none": 1.0, "fgm": 2.0, "fgsm": 2.0, "pgd": 4.0, "freelb": 3.0, "vat": 1 + 2 * (1 / 3 + 1 + 1), "matrix": 2.0}


class RandomTexts(Task):
    tokenizer_sha256 = data_sha256 = ""

    def __init__(self, with_unlabelled: bool):
        self.with_unlabelled = with_unlabelled

    def batches_per_epoch(self) -> int:
        return 1000

    def batch(self, number: int) -> LabelBatch:
        generator = torch.Generator().manual_seed(number)
        tokens_BT, others_BT = (torch.randint(4, 6000, (32, 32), generator=generator) for _ in range(2))
        real_BT, labels = torch.ones(32, 32, dtype=torch.bool), (torch.randint(2, (32,), generator=generator),)
        return LabelBatch(tokens_BT, real_BT, labels, 1024, TextBatch(others_BT, real_BT) if self.with_unlabelled else None)

    def loss_sum(self, model: nn.Module, batch: LabelBatch) -> Tensor:
        return label_groups_sum(model(batch.tokens_BT, batch.real_BT), batch.labels)

    def views(self, model: nn.Module, batch: LabelBatch) -> list:
        sets = [texts for texts in (batch, batch.unlabelled) if texts is not None] if self.with_unlabelled else []
        return [(lambda t=t: model(t.tokens_BT, t.real_BT), t.real_BT) for t in sets]


def trainer_of(method: str, folder: Path) -> Trainer:
    backbone = Transformer(MODEL)
    model = Classifier(backbone, [2], "last")
    cfg = AdversarialConfig(method, **({} if method == "none" else {"epsilon": 0.02}))
    return Trainer(model, RandomTexts(method == "vat"), OptimConfig(), TrainConfig(steps=1000), 0, folder,
                   attack=attack_on(backbone.embed, cfg, tied=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainers = {method: trainer_of(method, Path(folder)) for method in EXPECTED}
        seconds: dict[str, list[float]] = {method: [] for method in trainers}
        for _ in range(args.rounds + 2):
            for method, trainer in trainers.items():
                started = time.perf_counter()
                trainer.take_step()
                seconds[method].append(time.perf_counter() - started)
    print("| method | times a clean step, median (lowest to highest) | passes |\n|---|---|---|")
    for method, found in seconds.items():
        ratios = [one / clean for one, clean in zip(found[2:], seconds["none"][2:])]
        print(f"| {method} | {between(ratios)} | {EXPECTED[method]:.2f} |")
    print(f"\na clean step: {1e3 * statistics.median(seconds['none'][2:]):.0f} ms, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
