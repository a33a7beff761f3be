"""Weights, gradients and moments dealt out to the processes (PyTorch's FSDP2), where `spread.Copies` gives all of them to each.

    θ = [θ_0; θ_1; …; θ_{n−1}], the rows of each tensor; process r holds θ_r, its gradient and its moments
    forward    a layer gathers its θ, computes, and keeps θ_r alone
    backward   it gathers θ again, and of Σ_processes ∂L/∂θ each process keeps the rows of its θ_r
    update     AdamW on θ_r

Rajbhandari et al. 2020 (ZeRO), stage 3. The layers are the model's blocks; embedding, last norm, heads and what an adapter puts beside
them are gathered once a pass. Losses are divided by the counts of the whole step already, so gradients are summed, not averaged.
"""

import warnings
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from minialpaca import parallel
from minialpaca.adversarial import Attack, Matrix
from minialpaca.errors import UserError
from minialpaca.model import Block, CrossAttention, Transformer
from minialpaca.peft import Adapter
from minialpaca.shards import fill, part_of
from minialpaca.spread import Copies
from minialpaca.storage.crew import Crew

# ── dealing out ──────────────────────────────────────────────────────────────────────────────────


class Door(nn.Module):
    """Whoever asks the model anything comes through here: on the way in what belongs to no layer is gathered.

    Models are asked in many ways (hidden states, logits, views, whole evaluations); hooks on one place serve all of them.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, way: Callable):
        return way()


def deal(door: Door, device: torch.device) -> dict[int, nn.Parameter]:
    """Leave of each parameter this process's rows; returns, by the identity of each, what stands in its place now."""
    before = [(module, name, parameter) for module in door.modules() for name, parameter in module.named_parameters(recurse=False)]
    mesh = init_device_mesh(device.type, (parallel.size(),))
    for module in reversed(list(door.modules())):  # inner ones first: what they hold is no part of the outer ones
        if isinstance(module, (Block, CrossAttention, Door)):
            fully_shard(module, mesh=mesh)
        if isinstance(module, CrossAttention):  # asked before its layer is, too
            register_fsdp_forward_method(module, "keys_and_values")
    add_up_by_sums(door)
    return {id(parameter): getattr(module, name) for module, name, parameter in before}


def add_up_by_sums(door: Door) -> None:
    """Σ_processes g, where FSDP2 would take the mean. It is told module by module, and in other words by each PyTorch."""
    for module in door.modules():
        if isinstance(module, FSDPModule) and hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
            getattr(module, FOR_GLOO, lambda asked: None)(True)
        elif isinstance(module, FSDPModule):
            module.set_reduce_scatter_divide_factor(1.0)


FOR_GLOO = "set_force_sum_reduction_for_comms"  # else the factor is NCCL's to multiply by


def refuse(attack: Attack, device: torch.device) -> None:
    """What does not go with it."""
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"train.parallel = 'fsdp': not on {device.type}; set train.parallel=ddp, or run.device=cpu")
    if device.type == "cpu" and not hasattr(FSDPModule, FOR_GLOO):
        raise UserError(f"train.parallel = 'fsdp': PyTorch {torch.__version__} cannot add up parts on a CPU; take a newer one or a GPU, or "
                        "set train.parallel=ddp")
    if isinstance(attack, Matrix):  # each micro-batch moves it to another place, and each process has its own micro-batch
        raise UserError("adversarial.method = 'matrix': moves the whole embedding matrix, of which each process holds some rows "
                        "(train.parallel = 'fsdp'); use adversarial.method=fgm, or train.parallel=ddp")


def in_step(next_logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The first process's, for all: one that took another token for the likeliest would end its text at another place, and be
    waited for.
    """
    def heard(*arguments, **named) -> Tensor:
        logits = next_logits(*arguments, **named).contiguous()
        dist.broadcast(logits, src=0)
        return logits

    return heard


# ── the trainer's side ───────────────────────────────────────────────────────────────────────────


class Shards(Copies):
    """Each process holds its rows of every tensor; the model is asked by all of them at once."""

    in_step = True
    saves = True

    def __init__(self, model: nn.Module, adapter: Adapter | None, device: torch.device):
        if adapter:
            adapter.facts()  # the base's fingerprint, while the base is whole
        # Nobody writes into keys and values, or into a view's logits, which are parts of what a product made.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.n_parts, self.device = parallel.size(), device
        self.door = Door(model)
        placed = deal(self.door, device)
        if adapter:
            adapter.follow(placed)
        for backbone in model.modules():
            if isinstance(backbone, Transformer):
                backbone.next_logits = in_step(backbone.next_logits)

    def ask(self, way: Callable):
        return self.door(way)

    def sum_after(self, now: bool) -> None:
        """Before the last micro-batch gradients stay where they were found, whole, and none travels."""
        self.door.set_requires_gradient_sync(now)

    def add_up(self, parameters: Iterable[nn.Parameter], numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients were added up by the last backward."""
        return dict(zip(numbers, self.total(torch.stack([value.double() for value in numbers.values()]))))

    def total(self, part: Tensor) -> Tensor:
        with parallel.together():
            dist.all_reduce(part)
        return part

    def length(self, part: Tensor) -> Tensor:
        """‖g‖₂ = √(Σ_r ‖g_r‖₂²)"""
        return self.total(part.double().square()).sqrt().to(part.dtype)

    def anywhere(self, found: list[bool]) -> list[bool]:
        return [n > 0 for n in parallel.summed(found)]

    def measured(self, measure: Callable[[], dict]) -> dict:
        """All measure the same data together, and take the first one's word for it."""
        found = self._looked(measure)
        return parallel.from_first(lambda: found)

    def shown(self, show: Callable[[], None]) -> None:
        self._looked(show)

    @torch.no_grad()
    def _looked(self, way: Callable):
        found = self.door(way)
        self.door.reshard()  # which otherwise waits for a backward
        return found

    def held(self, it) -> "Held":
        return HeldOptimizer(it) if isinstance(it, torch.optim.Optimizer) else Held(it)

    def crew(self) -> Crew:
        return Crew()


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────


class Held:
    """This process's part of a model's or an adapter's state; what is given back is whole, and each takes its rows of it."""

    def __init__(self, it):
        self.it = it

    def state_dict(self) -> dict:
        return part_of(self.it.state_dict(), parallel.is_first())

    def load_state_dict(self, state: dict) -> None:
        if not isinstance(self.it, nn.Module):
            return self.it.load_state_dict(state)
        mine = self.it.state_dict()
        for name in mine.keys() ^ state.keys():
            raise ValueError(f"{name} is {'missing' if name in mine else 'unknown here'}")
        for name, tensor in mine.items():
            fill(tensor, state[name])


class HeldOptimizer(Held):
    """AdamW's: the moments of each parameter are dealt out as it is."""

    def load_state_dict(self, state: dict) -> None:
        parameters = dict(enumerate(p for group in self.it.param_groups for p in group["params"]))
        dealt = {i: {name: moment(value, parameters[i]) for name, value in of_one.items()} for i, of_one in state["state"].items()}
        self.it.load_state_dict({**state, "state": dealt})


def moment(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole moment's rows; a count of steps as it is."""
    if value.ndim == 0:
        return value
    rows = torch.zeros_like(parameter, requires_grad=False)
    fill(rows, value)
    return rows
