"""Labelled texts as numbers: label groups, ids, batches."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialpaca.config import ClassesConfig
from minialpaca.data.batch import LabelBatch, TextBatch, fill_right
from minialpaca.data.buckets import Buckets
from minialpaca.data.classes import LabelledText
from minialpaca.data.files import SHOWN_FAULTS
from minialpaca.data.order import permutation
from minialpaca.errors import UserError
from minialpaca.tokenizer import Tokenizer

# ── labels ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Group:
    """One label group: its column, its classes in the order of their numbers, whether a text may have several."""

    name: str
    classes: tuple[str, ...]
    several: bool = False

    def membership(self, labels: Iterable[Sequence[str]]) -> Tensor:
        """(N, C) of truths: which classes each text is in."""
        return torch.tensor([[name in given for name in self.classes] for given in labels], dtype=torch.bool)

    def targets(self, member_NC: Tensor) -> Tensor:
        """What the loss takes: class numbers (N,), or zeros and ones (N, C) where there may be several."""
        return member_NC.float() if self.several else member_NC.long().argmax(-1)


def label_groups(texts: Sequence[LabelledText], cfg: ClassesConfig) -> tuple[Group, ...]:
    """The groups and their classes as the training texts have them: numbers in their order, other names by letters."""
    groups = []
    for j, name in enumerate(cfg.labels):
        found = {label for text in texts for label in text.labels[j]}
        least = 1 if name in cfg.several else 2
        if len(found) < least:
            raise UserError(f"label group {name!r}: the training texts have {len(found)} class{'es'[:2 * (not found)]}"
                            f"{''.join(f' ({c!r})' for c in found)} where at least {least} are needed; give more")
        by_number = all(label.isdecimal() for label in found)
        classes = sorted(found, key=lambda label: (int(label) if by_number else 0, label))
        groups.append(Group(name, tuple(classes), name in cfg.several))
    return tuple(groups)


def refuse_unknown(texts: Sequence[LabelledText], groups: Sequence[Group], split: str) -> None:
    """A class that was never trained cannot be told; the first ten such labels are named."""
    unknown = [f"{text.place}: {label!r} of {group.name!r}" for text in texts
               for group, labels in zip(groups, text.labels) for label in labels if label not in group.classes]
    if unknown:
        more = f"; and {len(unknown) - SHOWN_FAULTS} more" if len(unknown) > SHOWN_FAULTS else ""
        raise UserError(f"{split}: {len(unknown)} label{'s are' if len(unknown) > 1 else ' is'} not in the training "
                        f"set: {'; '.join(unknown[:SHOWN_FAULTS])}{more}; add training texts of these classes, or take "
                        "them out")


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────


def text_ids(tokenizer: Tokenizer, text: str, context: int) -> tuple[list[int], bool]:
    """<s> text </s>, and whether the end of the text was cut off to make them fit."""
    ids = tokenizer.encode(text)
    return [tokenizer.bos, *ids[:context - 2], tokenizer.eos], len(ids) > context - 2


class TextExamples:
    """Encoded texts and their labels, in length-bucketed batches."""

    def __init__(self, texts: Sequence[LabelledText], groups: Sequence[Group], tokenizer: Tokenizer, context: int,
                 over_long: str, name: str):
        self.texts, self.groups, self.pad = texts, groups, tokenizer.pad
        encoded = [text_ids(tokenizer, text.text, context) for text in texts]
        cut = [text for text, (_, is_cut) in zip(texts, encoded) if is_cut]
        if cut and over_long == "raise":
            shown = "; ".join(text.place for text in cut[:SHOWN_FAULTS])
            raise UserError(f"{name}: {len(cut)} texts do not fit the context of {context} tokens: {shown}; shorten "
                            "them, lengthen the context (base.max_seq_len), or set classes.over_long=truncate")
        self.ids = [ids for ids, _ in encoded]
        self.members = [group.membership(text.labels[j] for text in texts) for j, group in enumerate(groups)]
        self.targets = [group.targets(member) for group, member in zip(groups, self.members)]
        self.buckets = Buckets([len(ids) for ids in self.ids])
        print(self.describe(name, context, len(cut)))

    def sha256(self) -> str:
        """Of all ids and labels, in their order."""
        digest = hashlib.sha256()
        for ids, text in zip(self.ids, self.texts):
            digest.update(json.dumps([ids, text.labels]).encode())
        return digest.hexdigest()

    def describe(self, name: str, context: int, n_cut: int) -> str:
        lengths = sorted(map(len, self.ids))
        lines = [f"{name}: {len(lengths):,} texts, {lengths[0]} to {lengths[-1]} tokens "
                 f"(median {lengths[len(lengths) // 2]}), {n_cut} truncated to {context}"]
        for group, member in zip(self.groups, self.members):
            sizes = sorted(zip(member.sum(0).tolist(), group.classes), key=lambda pair: -pair[0])
            shown = ", ".join(f"{label} {n:,}" for n, label in sizes[:12])
            more = f", … {sizes[-1][1]} {sizes[-1][0]:,} ({len(sizes)} classes)" if len(sizes) > 12 else ""
            lines.append(f"    {group.name}: {shown}{more}")
            absent = ", ".join(label for n, label in sizes if n == 0)
            if absent:  # macro-F1 is over all classes of the training set
                lines.append(f"    {group.name}: no text here is {absent}, and so each such class has F1 = 0 in the mean")
        return "\n".join(lines)

    def n_batches(self, batch_size: int) -> int:
        return self.buckets.n_batches(batch_size)

    def batch(self, number: int, batch_size: int, seed: int) -> LabelBatch:
        return self.collate(self.buckets.chosen(number, batch_size, seed))

    def by_length(self, batch_size: int, n_batches: int = 0) -> list[list[int]]:
        """All texts in batches of numbers, the shortest first; or `n_batches` · `batch_size` of them, always the same.

        These are drawn, because files may be sorted by class.
        """
        n = len(self.ids)
        taken = permutation(n, 0, 0, 6)[:n_batches * batch_size].tolist() if n_batches else range(n)
        return self.buckets.by_length(taken, batch_size)

    def collate(self, chosen: Sequence[int]) -> LabelBatch:
        tokens_BT, real_BT = fill_right([self.ids[i] for i in chosen], self.pad)
        labels = tuple(target[torch.as_tensor(chosen)] for target in self.targets)
        return LabelBatch(tokens_BT, real_BT, labels, int(real_BT.sum()))


class PlainTexts:
    """Encoded texts without labels, in length-bucketed batches; a longer one is cut."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, context: int):
        encoded = [text_ids(tokenizer, text, context) for text in texts]
        self.ids, self.pad = [ids for ids, _ in encoded], tokenizer.pad
        self.buckets = Buckets([len(ids) for ids in self.ids])
        print(f"unlabelled: {len(texts):,} texts, {sum(is_cut for _, is_cut in encoded)} truncated to {context}")

    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()

    def batch(self, number: int, batch_size: int, seed: int) -> TextBatch:
        return TextBatch(*fill_right([self.ids[i] for i in self.buckets.chosen(number, batch_size, seed)], self.pad))
