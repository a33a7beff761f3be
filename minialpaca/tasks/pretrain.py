"""Pretraining: what is predicted of a corpus."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from minialpaca.config import LossConfig, PretrainConfig
from minialpaca.data import noise
from minialpaca.data.batch import Batch, MaskedBatch, SourceBatch, collate, collate_masked, collate_sources
from minialpaca.data.corpus import Windows, prepare
from minialpaca.errors import UserError
from minialpaca.objectives import next_token_pairs
from minialpaca.storage import checkpoint
from minialpaca.tasks import Task, next_token_loss, said_loss
from minialpaca.tokenizer import Tokenizer

TRAINING, HELD_OUT = 4, 5  # keys of the noise


class CorpusTask(Task):
    """Windows of the corpus, in a new order each epoch; subclasses say what is learned of them."""

    def __init__(self, settings: PretrainConfig, tokenizer: Tokenizer, folder: Path):
        self.train, self.val = prepare(settings.data, tokenizer, folder, learned=bool(checkpoint.steps(folder.parent)))
        self.tokenizer, self.tokenizer_sha256 = tokenizer, tokenizer.sha256
        self.data_sha256 = f"{self.train.header['sha256']} {self.val.header['sha256']}"
        self.loss, self.objective, self.seed = settings.loss, settings.objective, settings.run.seed
        self.batch_size, self.eval_batches = settings.train.batch_size, settings.train.eval_batches
        self.windows = Windows(self.train, settings.model.max_seq_len, settings.run.seed)
        self.context = min(settings.model.max_seq_len, max(1, len(self.val) - 1))  # of the validation
        if not self.evaluated_bytes():
            asked = "source" if settings.data.val_source else f"fraction = {settings.data.val_fraction}"
            raise UserError(f"data.val_{asked}: no character stands in the tokens to validate on; give more of them")
        self.val_windows = Windows(self.val, self.context, 0)

    def longest(self) -> tuple[int, int]:
        return self.windows.context, 0

    def batches_per_epoch(self) -> int:
        return math.ceil(self.windows.n / self.batch_size)

    def batch(self, number: int) -> Batch:
        numbers = range(number * self.batch_size, (number + 1) * self.batch_size)
        return self.collate([self.windows[i] for i in numbers], [(self.seed, i, TRAINING) for i in numbers])

    def validation(self) -> Iterable[Batch]:
        """From the beginning of the held-out part, every token once, with the same noise each time."""
        rows = enumerate(self.val_windows.in_order())
        for _ in range(self.eval_batches) if self.eval_batches else itertools.count():
            chosen = list(itertools.islice(rows, self.batch_size))
            if not chosen:
                return
            yield self.collate([ids for _, ids in chosen], [(0, i, HELD_OUT) for i, _ in chosen])

    def evaluated(self) -> np.ndarray:
        """The tokens that `validation` asks for."""
        n = self.eval_batches * self.batch_size * self.context or len(self.val)
        return self.val.ids[1:1 + n]

    def evaluated_bytes(self) -> int:
        sizes = np.array([len(data) for data in self.tokenizer.piece_bytes])
        return int(sizes[self.evaluated()].sum())

    @abstractmethod
    def collate(self, rows: list[np.ndarray], keys: list[tuple[int, ...]]) -> Batch:
        """Windows of at most context + 1 tokens, and a key for each one's noise."""

    def describe(self, loss: float) -> str:
        return f"{loss:.4f} nats per hidden token"


class CausalLM(CorpusTask):
    """The next token of every token."""

    def collate(self, rows: list[np.ndarray], keys: list[tuple[int, ...]]) -> Batch:
        return collate([(ids, ids) for ids in rows], self.tokenizer.pad)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        return next_token_loss(model, batch, self.loss)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """bpb = (L / ln 2) · tokens / bytes   [bpb.1]

        Over the tokens that were evaluated; bytes are the raw bytes of each id. So losses compare across vocabularies.
        """
        return nats_per_token / math.log(2) * len(self.evaluated()) / self.evaluated_bytes()

    def describe(self, loss: float) -> str:
        return (f"{loss:.4f} nats per token: perplexity {math.exp(min(loss, 700)):,.2f}, "
                f"{self.bits_per_byte(loss):.4f} bits per byte")


class MaskedLM(CorpusTask):
    """The hidden tokens, from both sides."""

    def __init__(self, settings: PretrainConfig, tokenizer: Tokenizer, folder: Path):
        super().__init__(settings, tokenizer, folder)
        self.vocabulary = noise.Vocabulary.of(tokenizer)

    def collate(self, rows: list[np.ndarray], keys: list[tuple[int, ...]]) -> MaskedBatch:
        return collate_masked([noise.mask_tokens(ids[:-1], self.objective, self.vocabulary, *key)
                               for ids, key in zip(rows, keys)], self.tokenizer.pad)

    def loss_sum(self, model: nn.Module, batch: MaskedBatch) -> Tensor:
        return masked_loss(model, batch, self.loss)


class SpanCorruption(CorpusTask):
    """The hidden stretches, said by a decoder that attends to an encoder's view of the rest."""

    def __init__(self, settings: PretrainConfig, tokenizer: Tokenizer, folder: Path):
        refuse_long_targets(settings)
        super().__init__(settings, tokenizer, folder)
        self.vocabulary = noise.Vocabulary.of(tokenizer)

    def collate(self, rows: list[np.ndarray], keys: list[tuple[int, ...]]) -> SourceBatch:
        return collate_sources([self.corrupt(ids[:-1], *key) for ids, key in zip(rows, keys)], self.tokenizer.pad)

    def longest(self) -> tuple[int, int]:
        """The source keeps what is not hidden and has a sentinel for each stretch; the target has the rest."""
        context = max(2, self.windows.context)
        hidden, stretches = noise.span_counts(context, self.objective.noise_rate, self.objective.mean_span)
        return hidden + stretches + 1, context - hidden + stretches

    def corrupt(self, ids: np.ndarray, *key: int) -> tuple[np.ndarray, np.ndarray]:
        hidden = noise.span_noise(len(ids), self.objective.noise_rate, self.objective.mean_span, *key)
        return noise.corrupt_spans(ids, hidden, self.vocabulary, self.tokenizer.bos, self.tokenizer.eos)

    def loss_sum(self, model: nn.Module, batch: SourceBatch) -> Tensor:
        return source_loss(model, batch, self.loss)


def refuse_long_targets(settings: PretrainConfig) -> None:
    """What the decoder reads: <s>, each stretch behind its sentinel, and the last sentinel."""
    context, how = settings.model.max_seq_len, settings.objective
    hidden, stretches = noise.span_counts(max(2, context), how.noise_rate, how.mean_span)
    if hidden + stretches + 2 > context:
        raise UserError(f"objective.noise_rate = {how.noise_rate}: what is hidden of model.max_seq_len = {context} tokens "
                        f"makes a target of {hidden + stretches + 2}, which does not fit the context; hide less or in "
                        "longer stretches (objective.mean_span), or raise model.max_seq_len")


def masked_loss(model: nn.Module, batch: MaskedBatch, how: LossConfig) -> Tensor:
    """Σ −log P(x_t | noised x) over the chosen t   [pretrain.2]"""

    def hidden() -> Tensor:
        hidden_BTD = model.hidden(batch.tokens_BT, None if batch.n_tokens == batch.tokens_BT.numel() else batch.real_BT)
        return batch.learned(hidden_BTD)

    return said_loss(model, hidden, batch.learned(batch.labels_BT), how)


def source_loss(model: nn.Module, batch: SourceBatch, how: LossConfig) -> Tensor:
    """Σ −log P(y_{t+1} | y_≤t, source) over the target   [pretrain.3]"""
    inputs_BT, targets_BT = next_token_pairs(batch.tokens_BT, batch.labels_BT)

    def hidden() -> Tensor:
        hidden_BTD = model.hidden(inputs_BT, sources=model.encode(batch.source_BS, batch.real_BS))
        return batch.learned(hidden_BTD)

    return said_loss(model, hidden, batch.learned(targets_BT), how)


TASKS = {"causal": CausalLM, "masked": MaskedLM, "span": SpanCorruption}
