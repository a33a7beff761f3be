"""What is computed in another form where it is compiled: it says the same, and is taken where it is said to be."""

import contextlib
import dataclasses

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from minialpaca import model as under_test
from minialpaca import precision
from minialpaca.compiled_forms import side_by_side
from minialpaca.model import Attention


@pytest.fixture
def compiling(monkeypatch):
    """The forms themselves, run as they stand: a compiler would take seconds for each case."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def counted(monkeypatch, owner, name: str) -> list:
    """The calls of a function from here on."""
    calls, asked = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(args) or asked(*args, **kwargs))
    return calls


def three(**how) -> list[nn.Linear]:
    return [nn.Linear(6, rows, bias=False, dtype=torch.float64, **how) for rows in (4, 2, 8)]


def test_products_side_by_side_are_each_ones_own(compiling, monkeypatch):
    """Values and gradients, of W_1, W_2, W_3 and x; float64 is not cast."""
    linears, x = three(), tiny.normal(3, 5, 6, dtype=torch.float64).requires_grad_()
    weights = [linear.weight for linear in linears]
    alone = [linear(x) for linear in linears]
    noise = [tiny.normal(*y.shape, seed=i, dtype=torch.float64) for i, y in enumerate(alone)]
    expected = torch.autograd.grad(alone, [x, *weights], noise)
    products = counted(monkeypatch, F, "linear")
    with precision.casting(torch.bfloat16):
        joined = side_by_side(x, linears)
        found = torch.autograd.grad(joined, [x, *weights], noise)
    assert len(products) == 1
    for one, other in [*zip(joined, alone, strict=True), *zip(found, expected, strict=True)]:
        assert_close(one, other)


def spoiled(how: str) -> list[nn.Linear]:
    linears = three()
    if how == "biased":
        linears[1] = nn.Linear(6, 2, dtype=torch.float64)
    if how == "watched":
        linears[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    if how == "told before":
        linears[1].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    if how == "told behind":
        linears[1].register_full_backward_hook(lambda module, to_inputs, to_outputs: None)
    if how == "told before the way back":
        linears[1].register_full_backward_pre_hook(lambda module, to_outputs: None)
    if how == "another kind":
        linears[1] = nn.Sequential(linears[1])
    if how == "frozen":
        linears[1].weight.requires_grad_(False)
    return linears


@pytest.mark.parametrize("how", ["biased", "watched", "told before", "told behind", "told before the way back", "another kind", "frozen", "in fp32", "not compiled"])
def test_what_is_more_than_its_matrix_is_asked_by_itself(monkeypatch, how):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: how != "not compiled")
    linears, x = spoiled(how), tiny.normal(5, 6, dtype=torch.float64)
    alone = [linear(x) for linear in linears]
    products = counted(monkeypatch, F, "linear")
    with contextlib.nullcontext() if how == "in fp32" else precision.casting(torch.bfloat16):
        found = side_by_side(x, linears)
    assert len(products) == 3 and all(map(torch.equal, found, alone))


@pytest.mark.parametrize(("context", "dtype", "compiled", "fused"), [
    (512, torch.bfloat16, True, False), (513, torch.bfloat16, True, True), (512, torch.float32, True, True),
    (512, torch.float16, True, True), (512, torch.bfloat16, False, True)])
def test_attention_is_spelled_where_that_is_faster(monkeypatch, context, dtype, compiled, fused):
    """On a CPU, in bf16, compiled, up to 512 tokens; and it says what the fused one says."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    attn = Attention(dataclasses.replace(tiny.MHA, max_seq_len=context))
    q, k, v = (tiny.normal(2, 6, 9, 10, seed=i, dtype=torch.float32) for i in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    kernels, products = counted(monkeypatch, F, "scaled_dot_product_attention"), counted(monkeypatch, under_test, "spelled_attention")
    with precision.casting(dtype):
        mix = attn.attend(q, k, v, None, None)
    assert (len(kernels), len(products)) == (int(fused), int(not fused))
    assert (mix - expected).abs().max() < 3e-2


def test_other_devices_have_forms_of_their_own(compiling, monkeypatch):
    linears, x = [linear.to("meta") for linear in three()], torch.empty(5, 6, dtype=torch.float64, device="meta")
    products = counted(monkeypatch, F, "linear")
    with precision.casting(torch.bfloat16):
        side_by_side(x, linears)
    assert len(products) == 3
