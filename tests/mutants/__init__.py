"""Wrong on purpose: one changed symbol a row, and the test that has to notice.

`of(function, test, *changes)`: each change is (old, new) or, where another test is the one to notice, (old, new, test),
by its name alone where it stands in the same file. `old` stands exactly once in the source of the function.
test_mutants.py tries them all, and asks for four or more for each function whose docstring cites an equation.
"""

from mutants import attacks, few_parameters, losses, step, transformer  # each adds its rows
from mutants.row import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant", "attacks", "few_parameters", "losses", "step", "transformer"]
