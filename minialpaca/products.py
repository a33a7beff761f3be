"""Which library multiplies fp32 matrices on a CPU: PyTorch has two, and takes MKL unless it is told otherwise.

oneDNN is reached by allowing shorter products (`set_float32_matmul_precision("medium")`), which it makes use of only where
the CPU has units for them. So it is taken where it is known to be faster, on AMD's, and where its products are seen to be
exact to fp32 all the same. Training alone asks for it: a single row, as in generation, is slower by it (docs/LOG.md).
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import torch

EXACT = 1e-5  # of the largest element; fp32's own error is some 10⁻⁷, that of bf16 some 10⁻³
CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def library() -> str:
    """`oneDNN` or `MKL`. The same answer on the same machine, so that a run that goes on is equal to the bit."""
    return "oneDNN" if _is_amd() and torch.backends.mkldnn.is_available() and relative_error("medium") < EXACT else "MKL"


def relative_error(allowed: str, n: int = 512) -> float:
    """max |AB − fp64's AB| / max |AB|, with what PyTorch is allowed to do to A and B."""
    a, b = (torch.randn(n, n, generator=torch.Generator().manual_seed(i)) for i in range(2))
    exact = a.double() @ b.double()
    with _allowed(allowed):
        return ((a @ b - exact).abs().max() / exact.abs().max()).item()


def said(device: torch.device) -> str:
    return f", fp32 products by {library()}" if device.type == "cpu" else ""


@contextlib.contextmanager
def chosen(device: torch.device) -> Iterator[None]:
    """Within, fp32 products on a CPU are that library's; what was allowed before is put back."""
    with _allowed("medium") if device.type == "cpu" and library() == "oneDNN" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _allowed(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _is_amd() -> bool:
    return CPUINFO.exists() and "AuthenticAMD" in CPUINFO.read_text(encoding="utf-8", errors="replace")
