"""A decoder's matrices as one token needs them: W and its product with a few rows, held as that is fastest where it is.

A library's product of a matrix and one row keeps one core busy and reads it at a third of what memory gives; docs/LOG.md has what
each form here was measured to do.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialpaca.compiled_forms import written

PARTS = 32  # more than most machines have cores; more parts than cores cost nothing
BLOCK = 16  # rows whose sums in fp32 a vector of AVX-512 holds; narrower ones take two or four


def quantised(weight_FD: Tensor) -> tuple[Tensor, Tensor]:
    """W ≈ diag(s) Q,  Q_fd = round(W_fd / s_f) ∈ −127 … 127,  s_f = max_d |W_fd| / 127   [int8.1]

    Q in int8 and s (F, 1): a scale for each row, so that |W − diag(s) Q| ≤ s/2. A row of zeros has s = 1.
    Dettmers et al. 2022, §2 (absmax, row-wise); of the matrices alone, activations stay as they are.
    """
    wide_FD = weight_FD.to(torch.promote_types(weight_FD.dtype, torch.float32))  # in bf16 W/s is rounded to 128, which is −128 in int8
    s_F1 = (wide_FD.abs().amax(-1, keepdim=True) / 127).to(weight_FD.dtype)
    s_F1 = s_F1.masked_fill(s_F1 == 0, 1)
    return (wide_FD / s_F1).round().clamp(-127, 127).to(torch.int8), s_F1


class Form(NamedTuple):
    """How W (F, D) is laid out, and W x for x (B, D), which may have more rows than W: those it was filled up with."""

    laid: Callable[[Tensor], Tensor]
    product: Callable[[Tensor, Tensor], Tensor]


# ── as it is ─────────────────────────────────────────────────────────────────────────────────────


def whole(weight_FD: Tensor, x_BD: Tensor) -> Tensor:
    """W x by the library, in x's dtype; compiled for CUDA, a single row `by_sums`."""
    if torch.compiler.is_compiling() and x_BD.is_cuda and len(x_BD) == 1:
        return by_sums(weight_FD, x_BD)
    return F.linear(x_BD, weight_FD.to(x_BD.dtype))


def by_sums(weight_FD: Tensor, x_1D: Tensor) -> Tensor:
    """W x as (Σ_d W_fd x_d), which a compiler turns into one pass over W, whatever W is held in."""
    wide = torch.promote_types(x_1D.dtype, torch.float32)
    return (weight_FD.to(wide) * x_1D.to(wide)).sum(-1)[None].to(x_1D.dtype)


# ── in parts ─────────────────────────────────────────────────────────────────────────────────────


def parts_of(weight_FD: Tensor) -> Tensor:
    """W's rows in parts, the last one filled up with zeros: (N, F, D)."""
    return F.pad(weight_FD, (0, 0, 0, -len(weight_FD) % PARTS)).unflatten(0, (PARTS, -1))


def in_parts(weight_NFD: Tensor, x_BD: Tensor) -> Tensor:
    """W x as the products of its parts, which are dealt out to all cores: what an uncompiled single row in fp32 is fastest by."""
    return torch.bmm(weight_NFD.to(x_BD.dtype), x_BD.T.expand(PARTS, -1, -1)).flatten(0, 1).T


# ── in blocks ────────────────────────────────────────────────────────────────────────────────────


def blocks_of(weight_FD: Tensor) -> Tensor:
    """W's rows by sixteen, turned: (N, D, F), the last block filled up with zeros."""
    return F.pad(weight_FD, (0, 0, 0, -len(weight_FD) % BLOCK)).unflatten(0, (-1, BLOCK)).mT.contiguous()


def in_blocks(weight_NDF: Tensor, x_BD: Tensor) -> Tensor:
    """W x, the sums of a block's rows side by side: compiled, sixteen of W times one number of x are added at once, and nothing is
    added up across a vector. By fours first, for each addition to a sum waits for the one before: short matrices are a quarter faster.
    """
    wide = torch.promote_types(x_BD.dtype, torch.float32)
    terms_BNDF = weight_NDF.to(wide) * x_BD[:, None, :, None].to(wide)
    fours = terms_BNDF.unflatten(2, (-1, math.gcd(x_BD.shape[1], 4))).unbind(3)
    return functools.reduce(torch.add, fours).sum(2).flatten(1).to(x_BD.dtype)


# ── packed ───────────────────────────────────────────────────────────────────────────────────────


def is_packable(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies such matrices on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(weight_FD: Tensor) -> Tensor:
    """W in oneDNN's own layout, which nothing but `by_onednn` reads."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_FD.contiguous())


def by_onednn(weight: Tensor, x_BD: Tensor) -> Tensor:
    """W x of a packed W: nothing is laid out anew at each call, and all cores take part."""
    return torch.ops.mkldnn._linear_pointwise(x_BD, weight, None, "none", [], "")


# ── whichever ────────────────────────────────────────────────────────────────────────────────────

WHOLE = Form(lambda weight_FD: weight_FD, whole)
IN_PARTS = Form(parts_of, in_parts)
IN_BLOCKS = Form(blocks_of, in_blocks)
PACKED = Form(packed, by_onednn)


def form_for(weight_FD: Tensor, several: bool, int8: bool, compiled: bool) -> Form:
    """several: whether there will be more than one row. Compiled for several, a CPU's matrices are packed by the compiler, which freezes them."""
    if weight_FD.device.type != "cpu":
        return WHOLE
    if compiled:
        return WHOLE if several and not int8 else IN_BLOCKS
    if weight_FD.dtype in (torch.float32, torch.float64) and (int8 or not several):
        return IN_PARTS
    return PACKED if is_packable(weight_FD.dtype) and not int8 else WHOLE


class Held(nn.Module):
    """W (F, D), or Q and its scales in int8, and W x in x's dtype."""

    def __init__(self, weight_FD: Tensor, several: bool, int8: bool, compiled: bool):
        super().__init__()
        self.n_rows, self.int8 = len(weight_FD), int8
        laid, self.product = form_for(weight_FD, several, int8, compiled)
        if int8:
            weight_FD, scale_F1 = quantised(weight_FD)
            self.register_buffer("scale_F", scale_F1[:, 0])
        self.register_buffer("weight", laid(weight_FD))

    def forward(self, x_BD: Tensor) -> Tensor:
        filled = self.product(self.weight, written(x_BD))
        y_BF = filled if filled.shape[1] == self.n_rows else filled[:, :self.n_rows]
        return y_BF * self.scale_F if self.int8 else y_BF
