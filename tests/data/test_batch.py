"""Rows become tensors: what is real, what is learned, and how much of it there is."""

import torch

from minialpaca.data.batch import collate, collate_masked, collate_sources, fill_right
from minialpaca.objectives import IGNORE, next_token_pairs

PAD = 3


def test_rows_are_filled_up_on_the_right():
    tokens_BT, real_BT = fill_right([[5, 6, 7], [8], [PAD, PAD]], PAD)
    assert tokens_BT.tolist() == [[5, 6, 7], [8, PAD, PAD], [PAD, PAD, PAD]]
    assert real_BT.tolist() == [[True] * 3, [True, False, False], [True, True, False]]  # by place, never by id
    assert tokens_BT.dtype == torch.long and real_BT.dtype == torch.bool


def test_a_masked_batch_learns_its_labels_where_they_stand():
    batch = collate_masked([([9, 50, 7, 8], [9, 6, IGNORE, IGNORE]), ([50, PAD], [IGNORE, PAD]), ([4], [IGNORE])], PAD)
    assert batch.tokens_BT.tolist() == [[9, 50, 7, 8], [50, PAD, PAD, PAD], [4, PAD, PAD, PAD]]
    assert batch.labels_BT.tolist() == [[9, 6, IGNORE, IGNORE], [IGNORE, PAD, IGNORE, IGNORE], [IGNORE] * 4]
    assert batch.supervised_N.tolist() == [0, 1, 5]  # unshifted, a row's first token among them
    assert batch.labels_BT.flatten()[batch.supervised_N].tolist() == [9, 6, PAD]
    assert batch.real_BT.tolist() == [[True] * 4, [True, True, False, False], [True, False, False, False]]
    assert (batch.n_supervised, batch.n_tokens) == (3, 7)


def test_what_is_learned_is_picked_out_and_where_that_is_everything_nothing_is_copied():
    some = collate([([5, 6, 50], [IGNORE, 6, 50]), ([8, 9, 7], [8, IGNORE, 7])], PAD)
    targets_BT = next_token_pairs(some.tokens_BT, some.labels_BT)[1]
    assert some.learned(targets_BT).tolist() == [6, 50, 7]
    assert some.learned(torch.arange(12).view(2, 2, 3)).tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11]]
    every = collate([([5, 6, 50], [5, 6, 50]), ([8, 9, 7], [8, 9, 7])], PAD)
    x = torch.arange(12).view(2, 2, 3)
    assert torch.equal(every.learned(x), x.flatten(0, 1)) and every.learned(x).data_ptr() == x.data_ptr()


def test_a_source_batch_learns_all_of_the_target_but_its_beginning():
    batch = collate_sources([([5, 6, 50], [1, 50, 7, 51, 2]), ([8], [1, 50, 2])], PAD)
    assert batch.source_BS.tolist() == [[5, 6, 50], [8, PAD, PAD]]
    assert batch.real_BS.tolist() == [[True] * 3, [True, False, False]]
    inputs_BT, targets_BT = next_token_pairs(batch.tokens_BT, batch.labels_BT)
    assert inputs_BT.tolist() == [[1, 50, 7, 51], [1, 50, 2, PAD]]
    assert targets_BT.flatten()[batch.supervised_N].tolist() == [50, 7, 51, 2, 50, 2]
    assert (batch.n_supervised, batch.n_tokens) == (6, 5 + 3 + 3 + 1)


def test_a_batch_travels_as_a_whole():
    batch = collate_sources([([5, 6], [1, 50, 2])], PAD)
    moved = batch.to(torch.device("meta"))
    assert type(moved) is type(batch) and (moved.n_supervised, moved.n_tokens) == (2, 5)
    for name in ("tokens_BT", "labels_BT", "supervised_N", "source_BS", "real_BS"):
        assert getattr(moved, name).device.type == "meta" and getattr(batch, name).device.type == "cpu"
