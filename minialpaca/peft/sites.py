"""Where a method is put: modules and parameters of a finished model, found by name, layer and role."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from minialpaca.errors import UserError

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Site:
    """The place `owner.name`, called `path` from the whole model, where `found` stands: a module or a parameter."""

    owner: nn.Module
    name: str
    path: str

    @property
    def found(self) -> nn.Module | nn.Parameter:
        return getattr(self.owner, self.name)

    def put(self, it: nn.Module | nn.Parameter) -> None:
        setattr(self.owner, self.name, it)


def site(model: nn.Module, path: str) -> Site:
    owner, _, name = path.rpartition(".")
    return Site(model.get_submodule(owner), name, path)


def modules(model: nn.Module, kind: type | tuple[type, ...]) -> list[Site]:
    return [site(model, path) for path, module in model.named_modules() if path and isinstance(module, kind)]


# ── by layer ─────────────────────────────────────────────────────────────────────────────────────


def layer_of(path: str) -> int | None:
    """The number of the layer that a name stands in; None for what stands in none (embedding, head)."""
    found = LAYER.search(path)
    return int(found[1]) if found else None


def chosen_layers(model: nn.Module, layers: str) -> set[int]:
    """`layers` as Python's slice of all layers."""
    n_layers = 1 + max((layer_of(path) for path, _ in model.named_modules() if layer_of(path) is not None), default=-1)
    start, stop = (int(end) if end else None for end in layers.split(":"))
    chosen = set(range(n_layers)[start:stop])
    if not chosen:
        raise UserError(f"adapter.layers = {layers!r}: names none of the layers 0 … {n_layers - 1}")
    return chosen


def within(sites: Iterable[Site], layers: set[int]) -> list[Site]:
    """Those of the chosen layers, and those that stand in no layer."""
    return [s for s in sites if layer_of(s.path) is None or layer_of(s.path) in layers]


# ── by name ──────────────────────────────────────────────────────────────────────────────────────


def linears(model: nn.Module, targets: Sequence[str], layers: str, outside: Collection[nn.Module] = ()) -> list[Site]:
    """The Linears whose names end, at a dot, in one of `targets`; a target that matches nothing is an error.

    `outside`: modules that are none of them, whatever they are called.
    """
    there = [s for s in within(modules(model, nn.Linear), chosen_layers(model, layers)) if s.found not in outside]
    for target in targets:
        if not any(is_called(s.path, target) for s in there):
            names = dict.fromkeys(re.sub(r".*layers\.\d+\.", "", s.path) for s in there)
            raise UserError(f"adapter.targets: {target!r} matches no Linear of layers {layers!r}; there are {', '.join(names)}")
    return [s for s in there if any(is_called(s.path, target) for target in targets)]


def called(model: nn.Module, names: Sequence[str], layers: str) -> list[Site]:
    """The modules of the chosen layers that are called one of `names`, whatever they are."""
    found = [s for s in modules(model, nn.Module) if any(is_called(s.path, name) for name in names)]
    return [s for s in found if layer_of(s.path) in chosen_layers(model, layers)]


def is_called(path: str, target: str) -> bool:
    return path == target or path.endswith("." + target)


# ── by role ──────────────────────────────────────────────────────────────────────────────────────


def role(owner: nn.Module, name: str, path: str) -> str:
    """What a parameter is: embedding, norm, bias, head or matrix. `path` is that of its module."""
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if name == "bias":
        return "bias"
    if not isinstance(owner, (nn.Linear, nn.Bilinear, nn.Conv1d)) and getattr(owner, "weight", None) is not None \
            and owner.weight.ndim == 1:
        return "norm"
    return "head" if is_called(path, "lm_head") else "matrix"


def parameters(model: nn.Module) -> list[tuple[Site, str]]:
    """Every parameter with its role, a tied one at each of its places."""
    return [(Site(module, name, f"{path}.{name}" if path else name), role(module, name, path))
            for path, module in model.named_modules() for name, _ in module.named_parameters(recurse=False)]


def with_role(model: nn.Module, roles: Sequence[str], outside: Collection[nn.Module] = ()) -> list[Site]:
    """The parameters of these roles; a role that nothing has, or one half of a tied pair, is an error.

    What stands in a module of `outside` has no role.
    """
    found = [(s, has) for s, has in parameters(model) if s.owner not in outside]
    for wanted in roles:
        if not any(has == wanted for _, has in found):
            raise UserError(f"adapter.also: {wanted!r} matches nothing here; there are "
                            f"{', '.join(dict.fromkeys(has for _, has in found if has != 'matrix'))}")
    chosen = [s for s, has in found if has in roles]
    tied = {id(s.found) for s in chosen} & {id(s.found) for s, has in found if has not in roles}
    if tied:
        places = " and ".join(s.path for s, _ in found if id(s.found) in tied)
        raise UserError(f"adapter.also = {', '.join(roles)}: {places} are one matrix (model.tie_embeddings), and training one "
                        "trains the other; name both, embedding and head")
    return chosen
