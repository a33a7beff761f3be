"""The checker of shape suffixes: what it catches, what it lets pass, and that minialpaca runs under it."""

import ast
import importlib
import pkgutil
import sys
import traceback
import types
from pathlib import Path

import axes
import pytest
import tiny
import torch

import minialpaca
from minialpaca.cache import KVCache
from minialpaca.model import Attention, causal, spelled_attention
from minialpaca.objectives import cross_entropy_sum

A, B = torch.zeros(2, 3), torch.zeros(4, 5)


def function(source: str) -> types.FunctionType:
    """The function `f` of this source, rewritten as minialpaca's are."""
    names = {}
    exec(axes.rewritten(source, "here.py"), names)
    return names["f"]


@pytest.mark.parametrize(("source", "given", "complaint"), [
    ("def f(x_BTD): return 1", A, r":1: x_BTD has shape \(2, 3\): 2 axes for the letters BTD"),
    ("def g(*, x_B): pass\ndef f(y):\n    g(x_B=y)", A, r":1: x_B has shape \(2, 3\): 2 axes for the letters B$"),
    ("def f(x_BB): return 1", A, r"B = 3, but 2 in x_BB of line 1"),
    ("def f(x_BT):\n    y_TB = x_BT", A, r":2: y_TB has shape \(2, 3\): T = 2, but 3 in x_BT of line 1"),
    ("def f(x_BT):\n    x_BT = x_BT.mT", A, r":2: x_BT has shape \(3, 2\): B = 3, but 2 in x_BT"),
    ("def f(x):\n    y, (z_BT, *_) = x, (x.mT, 0)\n    x_BT = x", A, r":3: x_BT .*: B = 2, but 3 in z_BT"),
    ("def f(x):\n    y_B1: object = x", A, r":2: y_B1 has shape \(2, 3\): an axis named 1 has size 3"),
    ("def f(x):\n    return (y_T := x)", A, r":2: y_T has"),
    ("def f(x):\n    x_2T = x\n    for row_U, row_T in zip(x, x.mT):\n        pass", A, r":3: row_T .*: T = 2"),
    ("def f(x_BT):\n    return [1 for row_B in x_BT]", A, r":2: row_B has shape \(3,\): B = 3, but 2"),
    ("def f(x):\n    self = f\n    self.kept_BTD = x", A, r":3: kept_BTD has"),
    ("def f(x):\n    x_BT = x\n    x_BT += x\n    x_BT = x[:1]", A, r":4: x_BT .*: B = 1, but 2 in x_BT of line 2"),
    ("def f(x):\n    def g(y_T): return y_T\n    return g(x)", A, r":2: y_T has"),
    ("def f(x_BT):\n    yield 1\n    y_T = x_BT[:, 1:].sum(0)\n    yield 2", A, r":3: y_T .*: T = 2, but 3"),
    ("class C:\n    def g(self, x_T): pass\nf = C().g", A, r":2: x_T has"),
    ("def f(x_T): pass", A.numpy(), r":1: x_T has"),
])
def test_a_wrong_suffix_is_caught_where_it_stands(source, given, complaint):
    with pytest.raises(AssertionError, match=f"here.py{complaint}" if complaint[0] == ":" else complaint):
        list(function(source)(given) or ())


def test_right_suffixes_pass_and_each_call_begins_anew():
    f = function("def f(x_BT, mask_BT=None, MAX_T=None, n_B=0):\n"
                 "    'What it says.'\n"
                 "    sum_B1 = x_BT.sum(1)[:, None]\n"
                 "    rows = [row_T for row_T in x_BT if len(row_T)]\n"
                 "    return sum_B1, lambda x_T: x_T")
    assert f.__doc__ == "What it says."
    for x in (A, B, A.numpy()):
        sums, anything = f(x, None, A, 3)
        assert sums.shape == (len(x), 1) and anything(A) is A


def test_rewriting_moves_no_line():
    source = ("'''Doc.'''\nfrom __future__ import annotations\n\nimport math\n\n\n"
              "def f(x_T):\n    y_T = (\n        x_T)\n    return [1 / 0\n            for z in y_T]\n")
    with pytest.raises(ZeroDivisionError) as error:
        function(source)(A[0])
    assert {frame.lineno for frame in traceback.extract_tb(error.tb) if frame.filename == "here.py"} <= {10, 11}
    names = {}
    exec(axes.rewritten(source, "here.py"), names)
    assert names["__doc__"] == "Doc." and names["f"].__code__.co_firstlineno == 7


# ── minialpaca under the checker ─────────────────────────────────────────────────────────────────

MODULES = [name for _, name, _ in pkgutil.walk_packages(minialpaca.__path__, "minialpaca.") if "__main__" not in name]


def code_objects(code: types.CodeType):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_objects(constant)


@pytest.mark.parametrize("name", [*MODULES, "train", "finetune"])
def test_every_module_is_measured(name):
    """Each function that has an argument with axes in its name also has the sizes of that call."""
    module = importlib.import_module(name)
    assert isinstance(module.__spec__.loader, axes.Loader)
    measuring = {c.co_name for c in code_objects(module.__spec__.loader.get_code(name))
                 if axes.SIZES in c.co_varnames + c.co_cellvars}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg) and axes.SUFFIX.search(a.arg)}
            assert not arguments or node.name in measuring, f"{node.name}: {arguments}"


def test_the_functions_that_run_are_those_that_measure():
    for function_ in (spelled_attention, causal, Attention.forward, cross_entropy_sum, KVCache.__init__):
        assert axes.CLASS in function_.__code__.co_names, function_.__qualname__
        assert function_.__globals__[axes.CLASS] is axes.Sizes


def test_a_wrong_shape_stops_the_models_own_functions():
    with pytest.raises(AssertionError, match=r"objectives.py:\d+: targets_N .*: N = 2, but 3 in logits_NV"):
        cross_entropy_sum(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(AssertionError, match=r"model.py:\d+: k_BHSK has shape .*: K = 9, but 8 in q_BHTK"):
        spelled_attention(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 9), torch.zeros(1, 2, 3, 8))
    with pytest.raises(AssertionError, match=r"model.py:\d+: real_BT has shape \(2, 4\): T = 4, but 5 in tokens_BT"):
        tiny.model()(tiny.tokens(2, 5), torch.ones(2, 4, dtype=torch.bool))


def test_what_is_cached_on_disk_is_not_rewritten():
    """A run outside the tests finds bytecode of its own making."""
    assert axes.Finder in sys.meta_path and axes.Finder.find_spec("json") is None
    loader = importlib.import_module("minialpaca.model").__spec__.loader
    plain = compile(Path(loader.path).read_bytes(), loader.path, "exec", dont_inherit=True)
    assert axes.CLASS in loader.get_code(loader.name).co_names and axes.CLASS not in plain.co_names


def test_installing_twice_is_installing_once():
    before = list(sys.meta_path)
    axes.install()
    assert sys.meta_path == before
