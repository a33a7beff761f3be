"""Marks against counting, and by pencil."""

import pytest
import spelled
import torch
from hypothesis import given
from hypothesis import strategies as st

from minialpaca.metrics import accuracy, class_marks, confusion, macro_f1, one_against_rest


def truths(sets: list[set], n_classes: int) -> torch.Tensor:
    return torch.tensor([[c in given for c in range(n_classes)] for given in sets], dtype=torch.bool)


def assert_counted(right: list[set], said: list[set], n_classes: int):
    expected = spelled.marks(right, said, list(range(n_classes)))
    right_NC, said_NC = truths(right, n_classes), truths(said, n_classes)
    marks = class_marks(right_NC, said_NC)
    found = list(zip(*(m.tolist() for m in (marks.precision_C, marks.recall_C, marks.f1_C, marks.support_C))))
    assert [tuple(row) for row in found] == [pytest.approx(row, abs=1e-12) for row in expected["classes"]]
    assert accuracy(right_NC, said_NC) == pytest.approx(expected["accuracy"], abs=1e-12)
    assert macro_f1(marks.f1_C) == pytest.approx(expected["macro_f1"], abs=1e-12)


labels = st.integers(0, 4)


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=30))
def test_single_labels_are_counted(pairs):
    assert_counted([{r} for r, _ in pairs], [{s} for _, s in pairs], 5)


@given(st.lists(st.tuples(st.sets(labels), st.sets(labels)), min_size=1, max_size=20))
def test_several_labels_are_counted(pairs):
    assert_counted([r for r, _ in pairs], [s for _, s in pairs], 5)


# right: a a a b b c; said: a a b b a c, of the classes a b c d
RIGHT, SAID = truths([{0}, {0}, {0}, {1}, {1}, {2}], 4), truths([{0}, {0}, {1}, {1}, {0}, {2}], 4)


def test_marks_by_pencil():
    marks = class_marks(RIGHT, SAID)
    assert marks.precision_C.tolist() == pytest.approx([2 / 3, 1 / 2, 1, 0])
    assert marks.recall_C.tolist() == pytest.approx([2 / 3, 1 / 2, 1, 0])
    assert marks.support_C.tolist() == [3, 2, 1, 0]
    assert accuracy(RIGHT, SAID) == pytest.approx(4 / 6)
    assert macro_f1(marks.f1_C) == pytest.approx((2 / 3 + 1 / 2 + 1 + 0) / 4)  # a class that nobody met counts 0


def test_precision_and_recall_are_not_each_other():
    marks = class_marks(truths([{0}, {0}, {0}, {1}], 2), truths([{0}, {1}, {1}, {1}], 2))
    assert marks.precision_C.tolist() == pytest.approx([1, 1 / 3])
    assert marks.recall_C.tolist() == pytest.approx([1 / 3, 1])
    assert marks.f1_C.tolist() == pytest.approx([1 / 2, 1 / 2])


def test_each_class_of_several_has_a_confusion_matrix_of_its_own():
    """By hand: texts {a, b}, {a}, {} were said to be {a}, {a, b}, {b}; then against loops."""
    right, said = truths([{0, 1}, {0}, set()], 2), truths([{0}, {0, 1}, {1}], 2)
    assert one_against_rest(right, said).tolist() == [[[2, 0], [0, 1]], [[0, 1], [2, 0]]]
    found = one_against_rest(RIGHT, SAID)
    for c in range(RIGHT.shape[1]):
        for a, b in ((True, True), (True, False), (False, True), (False, False)):
            assert found[c, 1 - a, 1 - b] == sum(r == a and s == b for r, s in zip(RIGHT[:, c].tolist(), SAID[:, c].tolist()))


def test_the_confusion_matrix_has_the_right_classes_downwards():
    assert confusion(RIGHT, SAID).tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert confusion(truths([{0}, {0}], 2), truths([{1}, {1}], 2)).tolist() == [[0, 2], [0, 0]]


def test_of_several_labels_the_whole_set_has_to_be_right():
    right = truths([{0, 1}, {2}, set()], 3)
    assert accuracy(right, right) == 1
    assert accuracy(right, truths([{0}, {2}, set()], 3)) == pytest.approx(2 / 3)
