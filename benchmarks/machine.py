"""What the machine can do at best: the two rates that everything else is a share of."""

import statistics
import time
from collections.abc import Callable

import torch

SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
READ = {"cpu": 1 << 28, "cuda": 1 << 32}  # bytes, far beyond any cache


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """Median of some calls after one that is not counted."""
    found = []
    for _ in range(rounds + 1):
        settle(device)
        started = time.perf_counter()
        work()
        settle(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of two square matrices; in fp32 on a CPU by the faster of PyTorch's two libraries."""
    n = SIDE[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    before, found = torch.get_float32_matmul_precision(), []
    for library in ("highest", "medium") if device.type == "cpu" else ("highest",):
        torch.set_float32_matmul_precision(library)
        found.append(2 * n**3 / seconds(lambda: a @ b, device))
    torch.set_float32_matmul_precision(before)
    return max(found)


def read_rate(device: torch.device) -> float:
    """Bytes/s of a matrix read once: its product with a vector; on CUDA of what is read and written in a copy."""
    matrix = torch.randn(READ[device.type] // 4 // 4096, 4096, device=device)
    if device.type == "cuda":
        other = torch.empty_like(matrix)
        return 2 * matrix.numel() * 4 / seconds(lambda: other.copy_(matrix), device)
    vector = torch.randn(4096, device=device)
    return matrix.numel() * 4 / min(seconds(lambda: matrix @ vector, device), seconds(lambda: matrix.sum(-1), device))
