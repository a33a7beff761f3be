"""A tensor in parts, and a state of such parts."""

import pytest
import torch

from minialpaca.shards import chunk, fill, is_dealt, joined, local, part_of, whole


class Dealt:
    """As much of a DTensor as `part_of` looks at: a matrix of which this process holds some rows."""

    def __init__(self, rows):
        self.rows = rows

    def full_tensor(self):
        raise AssertionError("nobody is there to send the other rows")

    def detach(self):
        return self

    def to_local(self):
        return self.rows


@pytest.mark.parametrize("rows, size, sizes", [(6, 2, [3, 3]), (5, 2, [3, 2]), (5, 4, [2, 2, 1, 0]), (1, 3, [1, 0, 0]), (9, 4, [3, 3, 3, 0])])
def test_rows_are_dealt_out_in_order_and_joined_again(rows, size, sizes):
    w = torch.arange(rows * 2.0).view(rows, 2)
    parts = [chunk(w, rank, size) for rank in range(size)]
    assert [len(part) for part in parts] == sizes and torch.equal(joined(parts), w)


def test_a_state_is_the_first_ones_but_for_what_is_dealt_out():
    w, step = torch.randn(5, 2), torch.tensor(3.0)

    def state(rank):
        return {"state": {0: {"m": Dealt(chunk(w, rank, 2)), "step": step}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.95), "none": None}]}

    parts = [part_of(state(rank), rank == 0) for rank in range(2)]
    assert parts[1]["groups"] == [{"lr": None, "betas": (None, None), "none": None}] and parts[1]["state"][0]["step"] is None
    found = joined(parts)
    assert torch.equal(found["state"][0]["m"], w) and found["state"][0]["step"] is step and found["groups"] == state(0)["groups"]


@pytest.mark.parametrize("parts", [[{"a": torch.ones(2)}, {"b": torch.ones(2)}], [{"a": torch.ones(2, 3)}, {"a": torch.ones(2, 4)}],
                                   [{"a": [torch.ones(1)]}, {"a": []}], [{"a": torch.ones(1)}, [1]]])
def test_parts_of_different_things_are_not_joined(parts):
    with pytest.raises((ValueError, RuntimeError, AttributeError)):
        joined(parts)


def test_any_other_tensor_is_its_own_part():
    w = torch.nn.Parameter(torch.randn(3, 2))
    assert local(w) is whole(w) is w and not is_dealt(w)
    fill(w, torch.ones(3, 2))
    assert bool((w == 1).all())
    with pytest.raises(ValueError, match=r"\(2, 3\) and not \(3, 2\)"):
        fill(w, torch.ones(2, 3))
