"""Directions and balls, against the papers' sums, example by example."""

import math

import pytest
import spelled
import torch
from tiny import normal

from minialpaca.adversarial.direction import ascend, drawn, into_ball, l2_norm, steepest_l2, steepest_max, usable


def example_by_example(function, *tensors):
    return torch.tensor([function(*map(spelled.listed, rows)) for rows in zip(*tensors)], dtype=torch.float64)


def test_the_norm_is_the_papers_sum_over_an_examples_whole_sequence():
    g_BTD = normal(3, 4, 5)
    wanted = torch.tensor([spelled.length(spelled.listed(g)) for g in g_BTD], dtype=torch.float64)
    assert torch.allclose(l2_norm(g_BTD).flatten(), wanted, rtol=1e-12)
    assert l2_norm(g_BTD).shape == (3, 1, 1)
    assert l2_norm(torch.zeros(2, 3, 4)).flatten().tolist() == [0, 0]


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1.0, 1e22, 1e30])
def test_neither_tiny_nor_huge_gradients_leave_fp32(size):
    g_BTD = normal(2, 3, 4, dtype=torch.float32)
    r_BTD = steepest_l2(g_BTD * size, 0.7)
    assert torch.allclose(r_BTD, steepest_l2(g_BTD, 0.7), rtol=1e-6, atol=0)
    assert l2_norm(g_BTD * size).flatten().tolist() == pytest.approx((l2_norm(g_BTD) * size).flatten().tolist(), rel=1e-6)


def test_the_steepest_step_is_the_papers():
    g_BTD = normal(3, 4, 5)
    assert torch.allclose(steepest_l2(g_BTD, 0.7), example_by_example(lambda g: spelled.steepest_l2(g, 0.7), g_BTD), rtol=1e-12)
    assert l2_norm(steepest_l2(g_BTD, 0.7)).flatten().tolist() == pytest.approx([0.7] * 3, rel=1e-12)
    g_BTD[1, 2, 3] = 0.0
    assert torch.equal(steepest_max(g_BTD, 0.7), example_by_example(lambda g: spelled.steepest_max(g, 0.7), g_BTD))


@pytest.mark.parametrize("steepest", [steepest_l2, steepest_max])
@pytest.mark.parametrize("broken", [0.0, math.inf, -math.inf, math.nan])
def test_an_example_without_a_direction_stays_where_it_is_and_its_neighbours_do_not_notice(steepest, broken):
    g_BTD = normal(3, 4, 5)
    alone = steepest(g_BTD[[0, 2]], 0.7)
    if broken == 0.0:
        g_BTD[1] = 0.0
    else:
        g_BTD[1, 2, 3] = broken
    r_BTD = steepest(g_BTD, 0.7)
    assert usable(g_BTD).flatten().tolist() == [True, False, True]
    assert torch.equal(r_BTD[[0, 2]], alone) and r_BTD[1].eq(0).all()


def test_a_step_too_far_ends_on_the_ball_and_a_short_one_stays():
    r_BTD = normal(3, 4, 5) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    found = into_ball(r_BTD, 0.7)
    assert torch.allclose(found, example_by_example(lambda r: spelled.into_ball(r, 0.7), r_BTD), rtol=1e-12)
    assert torch.equal(found[0], r_BTD[0])
    assert torch.equal(into_ball(torch.zeros(1, 2, 3), 0.7), torch.zeros(1, 2, 3))


def test_an_ascent_is_a_step_along_the_gradient_and_back_into_the_ball():
    r_BTD, g_BTD = 0.1 * normal(3, 4, 5), normal(3, 4, 5, seed=5)
    for alpha in (0.2, 3.0):
        wanted = example_by_example(lambda r, g, a=alpha: spelled.ascended(r, g, a, 0.7), r_BTD, g_BTD)
        assert torch.allclose(ascend(r_BTD, g_BTD, alpha, 0.7), wanted, rtol=1e-12)


def test_what_is_drawn_fills_the_papers_cube_for_each_length_and_spares_padding():
    real_BT = torch.arange(200) < torch.tensor([200, 50, 3])[:, None]
    delta_BTD = drawn(real_BT, 8, 0.7, torch.Generator().manual_seed(3))
    assert delta_BTD.masked_select(~real_BT[..., None]).eq(0).all()
    for b, n in enumerate((200, 50, 3)):
        values, side = delta_BTD[b, :n], 0.7 / math.sqrt(8 * n)
        assert 0.8 * side < values.max() <= side and -side <= values.min() < -0.8 * side
    assert l2_norm(delta_BTD)[:2].flatten().tolist() == pytest.approx([0.7 / math.sqrt(3)] * 2, rel=0.05)
    assert torch.equal(delta_BTD, drawn(real_BT, 8, 0.7, torch.Generator().manual_seed(3)))
    assert not torch.equal(delta_BTD, drawn(real_BT, 8, 0.7, torch.Generator().manual_seed(4)))
