"""The benchmarks are run by hand; here, that they can be: each is imported, and what it names of minialpaca is there."""

import ast
import importlib
from types import ModuleType

import pytest
from running import ROOT

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
