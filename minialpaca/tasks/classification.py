"""Classification: M label groups of a text, each with a head of its own (finetune.1, j over groups)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minialpaca.config import FinetuneConfig
from minialpaca.data.batch import LabelBatch
from minialpaca.data.splits import split_texts, unlabelled_texts
from minialpaca.data.texts import Group, PlainTexts, TextExamples, label_groups, refuse_unknown
from minialpaca.errors import UserError
from minialpaca.metrics import accuracy, class_marks, macro_f1
from minialpaca.objectives import label_groups_sum, regularised_groups_sum
from minialpaca.tasks import Task
from minialpaca.tokenizer import Tokenizer


@dataclass(frozen=True)
class Judged:
    """What a model says about texts, in the order of their numbers: per group the probabilities (N, C), on the CPU."""

    numbers: Sequence[int]
    probabilities: Sequence[Tensor]
    loss: float  # per text


class Classification(Task):
    measures = ("val_loss", "val_accuracy", "val_macro_f1")
    padded = True

    def __init__(self, settings: FinetuneConfig, tokenizer: Tokenizer):
        refuse_meaningless(settings)
        splits = split_texts(settings)
        self.groups = label_groups(splits.train, settings.classes)
        refuse_unknown(splits.val, self.groups, "validation")
        refuse_unknown(splits.test, self.groups, "test")

        context, over_long = settings.model.max_seq_len, settings.classes.over_long

        def examples(texts, name):
            return TextExamples(texts, self.groups, tokenizer, context, over_long, name)

        self.train = examples(splits.train, "training")
        self.val = self.train if splits.val is splits.train else examples(splits.val, "validation")
        self.test = examples(splits.test, "test") if splits.test else None
        self.unlabelled = (PlainTexts(unlabelled_texts(settings, splits), tokenizer, context)
                           if settings.adversarial.unlabelled else None)
        self.loss = settings.loss
        self.labels = learned(self.groups, pooling_of(settings))
        self.tokenizer_sha256, self.seed = tokenizer.sha256, settings.run.seed
        self.data_sha256 = f"{self.train.sha256()} {self.val.sha256()}{f' {self.unlabelled.sha256()}' if self.unlabelled else ''}"
        self.batch_size, self.eval_batches = settings.train.batch_size, settings.train.eval_batches
        self.judged: Judged | None = None  # what the last evaluation saw, for pictures

    def longest(self) -> tuple[int, int]:
        return max(self.train.buckets.lengths), 0

    def batches_per_epoch(self) -> int:
        return self.train.n_batches(self.batch_size)

    def batch(self, number: int) -> LabelBatch:
        labelled = self.train.batch(number, self.batch_size, self.seed)
        if self.unlabelled is None:
            return labelled
        return dataclasses.replace(labelled, unlabelled=self.unlabelled.batch(number, self.batch_size, self.seed))

    def loss_sum(self, model: nn.Module, batch: LabelBatch) -> Tensor:
        """Σ_i Σ_j L_j(y_ij, ŷ_ij)   [finetune.1]; the trainer divides by the step's number of texts N."""
        def logits() -> list[Tensor]:
            return model(batch.tokens_BT, batch.real_BT)

        return regularised_groups_sum(logits, batch.labels, self.loss, model.training)

    def views(self, model: nn.Module, batch: LabelBatch) -> list[tuple[Callable[[], list[Tensor]], Tensor]]:
        """The batch's texts and those without labels beside them, each set with a way to ask what the model says of it."""
        sets = [texts for texts in (batch, batch.unlabelled) if texts is not None]
        return [(functools.partial(model, texts.tokens_BT, texts.real_BT), texts.real_BT) for texts in sets]

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Loss per text, accuracy and macro-F1: their means over the groups, and where these are several, of each."""
        self.judged = judge(model, self.val, device, self.batch_size, self.eval_batches)
        marks = [(accuracy(right, told), macro_f1(class_marks(right, told).f1_C))
                 for right, told in truths(self.val, self.judged)]
        measured = {"val_loss": self.judged.loss, "val_accuracy": sum(a for a, _ in marks) / len(marks),
                    "val_macro_f1": sum(f for _, f in marks) / len(marks)}
        if len(marks) > 1:
            for group, (a, f) in zip(self.groups, marks):
                measured |= {f"val_accuracy/{group.name}": a, f"val_macro_f1/{group.name}": f}
        return measured


def learned(groups: Sequence[Group], pooling: str) -> dict:
    """For state.json: the classes in the order of their numbers, and what the heads read of a text."""
    return {"classes": {group.name: list(group.classes) for group in groups}, "pooling": pooling}


@torch.no_grad()
def judge(model: nn.Module, examples: TextExamples, device: torch.device, batch_size: int,
          n_batches: int = 0) -> Judged:
    """What the model says, whatever the batch size: a text's logits depend on no neighbour."""
    batches = examples.by_length(batch_size, n_batches)
    total, rows = 0.0, []
    for chosen in batches:
        batch = examples.collate(chosen)
        logits = [z.cpu().double() for z in model(batch.tokens_BT.to(device), batch.real_BT.to(device))]
        total += label_groups_sum(logits, batch.labels).item()
        rows.append([probabilities(group, z) for group, z in zip(examples.groups, logits)])
    numbers = torch.tensor([i for chosen in batches for i in chosen])
    in_order = numbers.argsort()
    found = [torch.cat(parts)[in_order] for parts in zip(*rows)]
    return Judged(numbers[in_order].tolist(), found, total / len(numbers))


def probabilities(group: Group, logits_BC: Tensor) -> Tensor:
    """softmax(z) over the classes; with several labels σ(z_c), each class a question of its own."""
    return logits_BC.sigmoid() if group.several else logits_BC.softmax(-1)


def said(group: Group, probabilities_NC: Tensor) -> Tensor:
    """(N, C) of truths: the likeliest class, the first of equals; with several labels those above one half."""
    if group.several:
        return probabilities_NC > 0.5
    return torch.arange(len(group.classes)) == probabilities_NC.argmax(-1, keepdim=True)


def truths(examples: TextExamples, judged: Judged) -> list[tuple[Tensor, Tensor]]:
    """(right, said) of each group, both (N, C)."""
    return [(member[judged.numbers], said(group, p))
            for group, member, p in zip(examples.groups, examples.members, judged.probabilities)]


def pooling_of(settings: FinetuneConfig) -> str:
    """`auto` is the last token where attention looks back, and the mean where it looks both ways."""
    is_encoder = settings.model.architecture == "encoder"
    if settings.classes.pooling == "first" and not is_encoder:
        raise UserError("classes.pooling = 'first': a decoder's first token has seen nothing of the text; use last, "
                        "mean or max")
    return {"auto": "mean" if is_encoder else "last"}.get(settings.classes.pooling, settings.classes.pooling)


def refuse_meaningless(settings: FinetuneConfig) -> None:
    """Settings that would do nothing, or nothing that is defined."""
    classes, loss = settings.classes, settings.loss
    pooling_of(settings)
    if loss.r_drop and classes.several:
        raise UserError(f"loss.r_drop = {loss.r_drop}: is defined for single-label groups; set it to 0, or take "
                        f"{', '.join(classes.several)} out of classes.several")
    if settings.adversarial.method == "vat" and classes.several:
        raise UserError(f"adversarial.method = 'vat': is defined for single-label groups; choose another, or take "
                        f"{', '.join(classes.several)} out of classes.several")
    if loss.label_smoothing and set(classes.several) == set(classes.labels):
        raise UserError(f"loss.label_smoothing = {loss.label_smoothing}: is for single-label groups; there is none, "
                        "set it to 0")
    if settings.model.max_seq_len < 3:
        raise UserError(f"base.max_seq_len = {settings.model.max_seq_len}: <s> text </s> need at least 3 tokens")
