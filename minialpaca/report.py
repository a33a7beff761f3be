"""What a classifier got right: tables, confusion matrices as pictures, predictions as files."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from minialpaca.data.files import write_whole
from minialpaca.data.texts import Group, TextExamples
from minialpaca.log import RunLog, markdown, table
from minialpaca.metrics import accuracy, class_marks, confusion, macro_f1, one_against_rest
from minialpaca.observe import colour
from minialpaca.tasks.classification import Classification, Judged, truths

PICTURE = 480     # pixels on the side of a confusion matrix, about
SMALLEST_CELL = 8
# Digits of 3 × 5 dots, a bit each, row by row.
DIGITS = [int(bits, 2) for bits in (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001001001001", "111101111101111", "111101111001111")]


# ── tables ───────────────────────────────────────────────────────────────────────────────────────

CLASS_HEADS = ("precision", "recall", "F1", "texts")


def class_rows(group: Group, right_NC: Tensor, said_NC: Tensor) -> list[tuple]:
    """A row per class, and below them the means over the classes."""
    marks = class_marks(right_NC, said_NC)
    rows = list(zip(group.classes, marks.precision_C.tolist(), marks.recall_C.tolist(), marks.f1_C.tolist(),
                    marks.support_C.tolist()))
    return [*rows, ("mean (macro)", float(marks.precision_C.mean()), float(marks.recall_C.mean()), macro_f1(marks.f1_C),
                    len(right_NC))]


def class_table(group: Group, right_NC: Tensor, said_NC: Tensor, split: str) -> str:
    heads = (f"{split}, {group.name}", *CLASS_HEADS)
    return f"{table(class_rows(group, right_NC, said_NC), heads)}\naccuracy {accuracy(right_NC, said_NC):.4f}"


# ── the confusion matrix ─────────────────────────────────────────────────────────────────────────


def confusion_counts(group: Group, right_NC: Tensor, said_NC: Tensor) -> tuple[np.ndarray, list[str], list[str]]:
    """Counts, and the names of rows (what is right) and columns (what was said).

    Of a multi-label group two rows for each class, the texts in it and those that are not: of how many was it said?
    """
    if not group.several:
        return confusion(right_NC, said_NC).numpy(), list(group.classes), list(group.classes)
    names = [f"{which}{name}" for name in group.classes for which in ("", "not ")]
    return one_against_rest(right_NC, said_NC).flatten(0, 1).numpy(), names, ["said", "not said"]


def numbered(names: list[str]) -> list[str]:
    """As rows and columns are numbered in the picture."""
    return [f"{i} {name}" for i, name in enumerate(names, 1)]


def confusion_picture(counts_RC: np.ndarray) -> np.ndarray:
    """(height, width, 3) bytes: cell (r, c) as bright as the share of row r that stands in column c, its count inside.

    Above and to the left the numbers of columns and rows, as the table beside the picture gives them.
    """
    R, C = counts_RC.shape
    side = max(SMALLEST_CELL, PICTURE // (max(R, C) + 1))
    shares = counts_RC / counts_RC.sum(1, keepdims=True).clip(min=1)
    picture = np.zeros((side * (R + 1), side * (C + 1), 3), dtype=np.uint8)
    picture[side:, side:] = colour(shares).repeat(side, 0).repeat(side, 1)
    picture[::side] = picture[:, ::side] = 0  # a line of black around each cell
    for r in range(R):
        _write(picture, r + 1, 0, r + 1, side, 160)
        for c in range(C):
            if counts_RC[r, c]:
                _write(picture, int(counts_RC[r, c]), c + 1, r + 1, side, 0 if shares[r, c] > 0.35 else 255)
    for c in range(C):
        _write(picture, c + 1, c + 1, 0, side, 160)
    return picture


def _write(picture: np.ndarray, number: int, column: int, row: int, side: int, grey: int) -> None:
    """A number in the middle of a cell, as large as fits; nothing where it does not."""
    dots = np.concatenate([np.pad([[DIGITS[int(digit)] >> (14 - 3 * y - x) & 1 for x in range(3)] for y in range(5)],
                                  ((0, 0), (0, 1))) for digit in str(number)], axis=1)[:, :-1].astype(bool)
    scale = min((side - 3) // dots.shape[1], (side - 3) // 5, 4)
    if scale:
        dots = dots.repeat(scale, 0).repeat(scale, 1)
        top, left = row * side + (side - dots.shape[0] + 1) // 2, column * side + (side - dots.shape[1] + 1) // 2
        picture[top:top + dots.shape[0], left:left + dots.shape[1]][dots] = grey


@dataclass(frozen=True)
class ClassObserver:
    """Shows what the last evaluation saw: each group's table of classes, and which are mistaken for which."""

    task: Classification

    def __call__(self, model: nn.Module, log: RunLog, step: int) -> None:
        for group, (right, said) in zip(self.task.groups, truths(self.task.val, self.task.judged)):
            rows, heads = class_rows(group, right, said), (group.name, *CLASS_HEADS)
            log.text(f"classes/{group.name}", markdown(rows, heads), step)
            counts, downwards, across = confusion_counts(group, right, said)
            rows = [(name, *row) for name, row in zip(numbered(downwards), counts.tolist())]
            log.text(f"confusion/{group.name}", markdown(rows, ["right \\ said", *numbered(across)]), step)
            log.image(f"confusion/{group.name}", confusion_picture(counts), step)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def write_class_marks(folder: Path, split: str, examples: TextExamples, judged: Judged) -> None:
    """`test_predictions.jsonl`: every text, its right labels and what was said; `test_marks.json`: the marks."""
    marks, names = {"loss": judged.loss, "groups": {}}, ("precision", "recall", "f1", "texts")
    for group, (right, said) in zip(examples.groups, truths(examples, judged)):
        *of_class, mean = class_rows(group, right, said)
        marks["groups"][group.name] = {"accuracy": accuracy(right, said), "macro_f1": mean[3],
                                       "classes": {name: dict(zip(names, row)) for name, *row in of_class}}
    records = (json.dumps(record, ensure_ascii=False) + "\n" for record in predictions(examples, judged))
    write_whole(folder / f"{split}_predictions.jsonl", "".join(records))
    write_whole(folder / f"{split}_marks.json", json.dumps(marks, indent=1, ensure_ascii=False) + "\n")


def predictions(examples: TextExamples, judged: Judged) -> list[dict]:
    """For each text: where it stands, and for each group what is right, what was said, and all probabilities."""
    answers = truths(examples, judged)
    records = []
    for row, number in enumerate(judged.numbers):
        text = examples.texts[number]
        record = {"place": text.place, "text": text.text, "right": {}, "said": {}, "probabilities": {}}
        for j, group in enumerate(examples.groups):
            record["right"][group.name] = list(text.labels[j])
            record["said"][group.name] = [name for name, yes in zip(group.classes, answers[j][1][row].tolist()) if yes]
            record["probabilities"][group.name] = dict(zip(group.classes, judged.probabilities[j][row].tolist()))
        records.append(record)
    return records
