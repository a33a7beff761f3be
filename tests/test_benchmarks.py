"""The benchmarks are run by hand; here, that they can be: each is imported, and what it names of minialpaca is there."""

import ast
import importlib.util
import re
from types import ModuleType

import pytest
from running import ROOT

from benchmarks import run

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_benchmark_names_is_there(name):
    module = importlib.import_module(f"benchmarks.{name}")
    for node in ast.walk(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"))):
        owner = getattr(module, node.value.id, None) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else None
        if isinstance(owner, ModuleType) and owner.__name__.startswith(("minialpaca", "benchmarks")):
            assert hasattr(owner, node.attr), f"benchmarks/{name}.py, line {node.lineno}: {owner.__name__} has no {node.attr}"


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_opens_with_its_question_and_its_command(name):
    about = importlib.import_module(f"benchmarks.{name}").__doc__
    assert about and (f"python -m benchmarks.{name}" in about or not hasattr(importlib.import_module(f"benchmarks.{name}"), "main"))


@pytest.mark.parametrize(("workload", "asked", "said"), [
    ("train", ["ours", "nobody"], None), ("start", ["ours"], "ours: takes no part in --workload start, which has python, import, help"),
    ("save", ["ours:bf16"], "ours:bf16: takes no part in --workload save"), ("decode", ["litgpt:tuned"], "litgpt:tuned: is not installed; pip install litgpt")])
def test_who_takes_part_is_told_before_anything_is_measured(monkeypatch, workload, asked, said):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if said is None:
        assert run.field(workload, asked) == asked and run.field(workload, []) == [name for name in run.FIELD[workload] if name.startswith("ours")]
        return
    with pytest.raises(SystemExit, match=re.escape(said)):
        run.field(workload, asked)
