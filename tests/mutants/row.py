"""How a mutant is written down."""

from typing import NamedTuple


class Mutant(NamedTuple):
    function: str  # module:name
    old: str
    new: str
    test: str      # a pytest node, quick


MUTANTS: list[Mutant] = []


def of(function: str, test: str, *changes: tuple[str, ...]) -> None:
    file = test.partition("::")[0]
    for old, new, *other in changes:
        node = other[0] if other else test
        MUTANTS.append(Mutant(f"minialpaca.{function}", old, new, f"tests/{node if '::' in node else f'{file}::{node}'}"))
