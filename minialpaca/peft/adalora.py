"""AdaLoRA: changes of adaptive rank, W = W₀ + s P Λ Q. The matrices, and how the method goes along with training.

What is pruned when is in budget.py. Axes: I inputs, O outputs of a Linear, R triplets (columns of P, entries of Λ, rows of
Q); (…, I) stands for any axes before the last.
"""

import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialpaca.config import AdapterConfig
from minialpaca.errors import UserError
from minialpaca.peft.adapter import Adapter, Wrapper
from minialpaca.peft.budget import Schedule, allocate, average, importance, sensitivity, uncertainty
from minialpaca.peft.linear import MATRICES, plain_linear, refuse_rank, trained_dtype, wide
from minialpaca.peft.sites import Site
from minialpaca.shards import fill, whole

# ── equations ────────────────────────────────────────────────────────────────────────────────────


def triplets(x: Tensor, P_OR: Tensor, lambda_R: Tensor, Q_RI: Tensor, scale: float) -> Tensor:
    """Δ(x) = s P Λ Q x,   Λ = diag(λ)   [adalora.3]

    x (…, I) → (…, O). Zhang et al. 2023, eq. 3; s = α/r₀ as in LoRA, r₀ the rank at the start, whatever is pruned.
    """
    return F.linear(scale * lambda_R * F.linear(x, Q_RI), P_OR)


def orthogonality(P_OR: Tensor, Q_RI: Tensor) -> Tensor:
    """R(P, Q) = ‖PᵀP − I‖²_F + ‖Q Qᵀ − I‖²_F   [adalora.4]   Zhang et al. 2023, eq. 4."""
    one_RR = torch.eye(len(Q_RI), dtype=Q_RI.dtype, device=Q_RI.device)
    return (P_OR.mT @ P_OR - one_RR).square().sum() + (Q_RI @ Q_RI.mT - one_RR).square().sum()


# ── modules ──────────────────────────────────────────────────────────────────────────────────────


class AdaLoRALinear(Wrapper):
    """h = W₀ x + b + s P Λ Q Dropout(x),   P ~ N(0, 1/O), Q ~ N(0, 1/I), λ = 0 at first

    So columns of P and rows of Q begin with a length near 1, where R wants them. Beside each of the three stand the
    averages of its sensitivity and of that one's uncertainty; they are saved with it.
    """

    def __init__(self, base: nn.Linear, cfg: AdapterConfig, generator: torch.Generator):
        super().__init__(base)
        O, I = base.weight.shape
        dtype, device = trained_dtype(base.weight), base.weight.device
        self.P = nn.Parameter((torch.randn(O, cfg.rank, generator=generator) / math.sqrt(O)).to(device, dtype))
        self.lambdas = nn.Parameter(torch.zeros(cfg.rank, dtype=dtype, device=device))
        self.Q = nn.Parameter((torch.randn(cfg.rank, I, generator=generator) / math.sqrt(I)).to(device, dtype))
        self.dropout, self.scale = nn.Dropout(cfg.dropout), cfg.alpha / cfg.rank
        for name, parameter in self.parts().items():
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(parameter, requires_grad=False))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(parameter, requires_grad=False))
        self.register_buffer("kept", torch.ones(cfg.rank, dtype=torch.bool, device=device))

    def parts(self) -> dict[str, nn.Parameter]:
        return {"P": self.P, "lambdas": self.lambdas, "Q": self.Q}

    @property
    def rank(self) -> int:
        return int(self.kept.sum())

    def forward(self, x: Tensor) -> Tensor:
        delta = triplets(self.dropout(x).to(self.P.dtype), self.P, self.lambdas, self.Q, self.scale)
        return delta.to(x.dtype).add_(self.base(x))  # where the change stands: nobody needs it again

    def merged(self) -> nn.Linear:
        weight_OI = wide(self.base.weight) + self.scale * self.P * self.lambdas @ self.Q
        return plain_linear(weight_OI, self.base.bias, self.base)

    @torch.no_grad()
    def note_gradient(self, beta1: float, beta2: float) -> None:
        """Bring both averages of each part up to date with its gradient of this step."""
        for name, w in self.parts().items():
            mean, spread = getattr(self, f"sensitivity_{name}"), getattr(self, f"uncertainty_{name}")
            now = sensitivity(whole(w), whole(w.grad))
            mean.copy_(average(mean, now, beta1))
            spread.copy_(uncertainty(spread, now, mean, beta2))

    def scores(self) -> Tensor:
        """S_R of the triplets, from the averages."""
        s = {name: getattr(self, f"sensitivity_{name}") * getattr(self, f"uncertainty_{name}") for name in self.parts()}
        return importance(s["P"], s["lambdas"], s["Q"])

    @torch.no_grad()
    def prune(self) -> None:
        """Λ ← T(Λ, S): what is not kept is 0, P and Q stay, so that it may come back   [adalora.6]

        Zhang et al. 2023, eq. 6.
        """
        fill(self.lambdas, whole(self.lambdas) * self.kept)


class AdaLoRA(Adapter):
    """Every matrix of the chosen layers, where nothing else is asked for (Zhang et al. 2023, §4)."""

    def modules(self) -> Iterator[tuple[Site, Wrapper]]:
        for place in self.linears(MATRICES):
            refuse_rank(self.cfg.rank, place.found, place.path)
            yield place, AdaLoRALinear(place.found, self.cfg, self.generator)

    def layers(self) -> list[AdaLoRALinear]:
        return [swap.own for swap in self.wrappers()]

    @functools.cached_property
    def schedule(self) -> Schedule:
        raise UserError("adapter: adalora plans over all its steps; call start(total_steps) before the first one")

    def start(self, total_steps: int) -> None:
        self.schedule = Schedule.of(self.cfg, len(self.wrappers()), total_steps)
        self.n_kept: int | None = None  # to be counted

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.n_kept = None

    def kept_triplets(self) -> int:
        """Of all matrices together. Counted once: a device is not waited for at each step."""
        if self.n_kept is None:
            self.n_kept = int(torch.stack([layer.kept.sum() for layer in self.layers()]).sum())
        return self.n_kept

    def penalty(self) -> Tensor | None:
        """γ Σ_k R(P_k, Q_k), over the matrices."""
        if not self.cfg.orthogonality:
            return None
        return self.cfg.orthogonality * torch.stack([orthogonality(whole(layer.P), whole(layer.Q)) for layer in self.layers()]).sum()

    def before_clip(self, step: int) -> None:
        if not self.schedule.is_spent(step - 1):
            for layer in self.layers():
                layer.note_gradient(self.cfg.sensitivity_decay, self.cfg.uncertainty_decay)

    def after_update(self, step: int) -> dict[str, float]:
        """Choose anew where the schedule says so; in the final phase keep what was chosen at 0 at each step.

        A run that goes on with another number of steps has another schedule from there. What is spent already is not given
        back: the budget waits for the new one to fall below it. What the new one calls spent is spent at once.
        """
        layers, before = self.layers(), self.kept_triplets()
        allocates = self.schedule.allocates(step) or (self.schedule.is_spent(step) and before > self.schedule.last)
        if allocates:
            self.n_kept = min(self.schedule.budget(step), before)
            for layer, kept_R in zip(layers, allocate([layer.scores() for layer in layers], self.n_kept)):
                layer.kept.copy_(kept_R)
        if allocates or self.schedule.is_spent(step):
            for layer in layers:
                layer.prune()
        if not allocates:
            return {}
        ranks = torch.stack([layer.kept.sum() for layer in layers]).tolist()  # one transfer
        return {f"rank/{swap.site.path}": rank for swap, rank in zip(self.wrappers(), ranks)}

    def may_be_best(self, step: int) -> bool:
        return self.schedule.is_spent(step) and self.kept_triplets() <= self.schedule.last

    def refuse_patience(self, patience: int) -> None:
        if patience:
            raise UserError(f"train.patience = {patience}: stopping early would leave adalora's budget unspent; set it to 0")
