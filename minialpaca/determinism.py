"""Equal to the bit, or not at all: what a repeatable run needs is set, looked at, and tried out before the first step.

PyTorch then takes no algorithm whose sums depend on who comes first, and one that knows no other way raises an error. What else
decides how sums are rounded (versions, device, threads, processes) is kept with each checkpoint; the run goes on in the same
surroundings only.
"""

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from minialpaca import parallel, products
from minialpaca.errors import UserError
from minialpaca.shards import local

WORKSPACE, FIXED = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # cuBLAS: the same products whatever streams do beside them


def prepare(asked: bool, device: torch.device) -> None:
    """Before the first product on the device: cuBLAS looks at its variable only then."""
    torch.use_deterministic_algorithms(asked)
    if not asked:
        return
    if device.type == "mps":
        raise UserError("train.deterministic = true: PyTorch promises nothing of the kind on mps; set run.device=cpu")
    if device.type == "cuda":
        if os.environ.setdefault(WORKSPACE, FIXED[0]) not in FIXED:
            raise UserError(f"train.deterministic = true: the environment says {WORKSPACE}={os.environ[WORKSPACE]}; "
                            f"unset it, or set it to {' or '.join(FIXED)}")
        torch.backends.cudnn.benchmark = False  # which picks whatever was faster this time


def surroundings(device: torch.device, n_parts: int = 1) -> dict[str, str | int]:
    """What decides how sums are rounded, beside the recipe."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else \
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"torch": torch.__version__, "device": f"{device.type} ({chip}){products.said(device)}", "threads": torch.get_num_threads(),
            "processes": parallel.size() if n_parts == 1 else f"{n_parts}, each with a part of the weights"}


def refuse_others(saved: dict, device: torch.device, place: str, n_parts: int = 1) -> None:
    """Continued elsewhere, it would be another run from there on."""
    now = surroundings(device, n_parts)
    changed = [f"{name}: {saved.get(name, 'unknown')} → {now[name]}" for name in now if saved.get(name) != now[name]]
    if changed:
        raise UserError(f"{place}: was trained in other surroundings ({'; '.join(changed)}), and train.deterministic = true "
                        "promises equal bits; go on there, or choose another run.dir")


def try_out(backward: Callable[[], None], parameters: Iterable[nn.Parameter]) -> None:
    """The next step's gradient, computed twice; the gradients go again."""
    parameters = [p for p in parameters if p.requires_grad]
    found = []
    for _ in range(2):
        backward()
        found.append([None if p.grad is None else p.grad.clone() for p in parameters])
        for p in parameters:
            p.grad = None
    # As bytes: NaN equals itself, and 0 is not -0.
    same = all(a is b is None or (a is not None and b is not None and torch.equal(_bits(a), _bits(b))) for a, b in zip(*found))
    if not parallel.summed([int(not same)])[0] == 0:
        raise UserError("train.deterministic = true: the same step computed twice has two gradients on this machine; set it to "
                        "false, or use another run.device")
    print("deterministic: a step's gradient computed twice is equal to the bit")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return local(tensor).contiguous().view(torch.uint8)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """PyTorch's way of saying that an operation knows no repeatable algorithm, in a line."""
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError(f"train.deterministic = true: {str(error).split(', but')[0]} on this device; set it to false, or use "
                        "run.device=cpu") from None
