"""docs/EQUATIONS.md, walked both ways: from each row to its function and test, and from each docstring to its row."""

import ast
import functools
import importlib
import inspect
import re
from collections import defaultdict
from typing import NamedTuple

import pytest
from running import ROOT

PAGE = ROOT / "docs" / "EQUATIONS.md"
CITED = re.compile(r"\[([a-z][a-z0-9]*\.[a-z0-9]+)\]")  # [rmsnorm.4]
LINK = re.compile(r"\[`([^`]+)`\]\(([^)]+)\)")


class Row(NamedTuple):
    id: str
    source: str
    formula: str
    functions: list[tuple[str, str]]  # (module.name, path)
    tests: list[tuple[str, str]]      # (name, path)
    departure: str


def read() -> list[Row]:
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0] != "id" and set(cells[0]) != {"-"}:
            assert len(cells) == 6, f"six cells, and no | inside of one: {line}"
            found.append(Row(*cells[:3], LINK.findall(cells[3]), LINK.findall(cells[4]), cells[5]))
    return found


ROWS = read()


def walk(node: ast.AST, place: str = ""):
    """(place, docstring) of each function and class below `node`, methods and inner functions too."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield place + inner.name, ast.get_docstring(inner) or ""
            yield from walk(inner, f"{place}{inner.name}.")


@functools.cache
def docstrings() -> list[tuple[str, str]]:
    """Each (`module:name`, docstring); the docstring of a module is that of `module:`."""
    found = []
    for path in sorted((ROOT / "minialpaca").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(f"{module}:{place}", text) for place, text in [("", ast.get_docstring(tree) or ""), *walk(tree)]]
    return found


def citations() -> dict[str, set[str]]:
    """id → the places whose docstrings cite it."""
    found = defaultdict(set)
    for place, text in docstrings():
        for equation in CITED.findall(text):
            found[equation].add(place)
    return found


RELATION = re.compile(r"[=←≈~ΣΠ≥∈]")
SPELLED = {"log", "cos", "sin", "min", "max"}  # functions that are written like words


@pytest.mark.parametrize(("place", "text"), [pytest.param(*found, id=found[0]) for found in docstrings() if CITED.search(found[1])])
def test_a_docstring_opens_with_the_formula_that_it_cites(place, text):
    """All its ids stand before the first empty line. Of each line that has one, the first word belongs to a formula, being
    no word of two letters or more but one that a relation follows, and a relation or a sum stands before the id."""
    opening, _, prose = text.partition("\n\n")
    assert not CITED.search(prose), f"{place} cites {CITED.findall(prose)} below its opening"
    first, *_ = opening.splitlines()
    assert CITED.search(first), f"{place} opens with {first!r}"
    for line in filter(CITED.search, opening.splitlines()):
        formula, (word, then, *_) = line[:CITED.search(line).start()], line.split()
        assert RELATION.search(formula), f"{place}: {line}"
        is_symbol = not re.fullmatch(r"[A-Za-z]{2,}", word.strip("(),.:;")) or word in SPELLED or RELATION.match(then)
        assert is_symbol, f"{place}: {line}"


def place_of(name: str, path: str) -> str:
    """`model.rms_norm` in ../minialpaca/model.py → `minialpaca.model:rms_norm`."""
    file = (PAGE.parent / path).resolve()
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert f"minialpaca.{name}".startswith(f"{module}."), f"{name} does not stand in {path}"
    return f"{module}:{f'minialpaca.{name}'.removeprefix(f'{module}.')}"


def test_the_page_is_read():
    assert len(ROWS) >= 25 and {"rmsnorm.4", "model.1", "adapt.0", "generate.1"} <= {row.id for row in ROWS}


def test_an_id_has_one_row():
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_leads_to_functions_that_cite_it_and_to_tests_that_exist(row):
    assert row.functions and row.tests and row.source and row.departure
    for name, path in row.functions:
        assert (PAGE.parent / path).is_file(), path
        module, _, inner = place_of(name, path).partition(":")
        found = functools.reduce(getattr, inner.split("."), importlib.import_module(module))
        assert row.id in CITED.findall(inspect.getdoc(found) or ""), f"the docstring of {name} does not cite [{row.id}]"
    for name, path in row.tests:
        tree = ast.parse((PAGE.parent / path).read_text(encoding="utf-8"))
        assert name.startswith("test_") and name in {place for place, _ in walk(tree)}, f"{path} has no {name}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_formula_survives_markdown(row):
    """GitHub reads `\\{` and `\\,` as escaped punctuation before it looks for mathematics; words for them are safe."""
    assert row.formula.count("$") % 2 == 0 and "$" in row.formula
    assert not re.search(r"\\[^a-zA-Z]|[)}]_|[<>*]", row.formula)


@pytest.mark.parametrize(("equation", "places"), [pytest.param(*cited, id=cited[0]) for cited in sorted(citations().items())])
def test_what_a_docstring_cites_has_a_row_that_names_its_function(equation, places):
    rows = [row for row in ROWS if row.id == equation]
    assert rows, f"[{equation}] is cited by {sorted(places)}; give it a row in docs/EQUATIONS.md"
    named = {place_of(*function) for row in rows for function in row.functions}
    assert places <= named, f"[{equation}] is cited by {sorted(places - named)} too; name it in the row"
