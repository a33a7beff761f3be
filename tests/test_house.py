"""The house rules that source code can be asked about: who imports whom, and what is never used."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = [ROOT / "train.py", ROOT / "finetune.py"]
FILES = [*sorted((ROOT / "minialpaca").rglob("*.py")), *SCRIPTS]
FOREIGN = {"transformers", "peft", "datasets", "accelerate", "tokenizers", "safetensors", "huggingface_hub", "pickle",
           "dill",
           "trl", "evaluate", "marshal", "shelve"}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports_of(path):
    """Every module an `import` anywhere in the file names, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                      for alias in node.names}
    return found


GRAPH = {name: {i for i in imports_of(path) if i in MODULES} for name, path in MODULES.items()}


def reachable(name):
    found, todo = set(), [name]
    while todo:
        for other in GRAPH[todo.pop()] - found:
            found.add(other)
            todo.append(other)
    return found


def test_the_modules_are_found():
    assert {"train", "minialpaca.model", "minialpaca.data.world", "minialpaca.tasks.pretrain"} <= set(MODULES)
    assert "minialpaca.cache" in GRAPH["minialpaca.model"] and "minialpaca.config" in reachable("train")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_hugging_face_and_no_pickle(path):
    assert not {i.partition(".")[0] for i in imports_of(path)} & FOREIGN


def test_there_is_one_place_that_loads_tensors():
    calls = [(path.name, node) for path in FILES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Call)]
    assert [name for name, call in calls if ast.unparse(call.func) == "torch.load"] == ["checkpoint.py"]


ABOVE = {"minialpaca.trainer", "minialpaca.run", "minialpaca.scripts", "minialpaca.generate", "minialpaca.storage.checkpoint"}


@pytest.mark.parametrize("floor", ["config", "tokenizer", "objectives", "model", "sampling", "errors", "data.order",
                                   "data.batch"])
def test_the_lower_floors_know_nothing_above_them(floor):
    above = {m for m in reachable(f"minialpaca.{floor}") if m in ABOVE or m.startswith("minialpaca.tasks")}
    assert not above
    if not floor.startswith("data."):
        assert not {m for m in reachable(f"minialpaca.{floor}") if m.startswith("minialpaca.data")}


def test_the_trainer_knows_tasks_only_through_their_interface():
    assert {m for m in GRAPH["minialpaca.trainer"] if m.startswith("minialpaca.tasks")} == {"minialpaca.tasks"}
    assert not {m for m in reachable("minialpaca.trainer") if m.startswith("minialpaca.tasks.")}


def test_nobody_imports_the_scripts():
    for name in MODULES.keys() - {"train", "finetune"}:
        assert not GRAPH[name] & {"train", "finetune"}, name


@pytest.mark.parametrize("name", MODULES)
def test_imports_never_run_in_a_circle(name):
    """A package's __init__ that gathers its parts is one with them."""
    parts = {m for m in MODULES if m.startswith(f"{name}.")}
    below = reachable(name) - parts if parts else reachable(name)
    assert name not in {other for m in below for other in GRAPH[m]}


def imported(node):
    if isinstance(node, ast.Import):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    return [alias.asname or alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []


@pytest.mark.parametrize("path", [p for p in [*FILES, *sorted((ROOT / "tests").rglob("*.py"))] if p.name != "__init__.py"],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_imported_in_vain(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    by_effect = {"readline", "triton"}  # gives `input` its line editing by being imported; is asked for whether it is there
    assert {name for node in nodes for name in imported(node)} <= used | by_effect
