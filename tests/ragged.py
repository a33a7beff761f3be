"""A task over rows of different lengths, a tiny model, and a trainer of both."""

import json
import math
import random

import torch

from minialpaca import trainer
from minialpaca.config import ModelConfig, OptimConfig, TrainConfig
from minialpaca.data.batch import collate
from minialpaca.model import Transformer
from minialpaca.objectives import IGNORE
from minialpaca.tasks import Task, next_token_loss
from minialpaca.trainer import Trainer

CPU = torch.device("cpu")
MODEL = ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, d_ff=12, max_seq_len=16, init_std=0.3)
PLAIN = OptimConfig(lr=0.01, schedule="constant", warmup_steps=0, clip_norm=0.0, weight_decay=0.0)


def ragged(n, seed=0):
    """(ids, labels) of different lengths with different numbers of labels; the fourth has none."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        ids = [rng.randrange(4, 11) for _ in range(rng.randrange(3, 15))]
        first = len(ids) if i % 20 == 3 else rng.randrange(len(ids) - 1)
        rows.append((ids, [IGNORE] * first + ids[first:]))
    return rows


class Ragged(Task):
    """A task over given rows, in their order, epoch after epoch."""

    tokenizer_sha256 = "no tokenizer"

    def __init__(self, rows, size, val=(), val_size=1):
        self.rows, self.size, self.val, self.val_size = rows, size, list(val), val_size

    def batches_per_epoch(self):
        return math.ceil(len(self.rows) / self.size)

    def batch(self, number):
        first = number % self.batches_per_epoch() * self.size
        return collate(self.rows[first:first + self.size], 3)

    def loss_sum(self, model, batch):
        return next_token_loss(model, batch)

    def validation(self):
        return [collate(self.val[i:i + self.val_size], 3) for i in range(0, len(self.val), self.val_size)]


class Opinionated(Ragged):
    """What is said at the first place is an opinion about the text, for VAT."""

    def views(self, model, batch):
        return [(lambda: [model(batch.tokens_BT, batch.real_BT)[:, 0]], batch.real_BT)]


def spelled_losses(model, rows):
    """−log P of each supervised token, row by row without padding."""
    losses = []
    for ids, labels in rows:
        log_p = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        losses += [-log_p[t, labels[t + 1]] for t in range(len(ids) - 1) if labels[t + 1] != IGNORE]
    return losses


def make(tmp_path, task, optim=PLAIN, model=None, observe=None, **train):
    model = model or Transformer(MODEL).double()
    extra = {"observe": observe} if observe else {}
    tmp_path.mkdir(exist_ok=True)
    return Trainer(model, task, optim, TrainConfig(**{"eval_every": 1000, **train}), 0, tmp_path, **extra)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


SPLITS = [(8, 1), (4, 2), (2, 4), (1, 8)]


def scripted(monkeypatch, losses):
    values = iter(losses)
    monkeypatch.setattr(trainer, "evaluate", lambda model, task, device: {"val_loss": next(values)})
