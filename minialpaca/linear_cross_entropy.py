"""The head and its cross entropy as one function, a slice of rows at a time: the logits of a step never exist at once.

With 2,048 tokens and a vocabulary of 8,192 they would be 64 MiB, and their softmax and their gradient as much again each.
A slice stays in the cache, and its gradient is made while it is there.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minialpaca import precision

SLICE = {"cpu": 1 << 21, "cuda": 1 << 27}  # logits in one slice


def loss_and_gradient(z_RV: Tensor, y_R1: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Σ_r −Σ_v q_rv log P_rv and ∂/∂z = P − q,  P = softmax(z),  q_rv = (1 − ε) 1[v = y_r] + ε/V   [pretrain.1] [smoothing.1]

    The gradient is written where z stood.
    """
    z_RV -= z_RV.amax(-1, keepdim=True)
    told_R1, mean_R1 = z_RV.gather(-1, y_R1), z_RV.mean(-1, keepdim=True) if smoothing else 0.0
    sum_R1 = z_RV.exp_().sum(-1, keepdim=True)
    loss = (sum_R1.log() - (1 - smoothing) * told_R1 - smoothing * mean_R1).sum()
    z_RV.div_(sum_R1).scatter_add_(-1, y_R1, torch.full_like(told_R1, smoothing - 1))
    return loss, z_RV.sub_(smoothing / z_RV.shape[1]) if smoothing else z_RV


def at_once(z_RV: Tensor, y_R1: Tensor, smoothing: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Σ_r −Σ_v q_rv log P_rv and P − q, all of it in one expression   [pretrain.1] [smoothing.1]

    A compiler makes two passes over memory of it: the sums of exp, then the gradient. Computed in `dtype`, handed back in that of z.
    """
    log_p_RV = z_RV.to(dtype).log_softmax(-1)
    q_RV = (torch.arange(z_RV.shape[1], device=z_RV.device) == y_R1).to(dtype) * (1 - smoothing) + smoothing / z_RV.shape[1]
    told_R1, mean_R1 = log_p_RV.gather(-1, y_R1), log_p_RV.mean(-1, keepdim=True) if smoothing else 0.0
    return -((1 - smoothing) * told_R1 + smoothing * mean_R1).sum(), (log_p_RV.exp() - q_RV).to(z_RV.dtype)


def in_place(z_RV: Tensor, y_R1: Tensor, smoothing: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same as it is fastest uncompiled."""
    loss, d_logits_RV = loss_and_gradient(z_RV.to(dtype), y_R1, smoothing)
    return loss, d_logits_RV.to(z_RV.dtype)


def summed_over_rows(d_logits_RV: Tensor, hidden_RD: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ_r d_r h_rᵀ (V, D). In fp16 of h/2^k, or some thousand rows add up to more than 65,504, and no loss scale reaches into here."""
    part = 2.0 ** (len(hidden_RD).bit_length() // 2) if hidden_RD.dtype == torch.float16 else 1.0
    product_VD = d_logits_RV.T @ (hidden_RD / part if part > 1 else hidden_RD)
    return part * product_VD.to(dtype) if part > 1 else product_VD


class LinearCrossEntropy(torch.autograd.Function):
    """Σ_n −log softmax(W h_n)_{y_n}, smoothed or not, with  ∂/∂h_n = Wᵀ (P_n − q_n)  and  ∂/∂W = Σ_n (P_n − q_n) h_nᵀ

    Both gradients are made on the way there and multiplied by the loss's own on the way back; of what is frozen none is
    made. Softmax and sums in fp32 at least. Every target is supervised: there is no IGNORE here.
    """

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, smoothing: float, judged: Callable) -> Tensor:
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        d_hidden_ND = torch.empty_like(hidden_ND) if for_hidden else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=dtype) if for_weight else None
        total = hidden_ND.new_zeros((), dtype=dtype)
        h_ND, w_VD = precision.short(hidden_ND), precision.short(weight_VD)  # once: each slice's products would make copies of their own
        rows = max(1, SLICE.get(hidden_ND.device.type, SLICE["cuda"]) // len(weight_VD))
        for first in range(0, len(hidden_ND), rows):
            here = slice(first, first + rows)
            loss, d_logits = judged(h_ND[here] @ w_VD.T, targets_N[here, None], smoothing, dtype)
            total += loss
            if for_hidden:
                d_hidden_ND[here] = d_logits @ w_VD
            if for_weight:
                d_weight_VD += summed_over_rows(d_logits, h_ND[here], dtype)
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_total: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        return (None if d_hidden_ND is None else d_total.to(d_hidden_ND.dtype) * d_hidden_ND,
                None if d_weight_VD is None else d_total * d_weight_VD, None, None, None)


def linear_cross_entropy_sum(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, smoothing: float = 0.0,
                             judged: Callable = in_place) -> Tensor:
    """`objectives.cross_entropy_sum` of the logits W h_n; every target is supervised. `judged`: how a slice is: `in_place`, or `at_once`."""
    return LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, smoothing, judged)
