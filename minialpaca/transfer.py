"""Between the host and the device, without the host waiting for more than it must."""

from collections.abc import Callable

import torch
from torch import Tensor


def queues(device: torch.device) -> bool:
    """Whether what a device is asked for is only queued when the call returns, so that the host has time for something else."""
    return device.type == "cuda"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. CUDA fetches it by itself from memory that stays where it is (pinned); from other memory the host
    would have to wait until everything before it in the queue is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Callable[[], list]:
    """Its numbers, on their way to the host: the call waits for them, and not for what the device was asked for in the meantime."""
    if not tensor.is_cuda:
        return tensor.tolist
    there, arrived = tensor.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))

    def wait() -> list:
        arrived.synchronize()
        return there.tolist()

    return wait
