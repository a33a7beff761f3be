"""Which dtype where, and why: products of matrices in a short one, everything that is kept or summed in fp32.

    held in fp32      trained weights, their gradients, the optimiser's moments
    computed in fp32  norms, rotary angles, softmax, losses, the residual stream
    computed short    x Wᵀ of each Linear, and attention's QKᵀ and PV

docs/PRECISION.md is the ledger; a test reads it back from a model. Micikevicius et al. 2018.
"""

import contextlib
import threading
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minialpaca.errors import UserError
from minialpaca.shards import local

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# ── the policy ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Policy:
    """What products are computed in, and the reason, which is printed."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    @property
    def scales(self) -> bool:
        """fp16 ends at 6·10⁻⁸ below: gradients are lifted above that. bf16 reaches as far as fp32."""
        return self.name == "fp16"


def policy(asked: str, device: torch.device) -> Policy:
    """`auto`: bf16 where the GPU computes it natively, fp16 with loss scaling on older ones, fp32 elsewhere."""
    short = _native(device)
    if asked == "auto":
        return Policy("fp32", f"{device.type}: short products are computed here when asked for") if device.type != "cuda" else short
    if asked == "bf16" and device.type == "cuda" and short.name != "bf16":
        raise UserError(f"train.precision = 'bf16': {short.reason}; use fp16, which is scaled, or fp32")
    if asked == "bf16" and device.type == "mps":
        raise UserError("train.precision = 'bf16': not on this device; use fp32")
    return Policy(asked, "as asked")


def _native(device: torch.device) -> Policy:
    if device.type != "cuda":
        return Policy("fp32", device.type)
    major, minor = torch.cuda.get_device_capability(device)
    said = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
    if major >= 8:
        return Policy("bf16", f"{said} computes bf16 natively")
    return Policy("fp16", f"{said} computes fp16 natively and bf16 not, which begins with 8.0")


# ── casting ──────────────────────────────────────────────────────────────────────────────────────

# What is computed in the short dtype; all else stays in the dtype that it is given, and what these hand on to a sum, a
# norm or a residual is widened there by PyTorch's own promotion: short + fp32 = fp32.
SHORT = {F.linear, F.scaled_dot_product_attention, torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm,
         torch.mm}


class Casting(TorchFunctionMode):
    """Within, the operations of SHORT are given their floating tensors in the short dtype. float64 is left alone."""

    entered = threading.local()  # what this thread is in: a function mode does not follow autograd to its threads

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.before = dtype, []

    def __enter__(self):
        self.before.append(_entered())
        self.entered.dtype = self.dtype
        return super().__enter__()

    def __exit__(self, *exception):
        self.entered.dtype = self.before.pop()
        return super().__exit__(*exception)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in SHORT and kwargs.get("out") is None:  # else who calls has chosen the dtypes: compiled code, which was cast when it was made
            cast = widened if function is F.scaled_dot_product_attention and _on_cpu(args) else short
            args, kwargs = tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)


def short(value):
    """Within a Casting a floating tensor in what products are computed in; float64, and what is no tensor, as it is."""
    casts = _entered() and isinstance(value, Tensor) and value.dtype in DTYPES.values()
    return value.to(_entered()) if casts else value  # what is entered, and not this mode's own: an inner one decides


def widened(value):
    return value.float() if isinstance(value, Tensor) and value.dtype in DTYPES.values() else value


def _on_cpu(args: tuple) -> bool:
    """There the fused attention is two to six times as slow in bf16 as in fp32 (docs/LOG.md)."""
    return args[0].device.type == "cpu"


def _entered() -> torch.dtype | None:
    return getattr(Casting.entered, "dtype", None)


def active() -> torch.dtype:
    """What products are computed in here."""
    return _entered() or torch.float32


def casting(dtype: torch.dtype) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if dtype == active() == torch.float32 else Casting(dtype)


def as_before() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """For a layer that is computed twice: what is entered the first time and, perhaps in another thread, the second."""
    return contextlib.nullcontext(), casting(active())


# ── loss scaling ─────────────────────────────────────────────────────────────────────────────────


class LossScaler:
    """s ← s · backoff where a gradient is not finite,   s ← s · growth after `interval` good steps in a row   [scale.1]

    The loss is multiplied by s, its gradient divided by s; a step whose gradient is not finite is skipped. Micikevicius et al. 2018,
    §3.2; the constants are those of PyTorch's GradScaler.
    """

    LIMIT = 25  # skipped steps in a row after which no scale will help

    HIGHEST = 2.0**127  # of fp32

    def __init__(self, scale: float = 2.0**16, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000):
        self.scale, self.growth, self.backoff, self.interval = scale, growth, backoff, interval
        self.good_steps = self.skipped = self.skipped_in_a_row = 0

    def update(self, finite: bool) -> None:
        """Once a step, after its gradient was judged."""
        self.good_steps = self.good_steps + 1 if finite else 0
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if not finite:
            self.scale *= self.backoff
        elif self.good_steps == self.interval:
            self.scale, self.good_steps = self.scale * self.growth, 0
            self.scale = min(self.scale, self.HIGHEST)

    def state_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("scale", "good_steps", "skipped", "skipped_in_a_row")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for name in self.state_dict():
            setattr(self, name, state[name])


def unscale(parameters: list[nn.Parameter], scale: float) -> None:
    """g ← g / s, once a step, in the gradient's own fp32."""
    torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], 1.0 / scale)


def refuse_short_weights(model: nn.Module) -> None:
    """An update of 10⁻⁴ of a weight is below half a step of fp16 (2⁻¹¹) and of bf16 (2⁻⁸): it would round to nothing."""
    short = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)]
    if short:
        raise UserError(f"{short[0]}: is held in {dict(model.named_parameters())[short[0]].dtype} and trained, and small updates would "
                        "round to nothing; hold it in fp32 (model.float()) and set train.precision for its products")
