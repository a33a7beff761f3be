"""Adversarial training: what one micro-batch adds to the gradient, clean and perturbed.

r is no function of θ to the gradient (Miyato et al. 2017 write it with θ̂, a copy). Every pass of a micro-batch drops the
same units, so that L(e + r) − L(e) is the effect of r.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from minialpaca.adversarial.direction import ascend, drawn, steepest_l2, steepest_max, usable
from minialpaca.adversarial.embedded import Pass, perturbed
from minialpaca.config import AdversarialConfig

Noted = dict[str, Tensor]  # what the log is to say of a micro-batch, summed over those of a step


@dataclass(frozen=True)
class View:
    """Texts and what the model says of them, whatever their labels."""

    says: Callable[[], list[Tensor]]  # the logits of each label group
    real_BT: Tensor                   # False on padding
    share: float                      # what one text weighs: one by the texts of the whole step


@dataclass(frozen=True)
class Passes:
    """What an attack may ask of a micro-batch, as often as it likes. Every pass drops the same units."""

    loss: Callable[[], Tensor]
    real_BT: Tensor  # False on padding; where the loss asks the embedding twice, both calls one behind the other
    seed: int        # of what is drawn
    views: Sequence[View] = ()


class Attack(Protocol):
    notes: tuple[str, ...]
    """What `backward` hands back, by name."""

    def backward(self, passes: Passes) -> Noted:
        """Adds the gradient of L_train to .grad. Hands back `loss` = L, and `adversarial_loss` = L at e + r."""


class Clean:
    """No attack: L_train = L."""

    notes = ("loss",)

    def backward(self, passes: Passes) -> Noted:
        clean = passes.loss()
        clean.backward()
        return {"loss": clean.detach()}


class OnOutputs(abc.ABC):
    """Attacks on the embedding's outputs; a subclass says how r is found."""

    notes = ("loss", "adversarial_loss", "attacks_skipped")

    def __init__(self, embedding: nn.Embedding, cfg: AdversarialConfig):
        self.embedding, self.cfg = embedding, cfg

    def backward(self, passes: Passes) -> Noted:
        """L_train = c L(e, y) + a L(e + r, y)   [fgm.6]

        c = clean_weight, a = adversarial_weight, both losses over the same supervised tokens. Miyato et al. 2017, eq. 6.
        """
        clean, g_BTD = self._clean(passes)
        r_BTD, found_B11 = self.perturbation(passes, g_BTD)
        with perturbed(self.embedding, r_BTD):
            adversarial = passes.loss()
        (self.cfg.adversarial_weight * adversarial).backward()
        return {"loss": clean, "adversarial_loss": adversarial.detach(), "attacks_skipped": (~found_B11).sum()}

    def find(self, passes: Passes) -> Tensor:
        """r of these texts for a model that is not being trained: no parameter's gradient is touched."""
        return self.perturbation(passes, self._gradient_at(passes, None))[0]

    @abc.abstractmethod
    def perturbation(self, passes: Passes, g_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """r, given the clean pass's gradient; and (B, 1, 1) for which texts every gradient on the way was usable."""

    def _clean(self, passes: Passes) -> tuple[Tensor, Tensor]:
        """(L, ∂L/∂e), having added the gradient of c L."""
        with perturbed(self.embedding) as seen:
            clean = passes.loss()
        if self.cfg.clean_weight:
            (self.cfg.clean_weight * clean).backward()
        else:
            clean.backward(inputs=seen.outputs)
        return clean.detach(), on_real(seen, passes.real_BT)

    def _gradient_at(self, passes: Passes, r_BTD: Tensor | None) -> Tensor:
        """∂L/∂e at e + r, or at e; no parameter's gradient is computed."""
        with perturbed(self.embedding, r_BTD) as seen:
            there = passes.loss()
        there.backward(inputs=seen.outputs)
        return on_real(seen, passes.real_BT)


class FGM(OnOutputs):
    """r = ε g / ‖g‖₂: one step along the gradient. Miyato et al. 2017."""

    def perturbation(self, passes: Passes, g_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return steepest_l2(g_BTD, self.cfg.epsilon), usable(g_BTD)


class FGSM(OnOutputs):
    """r = ε sign(g). Goodfellow et al. 2015."""

    def perturbation(self, passes: Passes, g_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return steepest_max(g_BTD, self.cfg.epsilon), usable(g_BTD)


class PGD(OnOutputs):
    """k steps along the gradient, back into the ball after each: r₀ = 0, r_{i+1} = Π(r_i + α g_i / ‖g_i‖₂). Madry et al. 2018.

    The clean pass is the first of the k gradients: k + 1 passes in all.
    """

    def perturbation(self, passes: Passes, g_BTD: Tensor) -> tuple[Tensor, Tensor]:
        r_BTD, found_B11 = torch.zeros_like(g_BTD), usable(g_BTD)
        for i in range(self.cfg.steps):
            g_BTD = self._gradient_at(passes, r_BTD) if i else g_BTD
            r_BTD = ascend(r_BTD, g_BTD, self.cfg.step_size or self.cfg.epsilon, self.cfg.epsilon)
            found_B11 = found_B11 & usable(g_BTD)  # these passes train nothing, so nobody else would notice
        return r_BTD, found_B11


class FreeLB:
    """∇_θ L_train = (1/K) Σ_{k=0..K−1} ∇_θ L(e + δ_k),  δ_{k+1} = Π(δ_k + α g_k / ‖g_k‖₂)   [freelb.2]

    Every pass on the way up trains, none is spent on searching alone; δ₀ is drawn. Zhu et al. 2020, algorithm 1.
    """

    notes = ("loss", "attacks_skipped")

    def __init__(self, embedding: nn.Embedding, cfg: AdversarialConfig):
        self.embedding, self.cfg = embedding, cfg

    def backward(self, passes: Passes) -> Noted:
        K, total, found = self.cfg.steps, 0.0, True
        generator = torch.Generator().manual_seed(passes.seed)
        delta_BTD = drawn(passes.real_BT, self.embedding.embedding_dim, self.cfg.epsilon, generator)
        for _ in range(K):
            with perturbed(self.embedding, delta_BTD) as seen:
                there = passes.loss() / K
            there.backward()
            g_BTD = on_real(seen, passes.real_BT)
            delta_BTD = ascend(delta_BTD, g_BTD, self.cfg.step_size or self.cfg.epsilon, self.cfg.epsilon)
            total, found = total + there.detach(), found & usable(g_BTD)
        return {"loss": total, "attacks_skipped": (~found).sum()}


def fault_of(record: dict[str, float]) -> str | None:
    """What a step's numbers say of an attack that did not do what was asked, and what to change."""
    if record.get("attacks_skipped"):
        return (f"{record['attacks_skipped']:.0f} texts of step {record['step']} were not attacked: their gradients were zero or not finite "
                "(attacks_skipped); where that goes on, " + ("set adversarial.xi back to 0.1, or lower optim.lr" if "virtual_loss" in record else
                 "lower optim.lr, or, if it is not, set train.precision=fp32"))
    if "adversarial_loss" in record and record["adversarial_loss"] == record["loss"]:
        return (f"the attack of step {record['step']} moved nothing: adversarial_loss is loss to the last digit; raise adversarial.epsilon")
    if record.get("virtual_loss") == 0:
        return f"the attack of step {record['step']} moved nothing: virtual_loss is 0; raise adversarial.epsilon"
    return None


def on_real(seen: Pass, real_BT: Tensor) -> Tensor:
    """The gradient of a pass, 0 on padding, of which nothing is to enter a norm."""
    return seen.gradient().masked_fill(~real_BT[..., None], 0.0)
