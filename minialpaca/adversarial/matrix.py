"""The common shortcut: the embedding matrix is perturbed, not its outputs.

Its ε means something else: one norm over the whole matrix, so a token moves the less the more tokens the batch holds, and
equal tokens of different examples move together. Here because published results were made with it.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minialpaca.adversarial.attack import Noted, Passes
from minialpaca.adversarial.direction import steepest_l2, usable
from minialpaca.config import AdversarialConfig
from minialpaca.errors import UserError


@contextlib.contextmanager
def moved(weight: Tensor, r: Tensor) -> Iterator[None]:
    """Within, the weight is w + r; afterwards, whatever happened, the very bits of before: w + r − r would round."""
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.add_(r)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


class Matrix:
    """r = ε G / ‖G‖₂, G = ∂L/∂W_embed of this micro-batch, one norm for the whole matrix   [fgm.matrix]

    L_train = c L(W) + a L(W + r).
    """

    notes = ("loss", "adversarial_loss", "attacks_skipped")

    def __init__(self, embedding: nn.Embedding, cfg: AdversarialConfig, tied: bool):
        self.weight, self.cfg = embedding.weight, cfg
        if tied and not cfg.tied:
            raise UserError("adversarial.method = 'matrix': the embedding is the output head, too (model.tie_embeddings), and "
                            "would be moved in both; use adversarial.method=fgm, or ask for it by adversarial.tied=true")
        if not self.weight.requires_grad:
            raise UserError("adversarial.method = 'matrix': the embedding matrix is frozen and has no gradient to follow; use "
                            "adversarial.method=fgm, or train it (adapter.also=embedding)")

    def backward(self, passes: Passes) -> Noted:
        clean, G_VD = self._clean(passes)
        skipped = (~usable(G_VD[None])).sum()  # now: what follows is added to the same tensor where it became .grad
        with moved(self.weight, steepest_l2(G_VD[None], self.cfg.epsilon)[0].to(self.weight.dtype)):
            adversarial = passes.loss()
            (self.cfg.adversarial_weight * adversarial).backward()
        return {"loss": clean, "adversarial_loss": adversarial.detach(), "attacks_skipped": skipped}

    def _clean(self, passes: Passes) -> tuple[Tensor, Tensor]:
        """(L, this pass's own ∂L/∂W): .grad also holds what earlier micro-batches left there."""
        fresh: list[Tensor] = []
        handle = self.weight.register_hook(lambda gradient: fresh.append(gradient.detach()))
        try:
            clean = passes.loss()
            if self.cfg.clean_weight:
                (self.cfg.clean_weight * clean).backward()
            else:
                fresh += torch.autograd.grad(clean, self.weight)
        finally:
            handle.remove()
        if not fresh:
            raise RuntimeError("the attack touched nothing: the loss does not depend on this matrix")
        return clean.detach(), fresh[-1]
