"""Names that end in their axes, checked: while the tests run, `scores_BHTS` has four axes and T is one number.

`install` hooks the import of minialpaca. In each function of it every argument on entry, and every name and attribute
when it is assigned, is measured if its name ends in axes and its value is a tensor or an array: as many axes as
letters, and one size per letter for the whole of that call. A digit is a size: `kth_B1`. The legend of the letters is
at the top of model.py. Nothing of this is there at run time; arguments of lambdas are not looked at.
"""

import ast
import importlib.machinery
import re
import sys

import numpy as np
import torch

SUFFIX = re.compile(r"[a-z0-9]_([A-Z0-9]*[A-Z][A-Z0-9]*)$")
MODULES = re.compile(r"(minialpaca|train|finetune)(\.|$)")


class Sizes(dict):
    """Letter → (size, the name that set it, its line), for one call of one function."""

    def measure(self, name: str, value):
        """Hand `value` on; AssertionError where its shape and its name disagree."""
        if isinstance(value, (torch.Tensor, np.ndarray)):
            frame, shape, axes = sys._getframe(1), tuple(value.shape), SUFFIX.search(name)[1]
            here = f"{frame.f_code.co_filename}:{frame.f_lineno}: {name} has shape {shape}"
            if len(shape) != len(axes):
                raise AssertionError(f"{here}: {len(shape)} axes for the letters {axes}")
            for axis, size in zip(axes, shape):
                if axis.isdigit():
                    if size != int(axis):
                        raise AssertionError(f"{here}: an axis named {axis} has size {size}")
                    continue
                known, by, line = self.setdefault(axis, (size, name, frame.f_lineno))
                if size != known:
                    raise AssertionError(f"{here}: {axis} = {size}, but {known} in {by} of line {line}")
        return value


# ── rewriting ────────────────────────────────────────────────────────────────────────────────────

SIZES, CLASS = "_sizes_of_axes", "_SizesOfAxes"  # what a rewritten function calls its own, and a module the class above


class Rewriter(ast.NodeTransformer):
    """Inserts the measurements. Each has the place of what it measures, so that no line number moves."""

    def __init__(self):
        self.measured: int | None = None  # measurements in the function we are in; None outside of functions
        self.total = 0

    def _measure(self, name: str, value: ast.expr) -> ast.Call:
        self.measured, self.total = self.measured + 1, self.total + 1
        method = ast.Attribute(ast.Name(SIZES, ast.Load()), "measure", ast.Load())
        return ast.Call(method, [ast.Constant(name), value], [])

    def _targets(self, *targets: ast.AST) -> list[ast.Call]:
        """A measurement for each name with axes that is bound in `targets`, however deep in tuples."""
        if self.measured is None:
            return []
        calls = []
        for node in (node for target in targets for node in ast.walk(target)):
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            if SUFFIX.search(name) and isinstance(node.ctx, ast.Store):
                value = (ast.Name(name, ast.Load()) if isinstance(node, ast.Name)
                         else ast.Attribute(node.value, name, ast.Load()))
                calls.append(self._measure(name, value))
        return calls

    def _followed(self, node: ast.stmt, *targets: ast.AST) -> list[ast.stmt]:
        self.generic_visit(node)
        return [node, *_placed(self._targets(*targets), node)]

    def visit_Assign(self, node):
        return self._followed(node, *node.targets)

    def visit_AugAssign(self, node):
        return self._followed(node, node.target)

    def visit_AnnAssign(self, node):
        return self._followed(node, *([node.target] if node.value else []))

    def visit_For(self, node):
        self.generic_visit(node)
        node.body[:0] = _placed(self._targets(node.target), node)
        return node

    def visit_With(self, node):
        self.generic_visit(node)
        node.body[:0] = _placed(self._targets(*[i.optional_vars for i in node.items if i.optional_vars]), node)
        return node

    def visit_NamedExpr(self, node):
        self.generic_visit(node)
        if self.measured is not None and SUFFIX.search(node.target.id):
            node.value = _placed([self._measure(node.target.id, node.value)], node)[0].value
        return node

    def visit_comprehension(self, node):
        """`for row_V in rows` gets a condition that measures and, a tuple being true, always holds."""
        self.generic_visit(node)
        calls = self._targets(node.target)
        if calls:
            node.ifs.insert(0, _placed([ast.Tuple(calls, ast.Load())], node.target)[0].value)
        return node

    def visit_FunctionDef(self, node):
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        node.args = self.visit(node.args)
        outside, self.measured = self.measured, 0
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        entry = [self._measure(a.arg, ast.Name(a.arg, ast.Load())) for a in arguments if SUFFIX.search(a.arg)]
        body = [part for old in node.body for part in _listed(self.visit(old))]
        if self.measured:
            sizes = ast.Assign([ast.Name(SIZES, ast.Store())], ast.Call(ast.Name(CLASS, ast.Load()), [], []))
            first = 1 if ast.get_docstring(node, clean=False) is not None else 0
            body[first:first] = _placed([sizes, *entry], node)
        node.body, self.measured = body, outside
        return node

    def _outside(self, node):
        """Class bodies and lambdas are not measured; functions in them are."""
        outside, self.measured = self.measured, None
        self.generic_visit(node)
        self.measured = outside
        return node

    visit_AsyncFunctionDef, visit_ClassDef, visit_Lambda = visit_FunctionDef, _outside, _outside

    def visit_Module(self, node):
        self.generic_visit(node)
        if self.total:
            first = 1 if ast.get_docstring(node, clean=False) is not None else 0
            while isinstance(node.body[first], ast.ImportFrom) and node.body[first].module == "__future__":
                first += 1
            wanted = ast.ImportFrom(__name__, [ast.alias(Sizes.__name__, CLASS)], 0)
            node.body[first:first] = _placed([wanted], node.body[first])
        return node


def _listed(result) -> list:
    return result if isinstance(result, list) else [result]


def _placed(nodes: list, where: ast.AST) -> list[ast.stmt]:
    """As statements on the first line of `where`; a call that spans lines would report its last."""
    statements = [ast.Expr(node) if isinstance(node, ast.expr) else node for node in nodes]
    for node in (node for statement in statements for node in ast.walk(statement)):
        if not hasattr(node, "lineno"):
            node.lineno = node.end_lineno = where.lineno
            node.col_offset = node.end_col_offset = where.col_offset
    return statements


def rewritten(source: str | bytes, path: str):
    """The code object of a module whose functions measure."""
    tree = ast.fix_missing_locations(Rewriter().visit(ast.parse(source, path)))
    return compile(tree, path, "exec", dont_inherit=True)


# ── the import hook ──────────────────────────────────────────────────────────────────────────────


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        """From the source each time: what is cached on disk is what runs outside the tests."""
        return rewritten(self.get_data(self.path), self.path)


class Finder:
    @staticmethod
    def find_spec(fullname, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if MODULES.match(fullname) else None
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Before the first import of minialpaca, or its functions would go unmeasured. A second call does nothing."""
    if Finder not in sys.meta_path:
        early = [name for name in sys.modules if MODULES.match(name)]
        assert not early, f"imported before the shape suffixes could be checked: {early}"
        sys.meta_path.insert(0, Finder)
