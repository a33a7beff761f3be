"""What an embedding hands on to the rest of a model, watched and perturbed. No weight is touched."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Pass:
    """The embedding's outputs of one pass through a model: one call's, or an encoder–decoder's two, source and target."""

    def __init__(self):
        self.outputs: list[Tensor] = []

    def gradient(self) -> Tensor:
        """g_BTD = ∂L/∂e of this pass alone, whatever was accumulated elsewhere; in fp32 at least.

        An example's calls stand one behind the other along T: its sequence is all that it read.
        """
        # What no loss depends on has no gradient: it is 0.
        gradients = [torch.zeros_like(e) if e.grad is None else e.grad for e in self.outputs]
        g_BTD = torch.cat(gradients, 1)
        return g_BTD.to(torch.promote_types(g_BTD.dtype, torch.float32))


@contextlib.contextmanager
def perturbed(embedding: nn.Embedding, r_BTD: Tensor | None = None) -> Iterator[Pass]:
    """Within, the embedding says e + r where it said e, and the Pass keeps its outputs for their gradient.

    Also of a frozen embedding. The hook goes whatever happens; a pass in which the embedding was not asked is an error.
    """
    seen = Pass()

    def hook(module: nn.Module, inputs: tuple, e_BTD: Tensor) -> Tensor:
        if r_BTD is not None:
            first = sum(e.shape[1] for e in seen.outputs)
            e_BTD = e_BTD + r_BTD[:, first:first + e_BTD.shape[1]].to(e_BTD.dtype)
        if not e_BTD.requires_grad:
            e_BTD = e_BTD.detach().requires_grad_()
        e_BTD.retain_grad()
        seen.outputs.append(e_BTD)
        return e_BTD

    handle = embedding.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
    if not seen.outputs:
        raise RuntimeError("the attack touched nothing: the model never asked this embedding")
