"""Tables and pictures of what a classifier mistakes."""

import numpy as np
import torch

from minialpaca.data.texts import Group
from minialpaca.report import DIGITS, class_table, confusion_counts, confusion_picture, markdown, numbered

GROUP = Group("mood", ("bad", "good"))
RIGHT = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=torch.bool)
SAID = torch.tensor([[1, 0], [0, 1], [0, 1], [0, 1]], dtype=torch.bool)


def test_the_table_says_its_split_and_its_means():
    lines = class_table(GROUP, RIGHT, SAID, "test").splitlines()
    assert [line.split() for line in lines] == [
        ["test,", "mood", "precision", "recall", "F1", "texts"], ["bad", "1.000", "0.333", "0.500", "3"],
        ["good", "0.333", "1.000", "0.500", "1"], ["mean", "(macro)", "0.667", "0.667", "0.500", "4"],
        ["accuracy", "0.5000"]]


def test_the_confusion_table_is_numbered_as_the_picture_and_escapes_bars():
    counts, downwards, across = confusion_counts(GROUP, RIGHT, SAID)
    assert counts.tolist() == [[1, 2], [0, 1]] and numbered(downwards) == numbered(across) == ["1 bad", "2 good"]
    found = markdown([("a|b", 1, 0.5)], ("x", "y", "z"))
    assert found == "| x | y | z |\n| --- | --- | --- |\n| a&#124;b | 1 | 0.500 |"


def test_a_perfect_multi_label_classifier_mistakes_nothing():
    group, both = Group("topics", ("food", "price"), several=True), torch.ones(2, 2, dtype=torch.bool)
    counts, downwards, across = confusion_counts(group, both, both)
    assert counts.tolist() == [[2, 0], [0, 0], [2, 0], [0, 0]]
    assert (downwards, across) == (["food", "not food", "price", "not price"], ["said", "not said"])
    assert confusion_picture(counts).shape == (96 * 5, 96 * 3, 3)


def cells(picture, n):
    side = len(picture) // (n + 1)
    return picture[:side * (n + 1), :side * (n + 1)].reshape(n + 1, side, n + 1, side, 3).transpose(0, 2, 1, 3, 4)


def test_a_cell_is_as_bright_as_its_share_of_the_row():
    counts = np.array([[30, 10, 0], [5, 5, 0], [0, 0, 0]])
    corner = cells(confusion_picture(counts), 3)[1:, 1:, 2, 2].astype(int).sum(-1)  # beside the line around a cell
    assert corner[0, 0] > corner[1, 0] == corner[1, 1] > corner[0, 1] > corner[0, 2] == 0
    assert (corner[2] == 0).all()  # a class without texts


def test_counts_stand_in_their_cells_and_numbers_beside():
    grid = cells(confusion_picture(np.array([[0, 7], [0, 0]])), 2)
    seven = np.array([[DIGITS[7] >> (14 - 3 * y - x) & 1 for x in range(3)] for y in range(5)], bool)
    drawn = (grid[1, 2] == 0).all(-1)[4:-4, 4:-4]  # black on white
    ys, xs = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    found = drawn[ys[0]:ys[-1] + 1, xs[0]:xs[-1] + 1]
    scale = found.shape[0] // 5
    assert scale > 1 and (found == seven.repeat(scale, 0).repeat(scale, 1)).all()
    assert all(grid[i].any() for i in ((0, 1), (0, 2), (1, 0), (2, 0)))
    assert not grid[0, 0].any() and not grid[2, 2].any()


def test_digits_look_like_digits_and_differ():
    assert len(set(DIGITS)) == 10
    assert [format(DIGITS[d], "015b") for d in (0, 1)] == ["111101101101111", "010110010010111"]


def test_many_classes_still_make_a_picture():
    picture = confusion_picture(np.eye(77, dtype=int) * 1234)
    assert picture.shape == (624, 624, 3) and picture.dtype == np.uint8
