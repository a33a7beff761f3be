"""What AdaLoRA prunes when: importance of triplets, the budget's schedule, who stays.   Zhang et al. 2023, §3.2–3.3

Axes: O outputs, I inputs, R triplets of a matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialpaca.config import AdapterConfig
from minialpaca.errors import UserError

# ── importance ───────────────────────────────────────────────────────────────────────────────────


def sensitivity(w: Tensor, gradient: Tensor) -> Tensor:
    """I(w) = |w ∇_w L|   [adalora.8]   of every entry, w and gradient of the same step."""
    return (w * gradient).abs()


def average(before: Tensor, now: Tensor, beta1: float) -> Tensor:
    """Ī⁽ᵗ⁾ = β₁ Ī⁽ᵗ⁻¹⁾ + (1 − β₁) I⁽ᵗ⁾,   Ī⁽⁰⁾ = 0   [adalora.9]"""
    return beta1 * before + (1 - beta1) * now


def uncertainty(before: Tensor, now: Tensor, mean: Tensor, beta2: float) -> Tensor:
    """Ū⁽ᵗ⁾ = β₂ Ū⁽ᵗ⁻¹⁾ + (1 − β₂) |I⁽ᵗ⁾ − Ī⁽ᵗ⁾|,   Ū⁽⁰⁾ = 0   [adalora.10]   `mean` is Ī⁽ᵗ⁾, of the same step."""
    return beta2 * before + (1 - beta2) * (now - mean).abs()


def importance(s_OR: Tensor, s_R: Tensor, s_RI: Tensor) -> Tensor:
    """S_i = s(λ_i) + 1/O Σ_j s(P_ji) + 1/I Σ_j s(Q_ij),   s = Ī Ū   [adalora.7]   (R,)"""
    return s_R + s_OR.mean(0) + s_RI.mean(1)


# ── schedule ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Schedule:
    """Steps t = 1 … T; the first t_i train with all triplets, the last t_f with b_T of them."""

    first: int  # b₀, triplets of all matrices together
    last: int   # b_T
    total: int  # T, optimiser steps
    warmup: int  # t_i
    final: int  # t_f
    interval: int  # ΔT

    @classmethod
    def of(cls, cfg: AdapterConfig, n_matrices: int, total: int) -> "Schedule":
        made = cls(cfg.rank * n_matrices, max(1, round(cfg.target_rank * n_matrices)), total, round(cfg.warmup_part * total),
                   round(cfg.final_part * total), cfg.interval)
        if made.total - made.warmup - made.final < made.interval:
            raise UserError(f"adapter.method = 'adalora': of {total} steps {made.total - made.warmup - made.final} are left to "
                            f"prune in, fewer than adapter.interval = {cfg.interval}; train longer, or lower adapter.interval, "
                            "warmup_part or final_part")
        return made

    def budget(self, step: int) -> int:
        """b(t) = b₀ (t < t_i);  b_T + (b₀ − b_T)(1 − (t − t_i)/(T − t_i − t_f))³ (t < T − t_f);  b_T else   [adalora.12]

        Rounded. Zhang et al. 2023, eq. 12, which prints t − t_i − t_f above the line: the budget would begin above b₀ and
        jump at the end; their program has t − t_i.
        """
        if step < self.warmup:
            return self.first
        if self.is_spent(step):
            return self.last
        part = (step - self.warmup) / (self.total - self.warmup - self.final)
        return round(self.last + (self.first - self.last) * (1 - part) ** 3)

    def is_spent(self, step: int) -> bool:
        """After that many updates the budget is the final one, and who is kept is settled."""
        return step >= self.total - self.final

    def allocates(self, step: int) -> bool:
        """Every ΔT steps while the budget falls, and once at its end."""
        end = self.total - self.final
        return step == end or (self.warmup <= step < end and step % self.interval == 0)


# ── who stays ────────────────────────────────────────────────────────────────────────────────────


def allocate(scores: Sequence[Tensor], budget: int) -> list[Tensor]:
    """kept_ki = 1[S_ki is among the b largest of all],   b = `budget`; for each matrix k (R,)   [adalora.alloc]

    Exactly so many. Of equal scores the lower triplet stays, and of equal ones of these the earlier matrix: while all
    scores are 0, which they are before λ first moves, all matrices keep alike.
    """
    score = torch.cat(list(scores))
    triplet = torch.cat([torch.arange(len(s), device=s.device) for s in scores])
    order = triplet.argsort(stable=True)
    order = order[score[order].argsort(descending=True, stable=True)]
    kept = torch.zeros_like(score, dtype=torch.bool)
    kept[order[:budget]] = True
    return list(kept.split([len(s) for s in scores]))
