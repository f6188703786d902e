"""Can a `module:function` of a recipe be called? Its source is read, and none of it is run."""

from __future__ import annotations

import ast
import difflib
import importlib.machinery
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def problem_with_callable(spec: str) -> str | None:
    """Why `module:function` or `file.py:function` cannot be imported and called, or None."""
    module, _, function = spec.rpartition(":")
    if module.endswith(".py"):
        if not Path(module).is_file():
            return f"no such file: {module}"
        file: str | None = module
    else:
        file, problem = _source_file(module)
        if problem:
            return problem
    names = _top_level_names(file)
    if names is None or names.get(function):
        return None
    if function in names:
        return f"{spec} is not a function"
    near = difflib.get_close_matches(function, [name for name, callable_ in names.items() if callable_], n=1)
    return f"{module} has no {function!r}" + (f"; did you mean '{module}:{near[0]}'?" if near else "")


def _source_file(module: str) -> tuple[str | None, str | None]:
    """(the module's file, None), or (None, why there is none). A module without a Python file has neither."""
    search: list[str] | None = [os.getcwd(), *sys.path]
    found: importlib.machinery.ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        try:
            found = importlib.machinery.PathFinder.find_spec(name, search) if search is not None else None
        except KeyError:  # a folder without __init__.py in another: only importing the outer one could tell
            return None, None
        if found is None and not (depth == 1 and name in sys.builtin_module_names):
            return None, f"no module named {name!r} (looked in this folder and in the installed packages)"
        search = list(found.submodule_search_locations or []) if found and found.submodule_search_locations else None
    return (found.origin if found is not None else None), None


def _top_level_names(file: str | None) -> dict[str, bool] | None:
    """The names that a Python file defines, and whether each can be called; None where the text cannot tell."""
    if file is None or not file.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    names: dict[str, bool] = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = True
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update({(alias.asname or alias.name).split(".")[0]: True for alias in node.names})
        else:
            value = getattr(node, "value", None)
            literal = isinstance(value, ast.Constant | ast.List | ast.Dict | ast.Set | ast.Tuple | ast.JoinedStr)
            targets = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
            names.update({name.id: not literal for name in targets if isinstance(name.ctx, ast.Store)})
    return None if "*" in names or "__getattr__" in names else names


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when the file is imported, also those inside `if`, `try` and `with`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(statement, field, []))
        for handler in getattr(statement, "handlers", []):
            yield from _statements(handler.body)
