"""The contract of every method: put into a finished model, taken out, merged, saved, given back.

    θ = θ_base ∪ φ,   θ_base frozen, φ trained        [adapt.0 over φ alone]

An adapter is a list of swaps: at some places of the model something of its own stands in for what the base has
there, a module around the base's module or a parameter instead of the base's parameter. The base's tensors are
never written to, so taking an adapter out or putting another in is exact and costs nothing.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from minialpaca.config import AdapterConfig
from minialpaca.errors import UserError
from minialpaca.model import Transformer
from minialpaca.peft import sites
from minialpaca.peft.sites import Site
from minialpaca.shards import fill

NOT_IN_TENSORS = ("architecture", "n_heads", "kv_heads", "rope_theta", "norm_eps")  # two models of equal weights differ by these
IN_PLACE = "adapter"  # the attribute of a model that names what is put into it


@dataclasses.dataclass(frozen=True)
class Swap:
    site: Site
    base: nn.Module | nn.Parameter | None  # None: the place was empty
    own: nn.Module | nn.Parameter


class Wrapper(nn.Module):
    """A module of an adapter's own around `base`, the module that stood there."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def own_state(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict(keep_vars=True).items() if not name.startswith("base.")}

    def merged(self) -> nn.Module:
        """One plain module that computes the same; a new one, computed in fp32."""
        raise UserError(f"adapter: {type(self).__name__} is no linear change of its module and cannot be merged; keep the "
                        "adapter beside its base")


class Adapter:
    """A method, put into a model. `modules` says what it adds; the rest is the same for all.

    `new`: modules that are not the base's (a classifier's heads); they are always trained. `idle`: modules of the base
    that this model never calls (a classifier's lm_head); beside them nothing would be trained. Neither can be named.
    Generators make what is drawn a function of the seed alone.
    """

    beside = ""  # why no plain run can hold it, where none can

    def __init__(self, model: nn.Module, cfg: AdapterConfig, seed: int = 0, new: Sequence[nn.Module] = (),
                 idle: Sequence[nn.Module] = ()):
        refuse_second(model, cfg.method)
        self.model, self.cfg = model, cfg
        self.outside = {part for module in (*new, *idle) for part in module.modules()}
        self.generator = torch.Generator().manual_seed(seed)
        theirs = {id(p) for module in new for p in module.parameters()}
        self.base = {name: p for name, p in model.named_parameters() if id(p) not in theirs}  # a tied one once
        self.base_parameters = [p for p in model.parameters() if p.requires_grad]
        self.is_merged = self.stays = False
        self.swaps = [*self._whole(theirs), *self._wrapped()]
        refuse_nothing(self)
        self.install()

    def modules(self) -> Iterator[tuple[Site, Wrapper]]:
        """What the method puts where."""
        yield from ()

    def whole(self) -> list[Site]:
        """Parameters that are trained whole, in a copy of the adapter's own."""
        return sites.with_role(self.model, self.cfg.also, self.outside)

    # ── in and out ───────────────────────────────────────────────────────────────────────────────

    def install(self) -> None:
        """Put it in: the base is frozen, what is the adapter's own is trained."""
        if active(self.model) is not None:
            raise UserError("adapter: the model has an adapter already; take that one out first")
        for parameter in self.base_parameters:
            parameter.requires_grad_(False)
        for swap in self.swaps:
            self._put(swap.site, swap.own)
        self.model.train(self.model.training)  # what was out meanwhile, or is new, drops as the model does
        setattr(self.model, IN_PLACE, self)

    def follow(self, placed: dict[int, nn.Parameter]) -> None:
        """The model's parameters have given way to others, found by the identity of the old ones (`fsdp.deal`).

        What the adapter's own stand in for is let go, but for its shape: this adapter stays in.
        """
        def now(it):
            gone = isinstance(it, nn.Parameter) and id(it) not in placed
            return it.detach().to("meta") if gone else placed.get(id(it), it)

        self.swaps = [dataclasses.replace(swap, base=now(swap.base), own=now(swap.own)) for swap in self.swaps]
        self.base = {name: now(p) for name, p in self.base.items()}
        self.base_parameters, self.stays = [], True

    def remove(self) -> None:
        """Take it out: the model is what it was, to the bit and to the identity of its tensors."""
        if self.stays:
            raise UserError("adapter: its base is dealt out to several processes; load it anew to take the adapter out")
        if active(self.model) is not self:
            raise UserError("adapter: this one is not in its model")
        if self.is_merged:
            self.unmerge()
        for swap in reversed(self.swaps):
            self._put(swap.site, swap.base)
        for parameter in self.base_parameters:
            parameter.requires_grad_(True)
        setattr(self.model, IN_PLACE, None)

    def merge(self) -> None:
        """Plain modules that compute the same stand in for the wrappers; the base's own tensors are kept aside."""
        if active(self.model) is not self:
            raise UserError("adapter: this one is not in its model")
        if self.is_merged:
            raise UserError("adapter: is merged already; unmerge it first")
        if any(isinstance(swap.own, nn.Module) and not isinstance(swap.own, Wrapper) for swap in self.swaps):
            raise UserError(f"adapter: {self.cfg.method} changes no module and cannot be merged; keep the adapter beside its base")
        plain = [(swap.site, swap.own.merged()) for swap in self.wrappers()]  # all of them, or none
        for place, module in plain:
            place.put(module)
        self.is_merged = True

    def unmerge(self) -> None:
        """The wrappers again, around the base's own tensors: nothing is subtracted, so nothing is rounded."""
        if not self.is_merged:
            raise UserError("adapter: is not merged")
        for swap in self.wrappers():
            self._put(swap.site, swap.own)
        self.is_merged = False

    def _put(self, place: Site, it: nn.Module | nn.Parameter | None) -> None:
        """Where it belongs. If the model was moved while it was out, it goes along: to its device, a parameter to its dtype, too."""
        if isinstance(it, nn.Parameter):
            it.data = it.data.to(place.found.device, place.found.dtype)
        elif it is not None:
            it.to(next(self.model.parameters()).device)
        place.put(it)

    # ── what it consists of ──────────────────────────────────────────────────────────────────────

    def facts(self) -> dict:
        """What a file of it has to say: settings and base."""
        return {"adapter": json.loads(json.dumps(dataclasses.asdict(self.cfg))), "base": self.fingerprint}

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, kinds and bytes of the base's tensors, and what else its answers depend on: an adapter goes with
        one base alone.
        """
        digest = hashlib.sha256()
        for module in self.model.modules():
            if isinstance(module, Transformer):
                digest.update(" ".join(f"{key} {getattr(module.cfg, key)}" for key in NOT_IN_TENSORS).encode())
        for name, tensor in self.base.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, a tied parameter once."""
        unique = {id(t): (name, t) for name, t in reversed(self.tensors().items()) if isinstance(t, nn.Parameter)}
        return dict(reversed(unique.values()))

    def wrappers(self) -> list[Swap]:
        return [swap for swap in self.swaps if isinstance(swap.own, Wrapper)]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that was trained and what belongs to it, under the base's names; a tied parameter under each."""
        found: dict[str, Tensor] = {}
        for swap in self.swaps:
            if isinstance(swap.own, nn.Parameter):
                found[swap.site.path] = swap.own
            else:
                found |= {f"{swap.site.path}.{name}": tensor for name, tensor in own_state(swap.own).items()}
        return found

    def state_dict(self) -> dict[str, Tensor]:
        if self.is_merged:
            raise UserError("adapter: is merged, and would be saved as nothing; unmerge it first")
        return {name: tensor.detach() for name, tensor in self.tensors().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Strict both ways: the same names and shapes, or nothing is written."""
        if self.is_merged:
            raise UserError("adapter: is merged, and would go on saying what it said; unmerge it first")
        mine = self.tensors()
        for name in mine.keys() ^ state.keys():
            raise ValueError(f"{name} is {'missing' if name in mine else 'unknown here'}")
        for name, tensor in mine.items():
            if kind_of(tensor) != kind_of(state[name]):
                raise ValueError(f"{name} is {state[name].dtype}, and not {tensor.dtype}")
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)} and not {tuple(tensor.shape)}")
        for name, tensor in mine.items():
            fill(tensor, state[name])

    # ── in training: only AdaLoRA has something to do here ───────────────────────────────────────

    def start(self, total_steps: int) -> None:
        """Before the first step: how many there will be."""

    def penalty(self) -> Tensor | None:
        """A term of the loss, once per optimiser step."""

    def before_clip(self, step: int) -> None:
        """The whole gradient of update number `step` is there, as it is."""

    def after_update(self, step: int) -> dict[str, float]:
        """Update number `step` (the first is 1) has been made; what is to be logged of it."""
        return {}

    def may_be_best(self, step: int) -> bool:
        """Whether the weights after that many updates are of the kind that was asked for."""
        return True

    def refuse_patience(self, patience: int) -> None:
        """Where the method needs all its steps."""

    # ── building ─────────────────────────────────────────────────────────────────────────────────

    def linears(self, otherwise: Sequence[str]) -> list[Site]:
        """What `targets` names in the chosen layers; `otherwise` where it names nothing."""
        return sites.linears(self.model, self.cfg.targets or otherwise, self.cfg.layers, self.outside)

    def _whole(self, theirs: set[int]) -> list[Swap]:
        """A parameter of the adapter's own at every place of each parameter that is trained whole."""
        chosen = {id(s.found) for s in self.whole()} | theirs
        copies: dict[int, nn.Parameter] = {}
        swaps = []
        for place, _ in sites.parameters(self.model):
            base = place.found
            if id(base) in chosen:
                own = copies.setdefault(id(base), nn.Parameter(base.detach().clone()))
                swaps.append(Swap(place, base, own))
        return swaps

    def _wrapped(self) -> list[Swap]:
        return [Swap(place, place.found, own) for place, own in self.modules()]


def kind_of(tensor: Tensor) -> tuple[bool, bool, bool]:
    """Floating numbers may be wider or shorter; nothing else may stand in for them."""
    return tensor.dtype.is_floating_point, tensor.dtype.is_complex, tensor.dtype == torch.bool


def own_state(module: nn.Module) -> dict[str, Tensor]:
    return module.own_state() if isinstance(module, Wrapper) else module.state_dict(keep_vars=True)


def active(model: nn.Module) -> Adapter | None:
    """The adapter that is in a model."""
    return getattr(model, IN_PLACE, None)


def use(model: nn.Module, adapter: Adapter | None) -> None:
    """Take out what is in the model and put this one in; None leaves the bare base."""
    if adapter is not None and adapter.model is not model:
        raise UserError("adapter: this one was made for another model; load it for this one (run.load_adapter)")
    if active(model) is not None:
        active(model).remove()
    if adapter is not None:
        adapter.install()


def refuse_second(model: nn.Module, method: str) -> None:
    """An adapter in the model, in a part of it, or around one."""
    there = next((active(part).cfg.method for part in model.modules() if active(part)), None)
    if there or any(isinstance(part, Wrapper) for part in model.modules()):
        raise UserError(f"adapter.method = {method!r}: the model has an adapter already ({there or 'put into what it is a part of'}); "
                        "take that one out first, or load a merged run (python -m minialpaca.merge)")


def refuse_nothing(adapter: Adapter) -> None:
    if not adapter.swaps:
        raise UserError(f"adapter.method = {adapter.cfg.method!r}: nothing would be trained; name adapter.layers or adapter.also")
