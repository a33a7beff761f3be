"""What the methods that change a Linear share.

Axes: I inputs, O outputs of a Linear, R rank; (…, I) stands for any axes before the last.
"""

import torch
from torch import Tensor, nn

from minialpaca.errors import UserError

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def trained_dtype(base: Tensor) -> torch.dtype:
    """What is trained is fp32 at least, whatever the base is stored in."""
    return torch.promote_types(base.dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """Detached and in fp32 at least, to be merged in."""
    return tensor.detach().to(trained_dtype(tensor))


def plain_linear(weight_OI: Tensor, bias_O: Tensor | None, like: nn.Linear) -> nn.Linear:
    """A frozen Linear of these values, in the dtype of `like`."""
    made = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None, device="meta")
    made.weight = nn.Parameter(weight_OI.detach().to(like.weight.dtype), requires_grad=False)
    if bias_O is not None:
        made.bias = nn.Parameter(bias_O.detach().to(like.weight.dtype), requires_grad=False)
    return made


def refuse_rank(rank: int, base: nn.Linear, path: str) -> None:
    if rank > min(base.weight.shape):
        raise UserError(f"adapter.rank = {rank}: {path} is {base.out_features} × {base.in_features}, whose rank is at most "
                        f"{min(base.weight.shape)}; lower it, or leave that one out of adapter.targets")
