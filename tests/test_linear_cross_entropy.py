"""Head and cross entropy in slices: the same loss and the same gradients as of all logits at once."""

import pytest
import torch
from tiny import normal, tokens

from minialpaca import linear_cross_entropy
from minialpaca.linear_cross_entropy import at_once, in_place, linear_cross_entropy_sum
from minialpaca.objectives import cross_entropy_sum

N, D, V = 11, 5, 7


def parts(seed=0):
    return normal(N, D, seed=seed).requires_grad_(), normal(V, D, seed=seed + 1).requires_grad_(), tokens(N, vocab_size=V)


@pytest.fixture(params=[1, 3 * V, N * V, 1000])
def slices(request, monkeypatch):
    monkeypatch.setitem(linear_cross_entropy.SLICE, "cpu", request.param)


@pytest.mark.parametrize("judged", [in_place, at_once])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradients_are_those_of_all_logits(slices, smoothing, judged):
    hidden_ND, weight_VD, targets_N = parts()
    found = linear_cross_entropy_sum(hidden_ND, weight_VD, targets_N, smoothing, judged)
    wanted = cross_entropy_sum(hidden_ND @ weight_VD.T, targets_N, smoothing)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(3 * found, (hidden_ND, weight_VD)), torch.autograd.grad(3 * wanted, (hidden_ND, weight_VD))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_gradcheck(slices):
    hidden_ND, weight_VD, targets_N = parts()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy_sum(h, w, targets_N, 0.1), (hidden_ND, weight_VD))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(frozen):
    hidden_ND, weight_VD, targets_N = parts()
    both = torch.autograd.grad(linear_cross_entropy_sum(hidden_ND, weight_VD, targets_N), (hidden_ND, weight_VD))
    (hidden_ND, weight_VD)[frozen].requires_grad_(False)
    linear_cross_entropy_sum(hidden_ND, weight_VD, targets_N).backward()
    assert (hidden_ND, weight_VD)[frozen].grad is None
    assert torch.equal((hidden_ND, weight_VD)[1 - frozen].grad, both[1 - frozen])


def test_huge_logits_overflow_nowhere():
    hidden_ND, weight_VD, targets_N = (t.detach() for t in parts())
    hidden_ND = (1e4 * hidden_ND).float().requires_grad_()
    found = linear_cross_entropy_sum(hidden_ND, weight_VD.float(), targets_N)
    found.backward()
    assert found.isfinite() and hidden_ND.grad.isfinite().all()
    torch.testing.assert_close(found, cross_entropy_sum(hidden_ND @ weight_VD.float().T, targets_N), rtol=1e-6, atol=0)


@pytest.mark.parametrize("judged", [in_place, at_once])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_products_and_fp32_softmax(dtype, judged):
    hidden_ND, weight_VD, targets_N = (t.detach() for t in parts())
    low = hidden_ND.to(dtype).requires_grad_(), weight_VD.to(dtype).requires_grad_()
    found = linear_cross_entropy_sum(*low, targets_N, judged=judged)
    assert found.dtype == torch.float32
    wanted = cross_entropy_sum(low[0].detach().double() @ low[1].detach().double().T, targets_N)
    assert found.item() == pytest.approx(wanted.item(), rel=0.02)
    found.backward()
    assert low[0].grad.dtype == low[1].grad.dtype == dtype and low[1].grad.isfinite().all()


@pytest.mark.parametrize("judged", [in_place, at_once])
def test_a_slice_in_bf16_is_judged_in_fp32(judged):
    z_RV, y_R = normal(N, V).bfloat16(), tokens(N, vocab_size=V)
    loss, d_logits_RV = judged(z_RV.clone(), y_R[:, None], 0.1, torch.float32)
    assert loss.item() == pytest.approx(cross_entropy_sum(z_RV.double(), y_R, 0.1).item(), rel=1e-6)
    assert d_logits_RV.dtype == torch.bfloat16


def test_many_rows_in_fp16_do_not_overflow_the_heads_gradient():
    """8,192 rows of one target and a coordinate of 9 add up to 73,728, beyond fp16, in a product that no loss scale reaches."""
    N = 8192
    hidden_ND = torch.full((N, 2), 9.0, dtype=torch.float16)
    weight_VD = torch.zeros(512, 2, dtype=torch.float16, requires_grad=True)
    d_weight = linear_cross_entropy.summed_over_rows(torch.full((N, 3), -1.0, dtype=torch.float16), hidden_ND, torch.float32)
    assert d_weight.dtype == torch.float32 and d_weight.eq(-9.0 * N).all()
    exact = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(linear_cross_entropy.summed_over_rows(*exact, torch.float64), exact[0].T @ exact[1])
    linear_cross_entropy_sum(hidden_ND, weight_VD, torch.zeros(N, dtype=torch.long)).mul(2.0**-8).backward()
    assert weight_VD.grad.isfinite().all()


def test_nothing_supervised_is_no_loss_and_no_gradient():
    hidden_ND, weight_VD, _ = parts()
    loss = linear_cross_entropy_sum(hidden_ND[:0], weight_VD, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and weight_VD.grad.eq(0).all()
