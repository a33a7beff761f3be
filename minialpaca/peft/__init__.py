"""Parameter-efficient fine-tuning: methods that train few parameters of a finished model, all with one contract.

    adapter = apply(model, AdapterConfig(method="lora"))      put in, the base frozen
    adapter.merge(), adapter.unmerge()                        explicit, exact
    adapter.remove(), use(model, adapter)                     out, and in again; several on one base
    adapter.state_dict(), adapter.load_state_dict(…)          what was trained, and nothing else
"""

import re
from collections.abc import Sequence

from torch import nn

from minialpaca.config import AdapterConfig
from minialpaca.peft.adalora import AdaLoRA
from minialpaca.peft.adapter import Adapter, active, own_state, use
from minialpaca.peft.freeze import BitFit, Freeze
from minialpaca.peft.houlsby import Houlsby
from minialpaca.peft.ia3 import IA3
from minialpaca.peft.lora import DoRA, LoRA
from minialpaca.peft.virtual import Prefix, Prompt

__all__ = ["METHODS", "AdaLoRA", "Adapter", "active", "apply", "trained_rows", "use"]

METHODS: dict[str, type[Adapter]] = {
    "freeze": Freeze, "bitfit": BitFit, "lora": LoRA, "dora": DoRA, "houlsby": Houlsby, "adalora": AdaLoRA, "ia3": IA3,
    "prefix": Prefix, "prompt": Prompt,
}


def apply(model: nn.Module, cfg: AdapterConfig, seed: int = 0, new: Sequence[nn.Module] = (),
          idle: Sequence[nn.Module] = ()) -> Adapter | None:
    """Put a method into a finished model and freeze the rest; `none` trains everything and is no adapter."""
    return None if cfg.method == "none" else METHODS[cfg.method](model, cfg, seed, new, idle)


def trained_rows(adapter: Adapter) -> list[tuple[str, int, str, int, float]]:
    """(what, how many of it, rank or width, parameters, per cent of the base) for like parts of all layers; their sum last."""
    base = sum(p.numel() for p in adapter.base.values())
    found: dict[tuple[str, str], list[int]] = {}
    trained = {id(p) for p in adapter.trained().values()}
    for swap in adapter.swaps:
        own = [swap.own] if isinstance(swap.own, nn.Parameter) else own_state(swap.own).values()
        own = [t for t in own if id(t) in trained]
        trained -= {id(t) for t in own}  # a tied one counts where it comes first
        if n := sum(t.numel() for t in own):
            like = re.sub(r"layers\.\d+\.", "layers.*.", swap.site.path)
            found.setdefault((like, str(getattr(swap.own, "rank", ""))), []).append(n)
    rows = [(like, len(n), rank, sum(n), 100 * sum(n) / base) for (like, rank), n in found.items()]
    total = sum(p.numel() for p in adapter.trained().values())
    return [*rows, ("all that is trained", sum(row[1] for row in rows), "", total, 100 * total / base)]
