"""The Transformer's equations, each against its sum in spelled.py and by pencil."""

import math

import pytest
import spelled
import tiny
import torch
from asked import close
from spelled import listed

from minialpaca.model import causal, gated_swish, rms_norm, rotary_angles, rotate, spelled_attention


def test_rms_norm_is_the_papers_sum():
    x, gain = tiny.normal(3, 7) * 1e-2, tiny.normal(7, seed=3)  # small, so that ε matters
    close(rms_norm(x, gain, 1e-4), [spelled.rms_norm(row, listed(gain), 1e-4) for row in listed(x)])


def test_rms_norm_of_bf16_is_computed_in_fp32():
    """So that it is rounded once, at the end: the float64 result to the nearest bf16, but for rare ties in fp32."""
    x = tiny.normal(10_000).to(torch.bfloat16)
    out = rms_norm(x, torch.ones(10_000, dtype=torch.bfloat16), 1e-5)
    assert out.dtype == torch.bfloat16
    nearest = torch.tensor(spelled.rms_norm(listed(x), [1.0] * 10_000, 1e-5), dtype=torch.float64).bfloat16()
    assert int((out != nearest).sum()) < 10


def test_rotary_angles_are_positions_over_growing_wavelengths():
    positions = torch.tensor([0.0, 1.0, 6.0, 1000.0], dtype=torch.float64)
    cos, sin = rotary_angles(positions, 10, 500.0)
    angles = [[spelled.rotary_angle(m, i, 10, 500.0) for i in range(5)] for m in positions.tolist()]
    close(cos, torch.tensor(angles, dtype=torch.float64).cos())
    close(sin, torch.tensor(angles, dtype=torch.float64).sin())


def test_one_rotation_by_pencil_turns_adjacent_pairs():
    """θ = 100, K = 4, m = π/2: pair (0, 1) by 90°, pair (2, 3) by 9°."""
    cos, sin = rotary_angles(torch.tensor([math.pi / 2], dtype=torch.float64), 4, 100.0)
    turned = rotate(torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64), cos, sin)
    close(turned, [[0.0, 1.0, math.cos(math.pi / 20), math.sin(math.pi / 20)]])


def test_rotation_is_the_papers_matrix():
    x_BHTK = tiny.normal(2, 3, 5, 8)
    turned = rotate(x_BHTK, *rotary_angles(torch.arange(5, dtype=torch.float64), 8, 50.0))
    expected = [[[spelled.rotate(x, m, 50.0) for m, x in enumerate(head)] for head in row] for row in listed(x_BHTK)]
    close(turned, expected)


def test_rotated_scores_depend_on_the_distance_alone():
    q, k = tiny.normal(8), tiny.normal(8, seed=5)

    def score(m: float, n: float) -> float:
        at = [rotate(x[None], *rotary_angles(torch.tensor([p], dtype=torch.float64), 8, 100.0))
              for x, p in ((q, m), (k, n))]
        return float((at[0] * at[1]).sum())

    for further in (1, 100, 10_000):
        assert score(5, 0) == pytest.approx(score(further + 5, further), abs=1e-10)
    assert abs(score(5, 0) - score(0, 5)) > 0.1 and abs(score(5, 0) - score(4, 0)) > 0.1


def test_halves_are_adjacent_pairs_with_the_rows_of_q_and_k_permuted():
    """The layout of Hugging Face's Llama, pairs (i, i + K/2): row i of a head is our row 2i, row K/2 + i our 2i + 1."""
    H, K, D = 3, 8, 7
    rows = torch.cat([h * K + torch.cat((torch.arange(0, K, 2), torch.arange(1, K, 2))) for h in range(H)])
    W_q, W_k, x_TD = tiny.normal(H * K, D, seed=6), tiny.normal(H * K, D, seed=7), tiny.normal(5, D)
    cos, sin = rotary_angles(torch.arange(5, dtype=torch.float64), K, 50.0)

    def by_halves(x_HTK):
        first, second = x_HTK.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def scores(W_q, W_k, turned):
        q, k = (turned((x_TD @ W.T).unflatten(-1, (H, K)).transpose(0, 1)) for W in (W_q, W_k))
        return q @ k.mT

    ours = scores(W_q, W_k, lambda x: rotate(x, cos, sin))
    close(scores(W_q[rows], W_k[rows], by_halves), ours)
    assert (scores(W_q, W_k, by_halves) - ours).abs().max() > 1  # the same rows in the other layout are another model


def test_attention_is_the_papers_sum_under_any_mask():
    q, k, v = tiny.normal(2, 3, 5, 4), tiny.normal(2, 3, 7, 4, seed=3), tiny.normal(2, 3, 7, 4, seed=4)
    may_look = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    may_look[..., 3] = True
    mix, weights = spelled_attention(q, k, v, may_look)
    for b in range(2):
        for h in range(3):
            heads = spelled.attention(listed(q[b, h]), listed(k[b, h]), listed(v[b, h]), may_look[b, 0].tolist())
            close(mix[b, h], heads[0])
            close(weights[b, h], heads[1])


def test_the_map_of_bf16_is_rounded_once():
    """The softmax of the bf16 scores is taken in fp32: the float64 one to the nearest bf16, but for rare ties."""
    q, k = tiny.normal(1, 2, 30, 8, dtype=torch.bfloat16), tiny.normal(1, 2, 40, 8, seed=3, dtype=torch.bfloat16)
    _, weights = spelled_attention(q, k, k)
    scores = (q @ k.mT / math.sqrt(8)).double()
    assert weights.dtype == torch.bfloat16
    assert int((weights != scores.softmax(-1).bfloat16()).sum()) < 5


def test_attention_without_a_mask_looks_at_all():
    q, k, v = tiny.normal(1, 1, 2, 4), tiny.normal(1, 1, 3, 4, seed=3), tiny.normal(1, 1, 3, 4, seed=4)
    mix, _ = spelled_attention(q, k, v)
    close(mix[0, 0], spelled.attention(listed(q[0, 0]), listed(k[0, 0]), listed(v[0, 0]), [[True] * 3] * 2)[0])


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 4), (3, 1), (3, 4)])
def test_causal_lets_a_query_look_at_itself_and_before(offset, length):
    expected = [[s <= offset + t for s in range(offset + length)] for t in range(length)]
    assert causal(offset, length, torch.device("cpu")).tolist() == expected


def test_gated_swish_is_the_papers_product():
    gate, up = tiny.normal(9) * 3, tiny.normal(9, seed=3)
    close(gated_swish(gate, up), [spelled.swish(g) * u for g, u in zip(listed(gate), listed(up))])


def test_mlp_gates_with_gate_proj():
    mlp = tiny.model().double().layers[0].mlp
    x = tiny.normal(4, 60)
    weights = [listed(p.weight) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    close(mlp(x), [spelled.swiglu(row, *weights) for row in listed(x)])


@pytest.mark.parametrize("function", [
    lambda x: rms_norm(x, tiny.normal(6, seed=9), 1e-3),
    lambda x: rotate(x, *rotary_angles(torch.arange(3, dtype=torch.float64), 6, 10.0)),
    lambda x: gated_swish(x, x.flip(0)),
    lambda x: spelled_attention(x, x.flip(1), x * 2, causal(0, 3, x.device))[0],
], ids=["rms_norm", "rotate", "gated_swish", "spelled_attention"])
def test_gradients_are_the_slopes(function):
    assert torch.autograd.gradcheck(function, (tiny.normal(1, 2, 3, 6).requires_grad_(),))
