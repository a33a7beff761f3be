"""Virtual adversarial training: it is the model's own opinion that must not move, so texts need no label."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minialpaca import precision
from minialpaca.adversarial.attack import Noted, Passes, View, on_real
from minialpaca.adversarial.direction import steepest_l2, usable
from minialpaca.adversarial.embedded import perturbed
from minialpaca.config import AdversarialConfig
from minialpaca.objectives import kl_sum
from minialpaca.transfer import sent


class VAT:
    notes = ("loss", "virtual_loss", "attacks_skipped")

    def __init__(self, embedding: nn.Embedding, cfg: AdversarialConfig):
        self.embedding, self.cfg = embedding, cfg

    def backward(self, passes: Passes) -> Noted:
        """L_train = c L(e, y) + a (1/N') Σ_n KL(P(·|e_n; θ̂) ‖ P(·|e_n + r_n; θ))   [vat.8]

        over the N' texts of a step, labelled and unlabelled; M label groups add up, as in finetune.1. Miyato et al. 2017, eq. 8.
        """
        clean = passes.loss()
        if self.cfg.clean_weight:
            (self.cfg.clean_weight * clean).backward()
        noted = {"loss": clean.detach(), "virtual_loss": torch.zeros_like(clean), "attacks_skipped": 0}
        for number, view in enumerate(passes.views):
            virtual, skipped = self._divergence(view, torch.Generator().manual_seed(passes.seed + number))
            (self.cfg.adversarial_weight * virtual).backward()
            noted["virtual_loss"] += virtual.detach()
            noted["attacks_skipped"] += skipped
        return noted

    def _divergence(self, view: View, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(the second term's part of these texts, how many of them have no direction)."""
        told = told_by(view)
        short = precision.active() != torch.float32
        with precision.casting(torch.float32):  # ξ d moves a logit by about what bf16 rounds it by: the opinions would differ by rounding
            r_BTD, skipped = self._direction(view, told_by(view) if short else told, generator)
        with perturbed(self.embedding, r_BTD):
            return view.share * divergence_sum(told, view.says()), skipped

    def _direction(self, view: View, told: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """r = ε g / ‖g‖₂,  g = ∇_d KL(P(·|e) ‖ P(·|e + ξ d)),  d drawn at random, then d ← g / ‖g‖₂ and again   [vat.7]

        A step of the power iteration for the direction in which the divergence bends most: at d = 0 it is 0 and flat.
        Miyato et al. 2017, eq. 7; Miyato et al. 2018, eq. 9–12.
        """
        d_BTD = random_directions(view.real_BT, self.embedding.embedding_dim, generator)
        for _ in range(self.cfg.power_iterations):
            with perturbed(self.embedding, self.cfg.xi * d_BTD) as seen:
                moved = view.share * divergence_sum(told, view.says())  # has the loss scale: fp16 would lose a bare ξ's gradient
            moved.backward(inputs=seen.outputs)
            g_BTD = on_real(seen, view.real_BT)
            d_BTD = steepest_l2(g_BTD, 1.0)
        return self.cfg.epsilon * d_BTD, (~usable(g_BTD)).sum()


def told_by(view: View) -> list[Tensor]:
    """P(·|e; θ̂), as logits: what is to stay."""
    with torch.no_grad():
        return view.says()


def random_directions(real_BT: Tensor, d_model: int, generator: torch.Generator) -> Tensor:
    """d_b uniform on the unit sphere of example b's real coordinates: normal numbers over their length."""
    drawn_BTD = sent(torch.randn(*real_BT.shape, d_model, generator=generator), real_BT.device)
    return steepest_l2(drawn_BTD * real_BT[..., None], 1.0)


def divergence_sum(told: Sequence[Tensor], said: Sequence[Tensor]) -> Tensor:
    """Σ_j Σ_n KL(P_jn ‖ Q_jn) over label groups j, from logits."""
    return torch.stack([kl_sum(p, q) for p, q in zip(told, said, strict=True)]).sum()
