"""What a model trains on: token ids, and labels that say which of them are learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialpaca.objectives import IGNORE, next_token_pairs


@dataclass(frozen=True)
class Batch:
    """tokens_BT and labels_BT stand side by side, unshifted; padding is on the right and labelled IGNORE."""

    tokens_BT: Tensor
    labels_BT: Tensor
    supervised_N: Tensor  # where, in the flattened (B, T − 1) targets, something is learned
    n_tokens: int         # tokens that are no padding

    @property
    def n_supervised(self) -> int:
        return len(self.supervised_N)

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.tokens_BT.to(device, non_blocking=True), self.labels_BT.to(device, non_blocking=True),
                     self.supervised_N.to(device, non_blocking=True), self.n_tokens)


def collate(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> Batch:
    """(ids, labels) of each row, filled up on the right to the longest."""
    longest = max(len(ids) for ids, _ in rows)
    tokens_BT = torch.full((len(rows), longest), pad)
    labels_BT = torch.full((len(rows), longest), IGNORE)
    for b, (ids, labels) in enumerate(rows):
        tokens_BT[b, :len(ids)] = torch.as_tensor(ids)
        labels_BT[b, :len(labels)] = torch.as_tensor(labels)
    targets = next_token_pairs(tokens_BT, labels_BT)[1]
    supervised_N = (targets.flatten() != IGNORE).nonzero().flatten()
    return Batch(tokens_BT, labels_BT, supervised_N, sum(len(ids) for ids, _ in rows))
