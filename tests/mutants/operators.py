"""The faults that `make mutants` puts into a source file, one at a time: a small table of changes to its syntax tree.

A mutant is known by its file, its function and its text before and after, not by its line, so that the list of equivalent
mutants stays right when lines move.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {
    "minimum": "maximum",
    "maximum": "minimum",
    "min": "max",
    "max": "min",
    "argmax": "argmin",
    "any": "all",
    "all": "any",
}
DROPPED_CALLS = {"detach", "clamp", "double", "float", "cumsum", "abs"}  # `x.detach()` becomes `x`
SKIPPED = (ast.Raise, ast.Import, ast.ImportFrom, ast.Assert)
COMMUTATIVE = {"minimum", "maximum", "min", "max", "promote_types"}  # their arguments may change places
UNINTERESTING = {
    "dim",
    "keepdim",
    "strict",
    "dtype",
    "device",
    "init",
    "repr",
    "digest_size",
}  # a change is only an error


@dataclass(frozen=True)
class Mutant:
    """One changed file. `name` is the same as long as the changed expression is."""

    path: str
    line: int
    name: str
    source: str


def mutants_of(path: str, root: Path) -> list[Mutant]:
    """Every mutant of a source file, in the order of its text."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for node, parent, function in _nodes(tree, "module"):
        shown = parent if isinstance(node, ast.Constant) and isinstance(parent, ast.expr) else node
        for changed in _changes(node):
            before, after = _text(shown), _text(_replaced(shown, node, changed))
            name = f"{path} | {function} | {before} -> {after}"
            seen[name] += 1
            if seen[name] > 1:
                name += f" | number {seen[name]}"
            found.append(Mutant(path, getattr(node, "lineno", 0), name, ast.unparse(_replaced(tree, node, changed))))
    return found


def _text(node: ast.AST) -> str:
    return ast.unparse(node).split("\n")[0]


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, ast.AST, str]]:
    """The nodes that run, each with its parent and its function: no annotation, no import, no text of an error."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, SKIPPED):
                continue
            inner = child.name if isinstance(child, ast.FunctionDef | ast.ClassDef) else function
            if isinstance(child, ast.keyword) and child.arg in UNINTERESTING:
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield child, node, inner
            yield from _nodes(child, inner)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[op]):
            for other in COMPARISONS.get(type(op), []):
                yield _with(node, ops=[other()])
        case ast.BinOp(op=op):
            if other_op := ARITHMETIC.get(type(op)):
                yield _with(node, op=other_op())
            yield node.left  # the right term is dropped
        case ast.BoolOp(op=ast.And()):
            yield _with(node, op=ast.Or())
        case ast.BoolOp(op=ast.Or()):
            yield _with(node, op=ast.And())
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1 if isinstance(value, int) else (value * 2 or 1.0))
        case ast.If() | ast.IfExp() if not isinstance(node.test, ast.Compare | ast.UnaryOp):
            yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            yield _with(node, op=ARITHMETIC[type(op)]())
        case ast.Slice():
            for name in ("lower", "upper"):
                bound = getattr(node, name)
                if bound is not None and not isinstance(bound, ast.Constant):
                    yield _with(node, **{name: ast.BinOp(bound, ast.Add(), ast.Constant(1))})
        case ast.Call():
            yield from _changes_of_a_call(node)


def _changes_of_a_call(node: ast.Call) -> Iterator[ast.AST]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if len(node.args) == 2 and not isinstance(node.args[0], ast.Constant) and name not in COMMUTATIVE:
        yield _with(node, args=node.args[::-1])
    match node.func:
        case ast.Name(id="range"):
            yield _with(node, args=[*node.args[:-1], ast.BinOp(node.args[-1], ast.Add(), ast.Constant(1))])
        case ast.Name(id=name) if name in NAMES:
            yield _with(node, func=ast.Name(NAMES[name], ast.Load()))
        case ast.Attribute(value=value, attr=name) if name in NAMES:
            yield _with(node, func=ast.Attribute(value, NAMES[name], ast.Load()))
        case ast.Attribute(value=value, attr=name) if name in DROPPED_CALLS:
            yield value


def _with(node: ast.AST, **changes: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _replaced(tree: ast.AST, old: ast.AST, new: ast.AST) -> ast.AST:
    """A copy of the tree with one node changed; the tree itself stays as it was."""

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            if node is old:
                return new
            lists = {name: list(value) for name, value in ast.iter_fields(node) if isinstance(value, list)}
            return self.generic_visit(_with(node, **lists))

    return ast.fix_missing_locations(Replace().visit(tree))
