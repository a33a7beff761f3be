"""Blocks compiled by torch.compile: one pass over memory for what stands between two products, there and back.

One block is compiled once, for all of them and for any length, so a run that goes on elsewhere in its data computes the same bits.
Only where a gradient is asked for: evaluation and generation go as they always do. What is trained, its names and its files stay
the same.
"""

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from minialpaca.errors import UserError
from minialpaca.linear_cross_entropy import at_once
from minialpaca.model import Block, Transformer

WORTH_IT = {  # multiplications and additions of a whole run
    "cpu": 1e14,  # on two cores in bf16 nine minutes, of which a seventh is saved by compiling for half of one
    "cuda": 5e16,  # on an H100 two and a half minutes, which uncompiled would be five; compiling takes 78 s (docs/PERFORMANCE.md)
}


@dataclass(frozen=True)
class Choice:
    compiles: bool
    reason: str

    def __str__(self) -> str:
        return f"{'compiled' if self.compiles else 'not compiled'} ({self.reason})"


def choice(asked: str, device: torch.device, flops: float, dealt: bool = False, short: bool = True) -> Choice:
    """`auto`: where it was measured to pay, which is a long run, where there is a compiler. `flops`: of the whole run, by `flops_of`.

    dealt: whether weights are dealt out to processes. A block then gathers its own on the way in, which is not compiled.
    short: whether products are in a short dtype; in fp32 a CPU gained nothing.
    """
    if dealt and asked == "on":
        raise UserError("train.compile = 'on': not with train.parallel = 'fsdp', where layers gather their weights first; set "
                        "train.compile=off, or train.parallel=ddp")
    missing = lacks(device)
    if asked == "on" and missing:
        raise UserError(f"train.compile = 'on': needs {missing}; install it, or set train.compile=off")
    if asked != "auto":
        return Choice(asked == "on", "as asked")
    if dealt:
        return Choice(False, "not with train.parallel = 'fsdp'")
    if device.type not in WORTH_IT:
        return Choice(False, "not measured on this kind of device; train.compile=on asks for it")
    if device.type == "cpu" and not short:
        return Choice(False, "in fp32 it gains nothing on a CPU")
    if missing:
        return Choice(False, f"it would need {missing}")
    least = WORTH_IT[device.type]
    return Choice(flops >= least, f"{flops:.1e} operations are {'more' if flops >= least else 'less'} than the {least:.0e} from which it pays")


def lacks(device: torch.device) -> str | None:
    """What torch.compile would need and does not find."""
    if device.type == "cuda":
        try:
            import triton  # noqa: F401 (whether it is there)
        except ImportError:
            return "the package triton"
        return None
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return None if any(map(shutil.which, compilers)) else "a C++ compiler (g++ or clang++, or the one that CXX names)"


def flops_of(model: nn.Module, tokens: int) -> float:
    """6 per weight of a matrix and token: one multiplication and one addition forward, twice that on the way back.

    Kaplan et al. 2020, §2.1, who leave out attention's scores, too.
    """
    return 6.0 * tokens * sum(p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters())


def compile_blocks(model: nn.Module) -> None:
    """From here on the model's blocks run compiled where they are trained, and what makes a loss of their logits."""
    if torch.cuda.is_available():
        torch.cuda.init()  # the compiler asks it something, and a layer that is computed again may not be where it begins
    for part in model.modules():
        if isinstance(part, Transformer):
            part.compiled = compiled()
            part.judged = compiled_loss()


@functools.cache
def compiled() -> Callable:
    """(block, *its arguments) → what it says. Units are dropped as PyTorch would without compiling."""
    return torch.compile(call, dynamic=True, options={"fallback_random": True})


@functools.cache
def compiled_loss() -> Callable:
    """`at_once` for slices of any number of rows."""
    return torch.compile(at_once, dynamic=True)


def call(block: Block, *arguments):
    return block(*arguments)
