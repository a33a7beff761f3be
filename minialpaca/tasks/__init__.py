"""A task = data + head + loss + what is measured. The trainer knows it through this interface alone."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from minialpaca.config import LossConfig
from minialpaca.data.batch import Batch
from minialpaca.errors import UserError
from minialpaca.linear_cross_entropy import in_place, linear_cross_entropy_sum
from minialpaca.objectives import next_token_pairs, regularised_sum


class Task(Protocol):
    tokenizer_sha256: str
    data_sha256: str = ""
    """What was made of the training and validation data; a run goes on with the same alone."""
    prompts: str = ""
    """Which prompts stand before its responses, where there are any; a run is asked by the same alone."""
    labels: dict = {}
    """Which classes its heads have learned, and of what of a text, where there are any; a run labels with the same alone."""
    measures: tuple[str, ...] = ("val_loss",)
    """What `evaluate` hands back."""

    padded: bool = False
    """Whether the model is told which tokens are padding."""

    def longest(self) -> tuple[int, int]:
        """Places of the longest training row in the model, and in the encoder beside it; nothing where nobody knows."""
        return 0, 0

    def batches_per_epoch(self) -> int:
        """Micro-batches in one pass over the training data."""

    def batch(self, number: int) -> Batch:
        """The `number`-th micro-batch: a pure function of the seed and this number."""

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of the batch's supervised tokens (or labelled texts), in nats."""

    def views(self, model: nn.Module, batch: Batch) -> list[tuple[Callable[[], list[Tensor]], Tensor]]:
        """Sets of texts whose labels are not asked for: for each what the model says of it, and which tokens are real."""
        return []

    def validation(self) -> Iterable[Batch]:
        """The same batches at every evaluation."""

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean loss per supervised token over the validation batches."""
        total, n = 0.0, 0
        for batch in self.validation():
            total += self.loss_sum(model, batch.to(device)).item()
            n += batch.n_supervised
        if n == 0:
            raise UserError("the validation data has no supervised token; give more of it or, where tokens are "
                            "hidden, raise objective.noise_rate")
        return {"val_loss": total / n}


def said_loss(model: nn.Module, hidden: Callable[[], Tensor], targets_N: Tensor, how: LossConfig) -> Tensor:
    """The loss of what the head says of these positions: cross entropy, regularised in training as `how` asks.

    `hidden` is asked once, or twice for R-Drop. Where the head is a plain matrix its logits never exist at once.
    """
    plain = type(model.lm_head) is nn.Linear and model.lm_head.bias is None
    if plain and not (model.training and how.r_drop):
        smoothing = how.label_smoothing if model.training else 0.0
        judged = model.judged if model.judged and model.training else in_place
        return linear_cross_entropy_sum(hidden(), model.lm_head.weight, targets_N, smoothing, judged)
    return regularised_sum(lambda: model.logits(hidden()), targets_N, how, model.training)


def next_token_loss(model: nn.Module, batch: Batch, how: LossConfig = LossConfig()) -> Tensor:
    """Σ −log P(x_{t+1} | x_≤t) over the supervised tokens   [pretrain.1]

    Only their positions go through the head: with a prompt that is half of a row and a vocabulary of
    32,000 that halves the largest product of the step.
    """
    inputs_BT, targets_BT = next_token_pairs(batch.tokens_BT, batch.labels_BT)

    def hidden() -> Tensor:
        return batch.learned(model.hidden(inputs_BT))

    return said_loss(model, hidden, batch.learned(targets_BT), how)
