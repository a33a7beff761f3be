"""The ledger, the symbols and the reading page: every row is pinned by a test that exists, every name by the code."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def rows(page):
    """The cells of each table row of a page, without its head."""
    lines = [line for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    tables = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [cells for cells, below in zip(tables, [*tables[1:], [""]])
            if not set(cells[0]) <= set("-: ") and not set(below[0]) == {"-"}]


def has_test(node):
    path, name = node.split("::")
    found = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    return name in {f.name for f in found if isinstance(f, ast.FunctionDef)}


LEDGER, SYMBOLS, READING = rows("LEDGER.md"), rows("SYMBOLS.md"), rows("READING.md")
NEAR = 3  # lines by which a function may have grown since the page was written


def test_the_pages_are_read():
    assert len(LEDGER) >= 12 and len(SYMBOLS) >= 12
    assert {len(row) for row in LEDGER} == {5} and {len(row) for row in SYMBOLS} == {4}


@pytest.mark.parametrize("row", LEDGER, ids=lambda row: row[0])
def test_every_departure_is_pinned(row):
    tests = re.findall(r"`(tests/[^`]+)`", row[4])
    assert tests and all(map(has_test, tests)), row[4]


@pytest.mark.parametrize("row", SYMBOLS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_every_symbol_is_called_what_the_page_says(row):
    """The last column names where: `module:object`, whose source or fields hold the name of the third."""
    name = re.fullmatch(r"`([^`]+)`", row[2])[1]
    module, _, place = re.fullmatch(r"`([^`]+)`", row[3])[1].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    found = next(node for node in ast.walk(ast.parse(source))
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == place)
    importlib.import_module(module)
    names = {n.arg for n in ast.walk(found) if isinstance(n, ast.arg)} | {n.id for n in ast.walk(found) if isinstance(n, ast.Name)}
    names |= {n.attr for n in ast.walk(found) if isinstance(n, ast.Attribute)}
    assert name in names, f"{name} is not in {module}:{place}"


@pytest.mark.parametrize("row", READING, ids=lambda row: row[1])
def test_every_walk_leads_somewhere(row):
    path, _, name = row[1].strip("`").partition(":")
    found = [node for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
             if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name]
    assert len(found) == 1, row[1]
    length = found[0].end_lineno - found[0].lineno + 1
    assert abs(length - int(row[2])) <= NEAR, f"{row[1]} has {length} lines"
    assert has_test(row[3].strip("`")), row[3]
