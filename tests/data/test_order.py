"""The order of the data is a function of its key."""

import json
import random

import numpy as np
import pytest
import torch
from running import own_process

from minialpaca.data.order import permutation, raw, whole


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_a_permutation_holds_each_number_once(n):
    assert sorted(permutation(n, 3, 4).tolist()) == list(range(n))


def test_each_part_of_the_key_matters_and_its_place_too():
    keys = [(0,), (1,), (0, 1), (1, 1), (0, 0, 1), (0, 2), (2, 1), (0, 1, 3), (2**32 - 1, 5), (5, 2**32 - 1)]
    orders = {tuple(permutation(50, *key).tolist()) for key in keys}
    assert len(orders) == len(keys) and tuple(range(50)) not in orders
    assert len({raw(1, *key)[0] for key in keys}) == len(keys)


def test_positions_are_drawn_evenly():
    first = np.bincount([permutation(5, seed)[0] for seed in range(2000)], minlength=5)
    assert first.sum() == 2000 and np.all(np.abs(first - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5)


def test_the_order_is_the_same_in_a_fresh_process_and_in_a_year():
    code = ("import json, random; random.seed(9); from minialpaca.data.order import permutation, raw; "
            "print(json.dumps([permutation(9, 1, 2).tolist(), raw(2, 1, 2, 3).tolist()]))")
    done = own_process(code, [])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [permutation(9, 1, 2).tolist(), raw(2, 1, 2, 3).tolist()]
    assert permutation(9, 1, 2).tolist() == [7, 1, 3, 0, 4, 8, 2, 6, 5]


def test_one_number_is_pythons_own_and_keeps_all_its_bits():
    """NumPy 1 makes `raw(1, 1, 2)[0] % 1000` 64.0 and refuses `>> 1`."""
    assert type(whole(1, 2)) is int and whole(1, 2) == raw(1, 1, 2).tolist()[0] and whole(1, 2) >= 2**53
    assert whole(1, 2) % 1000 == int(str(whole(1, 2))[-3:])


def test_global_random_state_is_neither_read_nor_touched():
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    once = raw(20, 8).tolist()
    assert states() == before
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    permutation.cache_clear()
    assert raw(20, 8).tolist() == once
