"""What a model trains on: token ids, and labels that say which of them are learned."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialpaca.objectives import IGNORE, next_token_pairs
from minialpaca.transfer import sent


class OnDevice:
    """A dataclass whose tensors, and tuples of tensors, travel together."""

    def to(self, device: torch.device):
        def moved(value):
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            if isinstance(value, OnDevice):
                return value.to(device)
            return sent(value, device) if isinstance(value, Tensor) else value

        return dataclasses.replace(self, **{f.name: moved(getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclass(frozen=True)
class Batch(OnDevice):
    """tokens_BT and labels_BT stand side by side, unshifted; padding is on the right and labelled IGNORE."""

    tokens_BT: Tensor
    labels_BT: Tensor
    supervised_N: Tensor  # where, in the flattened targets ((B, T − 1) once shifted), something is learned
    n_tokens: int         # tokens that are no padding
    real_BT: Tensor       # False on padding

    @property
    def n_supervised(self) -> int:
        return len(self.supervised_N)

    def learned(self, x: Tensor) -> Tensor:
        """x (B, T, …) at the places where something is learned, (N, …); as it lies where that is everywhere."""
        flat = x.flatten(0, 1)
        return flat if self.n_supervised == len(flat) else flat[self.supervised_N]

    @property
    def n_texts(self) -> int:
        return len(self.tokens_BT)

    @property
    def embedded_BT(self) -> Tensor:
        """Of all places that a loss asks the embedding for, one call behind the other: which are no padding."""
        return next_token_pairs(self.real_BT, self.labels_BT)[0]


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """For an encoder: labels are not shifted."""

    @property
    def embedded_BT(self) -> Tensor:
        return self.real_BT


@dataclass(frozen=True)
class SourceBatch(Batch):
    """For an encoder–decoder: the source beside what is to be said about it."""

    source_BS: Tensor
    real_BS: Tensor

    @property
    def embedded_BT(self) -> Tensor:
        return torch.cat([self.real_BS, super().embedded_BT], 1)


@dataclass(frozen=True)
class TextBatch(OnDevice):
    """Texts of which nobody said what is right."""

    tokens_BT: Tensor
    real_BT: Tensor


@dataclass(frozen=True)
class LabelBatch(OnDevice):
    """Texts, and for each label group what is right: class numbers (B,), or zeros and ones (B, C) (multi-label)."""

    tokens_BT: Tensor
    real_BT: Tensor
    labels: tuple[Tensor, ...]
    n_tokens: int
    unlabelled: TextBatch | None = None  # beside them, for virtual adversarial training

    @property
    def n_supervised(self) -> int:
        return len(self.tokens_BT)

    @property
    def n_texts(self) -> int:
        """Also of those without labels."""
        return len(self.tokens_BT) + (len(self.unlabelled.tokens_BT) if self.unlabelled else 0)

    @property
    def embedded_BT(self) -> Tensor:
        return self.real_BT


def fill_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(tokens, which of them are real): rows filled up on the right to the longest."""
    longest = max(map(len, rows))
    tokens_BT = torch.full((len(rows), longest), pad)
    real_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for b, ids in enumerate(rows):
        tokens_BT[b, :len(ids)] = torch.as_tensor(ids)
        real_BT[b, :len(ids)] = True
    return tokens_BT, real_BT


def collate(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> Batch:
    """(ids, labels) of each row, filled up on the right to the longest."""
    tokens_BT, real_BT = fill_right([ids for ids, _ in rows], pad)
    labels_BT, _ = fill_right([labels for _, labels in rows], IGNORE)
    targets = next_token_pairs(tokens_BT, labels_BT)[1]
    return Batch(tokens_BT, labels_BT, supervised(targets), int(real_BT.sum()), real_BT)


def collate_masked(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> MaskedBatch:
    """(noised ids, labels) of each row."""
    tokens_BT, real_BT = fill_right([ids for ids, _ in rows], pad)
    labels_BT, _ = fill_right([labels for _, labels in rows], IGNORE)
    return MaskedBatch(tokens_BT, labels_BT, supervised(labels_BT), int(real_BT.sum()), real_BT)


def collate_sources(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> SourceBatch:
    """(source ids, target ids) of each row; the target's first id is given, the others are learned."""
    source_BS, real_BS = fill_right([source for source, _ in rows], pad)
    b = collate([(target, target) for _, target in rows], pad)
    return SourceBatch(b.tokens_BT, b.labels_BT, b.supervised_N, b.n_tokens + int(real_BS.sum()), b.real_BT,
                       source_BS, real_BS)


def supervised(targets: Tensor) -> Tensor:
    return (targets.flatten() != IGNORE).nonzero().flatten()
