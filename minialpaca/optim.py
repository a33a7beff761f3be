"""The optimiser: parameter groups by role, a schedule that is a pure function of the step, clipping."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from minialpaca.config import OptimConfig
from minialpaca.model import RMSNorm
from minialpaca.shards import local

# Which roles AdamW's decay pulls towards zero. A gain's neutral value is 1 and a bias has none, so both are spared.
DECAYS = {"matrix": True, "embedding": True, "norm": False, "bias": False}


def roles(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters by role, told by the module that owns them; a tied one counts once, where it comes first."""
    found: dict[str, list[nn.Parameter]] = {role: [] for role in DECAYS}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[_role(module, name, parameter)].append(parameter)
    return found


def _role(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, (RMSNorm, nn.LayerNorm)):
        return "norm"
    return "bias" if parameter.ndim == 1 else "matrix"  # or another vector of an adapter's, whose neutral value is not 0


def build_adamw(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """θ ← θ − η (m̂ / (√v̂ + ε) + λ θ), λ = 0 for the roles that `DECAYS` spares   [adamw.2]

    m̂ and v̂ are the bias-corrected averages of g and g². Loshchilov & Hutter 2019, algorithm 2.
    """
    groups = [{"params": parameters, "weight_decay": cfg.weight_decay if DECAYS[role] else 0.0}
              for role, parameters in roles(model).items() if parameters]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.adam_eps, fused=fused)


def learning_rate(cfg: OptimConfig, step: int, total_steps: int) -> float:
    """η = η_max (s + 1) / W for s < W, then by p = (s − W) / (S − 1 − W) from η_max to η_min   [schedule.1]

        cosine    η = η_min + (η_max − η_min) (1 + cos πp) / 2
        linear    η = η_max + (η_min − η_max) p
        constant  η = η_max

    Update s = 0 … S − 1, W warm-up steps, η_min = min_lr_ratio · η_max. Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    p = min(1.0, (step - cfg.warmup_steps) / max(1, total_steps - 1 - cfg.warmup_steps))
    lowest = cfg.min_lr_ratio * cfg.lr
    if cfg.schedule == "cosine":
        return lowest + (cfg.lr - lowest) * (1 + math.cos(math.pi * p)) / 2
    return cfg.lr + (lowest - cfg.lr) * p if cfg.schedule == "linear" else cfg.lr


def global_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """‖g‖₂ over all parameters together, of the part of them that this process holds."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm([local(p.grad) for p in parameters if p.grad is not None])))


def clip_by_global_norm(parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor | None = None) -> Tensor:
    """g ← g · min(1, c / ‖g‖₂) with ‖g‖₂ over all parameters together; returns ‖g‖₂   [clip.1]

    c = 0 only measures; `norm` is ‖g‖₂ where that has been done. Pascanu et al. 2013, algorithm 1.
    """
    parameters = list(parameters)
    norm = global_norm(parameters) if norm is None else norm
    if max_norm > 0:
        torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], (max_norm / norm).clamp(max=1.0))
    return norm
