"""Pretraining: causal language modelling of a corpus (pretrain.1)."""

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from minialpaca.config import PretrainConfig
from minialpaca.data.batch import Batch, collate
from minialpaca.data.corpus import Windows, prepare
from minialpaca.tasks import next_token_loss
from minialpaca.tokenizer import Tokenizer


class CausalLM:
    def __init__(self, settings: PretrainConfig, tokenizer: Tokenizer, folder: Path):
        self.train, self.val = prepare(settings.data, tokenizer, folder)
        self.tokenizer, self.tokenizer_sha256 = tokenizer, tokenizer.sha256
        self.batch_size, self.eval_batches = settings.train.batch_size, settings.train.eval_batches
        self.windows = Windows(self.train, settings.model.max_seq_len, settings.run.seed)
        self.val_windows = Windows(self.val, min(settings.model.max_seq_len, max(1, len(self.val) - 1)), 0)

    def batches_per_epoch(self) -> int:
        return math.ceil(self.windows.n / self.batch_size)

    def batch(self, number: int) -> Batch:
        first = number * self.batch_size
        return self._collate([self.windows[first + i] for i in range(self.batch_size)])

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        return next_token_loss(model, batch)

    def validation(self) -> Iterable[Batch]:
        """From the beginning of the held-out part, every token once."""
        rows = self.val_windows.in_order()
        for _ in range(self.eval_batches) if self.eval_batches else itertools.count():
            chosen = list(itertools.islice(rows, self.batch_size))
            if not chosen:
                return
            yield self._collate(chosen)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Loss per byte of text rather than per token: comparable across vocabularies   [bpb.1]

        bpb = (L / ln 2) · tokens / bytes, bytes counted from the raw bytes of each id.
        """
        sizes = np.array([len(data) for data in self.tokenizer.piece_bytes])
        tokens = self.val.ids[1:]
        return nats_per_token / math.log(2) * len(tokens) / int(sizes[tokens].sum())

    def _collate(self, rows: list[np.ndarray]) -> Batch:
        return collate([(ids, ids) for ids in rows], self.tokenizer.pad)
