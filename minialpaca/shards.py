"""A tensor whose rows are dealt out to processes (PyTorch's DTensor): the part here, the whole, and the ways between them.

    W = [W_0; W_1; …; W_{n−1}]     W_r: the rows of process r, as torch.chunk cuts them; the last ones may have fewer, or none

Any other tensor is its own part, and whole everywhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_dealt(value) -> bool:
    return hasattr(value, "full_tensor")  # asked so, because importing DTensor takes as long as a small run's first steps


def local(tensor: Tensor) -> Tensor:
    """W_r: what this process holds, where it lies; a gradient reaches W through it."""
    return tensor.to_local() if is_dealt(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """W, gathered, so all processes have to ask; a gradient that is the same everywhere reaches each one's rows through it."""
    return tensor.full_tensor() if is_dealt(tensor) else tensor


def fill(tensor: Tensor, values: Tensor) -> None:
    """W ← `values`, which are whole, and the same everywhere."""
    if tensor.shape != values.shape:
        raise ValueError(f"{tuple(values.shape)} and not {tuple(tensor.shape)}")
    with torch.no_grad():
        if is_dealt(tensor):
            mesh = tensor.device_mesh
            values = chunk(values, mesh.get_local_rank(), mesh.size())
        local(tensor).copy_(values)


def chunk(values: Tensor, rank: int, size: int) -> Tensor:
    """Rows of process `rank` of `size`."""
    parts = values.chunk(size)
    return parts[rank] if rank < len(parts) else values[:0]


# ── states, which are tensors in dicts and lists ─────────────────────────────────────────────────


def part_of(state, first: bool):
    """What a process keeps of a state: its rows; and, where it is the first, what is whole, for which the others have None."""
    if isinstance(state, dict):
        return {key: part_of(value, first) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(part_of(value, first) for value in state)
    if is_dealt(state):
        return local(state.detach())
    return state if first else None


def joined(parts: Sequence):
    """The state of which these are the parts, in the order of their processes."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, dict):
        if any(part.keys() != first.keys() for part in parts):
            raise ValueError("its parts name different things")
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(joined(values) for values in zip(*parts, strict=True))
    if isinstance(first, Tensor) and parts[1] is not None:
        return torch.cat(parts)
    return first
