"""A task = data + head + loss. The trainer knows it through this interface alone."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from minialpaca.data.batch import Batch
from minialpaca.objectives import cross_entropy_sum, next_token_pairs


class Task(Protocol):
    tokenizer_sha256: str

    def batches_per_epoch(self) -> int:
        """Micro-batches in one pass over the training data."""

    def batch(self, number: int) -> Batch:
        """The `number`-th micro-batch: a pure function of the seed and this number."""

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of the batch's supervised tokens, in nats."""

    def validation(self) -> Iterable[Batch]:
        """The same batches at every evaluation."""


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Σ −log P(x_{t+1} | x_≤t) over the supervised tokens   [pretrain.1]

    Only their positions go through the head: with a prompt that is half of a row and a vocabulary of
    32,000 that halves the largest product of the step.
    """
    inputs_BT, targets_BT = next_token_pairs(batch.tokens_BT, batch.labels_BT)
    hidden_ND = model.hidden(inputs_BT).flatten(0, 1)[batch.supervised_N]
    return cross_entropy_sum(model.logits(hidden_ND), targets_BT.flatten()[batch.supervised_N])
