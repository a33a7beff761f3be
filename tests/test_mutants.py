"""Has the suite teeth? Each row of mutants/ changes one symbol of a function, and the test it names must fail.

The mutant's code takes the place of the function's own, so everybody who holds the function runs it, and the test is
run by a pytest inside this one. `python -m pytest tests/test_mutants.py -k rms_norm` runs a function's mutants.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import io
import os
import textwrap
import types
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant
from running import ROOT
from test_equations import citations

# A small pytest: no shared fixtures (a test that needs a tiny run is not quick), and no plugin that would hook the
# process a second time.
PLAIN = [f"--rootdir={ROOT}", "--noconftest", "--no-header", *(
    f"-pno:{plugin}" for plugin in ("cacheprovider", "hypothesispytest", "xdist", "faulthandler", "threadexception", "unraisableexception"))]


def function_of(place: str) -> types.FunctionType:
    """`module:name` or `module:Class.method`, without what decorators have put around it."""
    module, _, path = place.partition(":")
    found = functools.reduce(inspect.getattr_static, path.split("."), importlib.import_module(module))
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    if isinstance(found, (property, functools.cached_property)):
        found = found.fget if isinstance(found, property) else found.func
    return inspect.unwrap(found)


def mutated(function: types.FunctionType, old: str, new: str) -> types.CodeType:
    """The code object of `function` with `old`, which it contains once, replaced by `new`."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {function.__qualname__}"
    tree = ast.parse(source.replace(old, new))
    tree.body[0].decorator_list = []
    free = function.__code__.co_freevars  # of a closure, or __class__ where super() is called
    if free:
        maker = ast.parse(f"def maker({', '.join(free)}): return {function.__name__}").body[0]
        maker.body.insert(0, tree.body[0])
        tree.body = [maker]
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    names = {}
    exec(compile(ast.fix_missing_locations(tree), inspect.getfile(function), "exec"), dict(function.__globals__), names)
    made = names["maker"](*[None] * len(free)) if free else names[function.__name__]
    assert made.__code__.co_freevars == free
    return made.__code__


@contextlib.contextmanager
def swapped(function: types.FunctionType, code: types.CodeType):
    original, function.__code__ = function.__code__, code
    try:
        yield
    finally:
        function.__code__ = original


def outcome(test: str) -> int:
    """The exit code of a pytest of its own: 0 passed, 1 failed, anything else no verdict."""
    environment, said = dict(os.environ), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = int(pytest.main([f"{ROOT / test}", "-q", "-x", "-s", *PLAIN]))
    os.environ.update(environment)  # a pytest clears away PYTEST_CURRENT_TEST behind itself
    assert code in (0, 1), f"{test} gave no verdict: {said.getvalue()[-2000:]}"
    return code


passes = functools.cache(lambda test: outcome(test) == 0)  # as the function stands; asked once for each test


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.function.partition(':')[2]}: {m.old} => {m.new}")
def test_a_mutant_is_caught(mutant: Mutant):
    assert passes(mutant.test), f"{mutant.test} does not pass as it is"
    function = function_of(mutant.function)
    with swapped(function, mutated(function, mutant.old, mutant.new)):
        assert outcome(mutant.test) == 1, f"{mutant.test} does not notice `{mutant.new}` in place of `{mutant.old}`"


# ── the table itself ─────────────────────────────────────────────────────────────────────────────

# Not an equation, and yet where a slip would hide.
BESIDES = {"minialpaca.objectives:next_token_pairs", "minialpaca.model:causal", "minialpaca.model:_causal_among_real"}


EQUATIONS = set().union(*citations().values())


@pytest.mark.parametrize("place", sorted(EQUATIONS | BESIDES))
def test_every_equation_has_four(place):
    """Of a class the mutants of its methods count."""
    rows = {(m.old, m.new) for m in MUTANTS if m.function == place or m.function.startswith(f"{place}.")}
    assert len(rows) >= 4, f"{place} has {len(rows)} mutants; write {4 - len(rows)} more into tests/mutants/"


def test_no_mutant_is_there_twice():
    assert len({(m.function, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


def test_a_mutant_reaches_methods_closures_and_cached_functions_and_leaves_no_trace():
    class Base:
        def size(self):
            return 1

    class Child(Base):
        def size(self):
            return super().size() + 1

    @functools.lru_cache
    def cached(x):
        return x + 1

    assert Child().size() == 2 and cached(1) == 2
    for function, call in ((Child.size, lambda: Child().size()), (inspect.unwrap(cached), lambda: cached(5))):
        was = function.__code__
        with contextlib.suppress(ZeroDivisionError), swapped(function, mutated(function, "+ 1", "- 7")):
            assert call() < 0
            1 / 0
        assert function.__code__ is was
    assert Path(inspect.getfile(function_of("minialpaca.model:rms_norm"))).name == "model.py"
