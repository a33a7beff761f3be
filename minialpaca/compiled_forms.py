"""What says the same in another form where it is compiled for a CPU, because that is faster there (docs/LOG.md has by how much)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialpaca import precision

CONTEXT = 512  # tokens, up to which attention is faster as products: 1.6 times at 256 and 512, slower at 1,024


def side_by_side(x: Tensor, linears: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """x W_1ᵀ, x W_2ᵀ, …; compiled for short products, as parts of one:  x [W_1; W_2; …]ᵀ

    The short copies of the W, which are made anyway, then stand below each other, and their gradients and that of x are one product
    each, too: 4 % of a step. On a GPU what joins the gradients costs more than that saves. Where a Linear is more than its W, or
    only some are trained, each is asked by itself.
    """
    if not (_compiled_for_a_cpu(x) and precision.active() != torch.float32 and _are_alike(linears)):
        return tuple(linear(x) for linear in linears)
    return F.linear(x, torch.cat([linear.weight for linear in linears])).split([len(linear.weight) for linear in linears], -1)


def spelled_is_faster(q_BHTK: Tensor, context: int) -> bool:
    """Whether attention is to be two products and a softmax: in bf16, for PyTorch's fused kernel computes in fp32 on a CPU."""
    return _compiled_for_a_cpu(q_BHTK) and precision.active() == torch.bfloat16 and context <= CONTEXT


def written(x: Tensor) -> Tensor:
    """x, which then stands in memory: the compiler would make a normed x anew for each row of the matrix that reads it (a quarter of a
    token's time). That a tensor is seen with its own strides makes it write it down.
    """
    return x.as_strided(x.shape, x.stride()) if _compiled_for_a_cpu(x) else x


def _compiled_for_a_cpu(x: Tensor) -> bool:
    return torch.compiler.is_compiling() and x.device.type == "cpu"


def _are_alike(linears: Sequence[nn.Linear]) -> bool:
    bare = all(type(linear) is nn.Linear and linear.bias is None and not is_hooked(linear) for linear in linears)
    return bare and len({linear.weight.requires_grad for linear in linears}) == 1


def is_hooked(module: nn.Module) -> bool:
    """Whether something else happens where it is asked, or on the way back: to take its weight alone would pass that over."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
