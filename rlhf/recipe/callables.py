"""The functions that a recipe names: `module:function`, or `./file.py:function` for a file beside the recipes.

`rlhf check` asks `why_missing`, which reads the source and runs none of it; a run asks `import_callable`. Imports nothing heavy.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf.errors import RecipeError, first_line


def import_callable(spec: str) -> Callable[..., Any]:
    """The function that `spec` names; a module is looked for in the working folder too. Raises RecipeError."""
    name = spec.partition(":")[2]
    function = getattr(import_module(spec), name, None)
    if function is None:
        raise RecipeError(f"callable: cannot import {spec}: {why_missing(spec) or f'it has no {name!r}'}")
    if not callable(function):
        raise RecipeError(f"callable: {spec} is not a function")
    return function  # type: ignore[no-any-return]


def import_module(spec: str) -> ModuleType:
    """The module of `spec`, imported once. Raises RecipeError, with the line of the user's file that failed."""
    target = spec.partition(":")[0]
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return _import_file(target) if target.endswith(".py") else importlib.import_module(target)
    except Exception as error:  # a user's own code may raise anything
        raise RecipeError(f"callable: cannot import {spec}: {describe(error)}") from error


def describe(error: Exception) -> str:
    """`file:line: ErrorType: message`, for an error that user code raised below the function that caught it.

    The place is the deepest line in the first file that is neither ours nor Python's import system.
    """
    said = first_line(error)
    reason = said if said == type(error).__name__ else f"{type(error).__name__}: {said}"
    frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if not f.filename.startswith("<frozen")]
    theirs = [f for f in frames if f.filename not in (__file__, importlib.__file__)]
    if not theirs:
        return reason
    last = [f for f in theirs if f.filename == theirs[0].filename][-1]
    return f"{last.filename}:{last.lineno}: {reason}"


def why_missing(spec: str) -> str | None:
    """Why `spec` cannot be imported and called, or None where nothing speaks against it."""
    target, _, function = spec.partition(":")
    file, reason = _find(target)
    if reason is not None:
        return reason
    try:
        names = _top_level_names(file)
    except SyntaxError as error:
        return f"{file}:{error.lineno}: not valid Python: {error.msg}"
    if names is None or names.get(function):
        return None
    if function in names:
        return f"{spec} is not a function"
    near = difflib.get_close_matches(function, [name for name, called in names.items() if called], n=1)
    return f"{target} has no {function!r}" + (f"; did you mean '{target}:{near[0]}'?" if near else "")


def definition_of(spec: str) -> ast.FunctionDef | None:
    """The function as it is written at the top level of its file, which is not run; None where it is not written there so."""
    target, _, function = spec.partition(":")
    file, _ = _find(target)
    if file is None or file.suffix != ".py":
        return None
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return None
    found = [node for node in _statements(tree.body) if getattr(node, "name", None) == function]
    return found[0] if len(found) == 1 and isinstance(found[0], ast.FunctionDef) else None


def source_of(spec: str) -> Path | None:
    """The file that holds the module of `spec`, found without running it; None for a module that is not a file."""
    return _find(spec.partition(":")[0])[0]


def _import_file(target: str) -> ModuleType:
    path = Path(target).expanduser().resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"  # two files may have one name
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {target}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # the file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find(target: str) -> tuple[Path | None, str | None]:
    """(the file of a module, why it cannot be imported); neither for a module that is built in or only a folder."""
    if target.endswith(".py"):
        file = Path(target).expanduser()
        return (file, None) if file.is_file() else (None, f"no such file: {target}")
    if target in sys.builtin_module_names:
        return None, None
    search: list[str] = [os.getcwd(), *sys.path]
    found: importlib.machinery.ModuleSpec | None = None
    parts = target.split(".")
    for depth, part in enumerate(parts, 1):
        found = importlib.machinery.PathFinder.find_spec(part, search) if search else None
        if found is None:
            name = ".".join(parts[:depth])
            return None, f"no module named {name!r} (looked in this folder and in the installed packages)"
        search = list(found.submodule_search_locations or [])
    return (Path(found.origin) if found is not None and found.origin else None), None


def _top_level_names(file: Path | None) -> dict[str, bool] | None:
    """The names that a Python file defines, and whether each can be called; None where the text cannot tell.

    Raises SyntaxError for a file that is not Python.
    """
    if file is None or file.suffix != ".py":
        return None
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError):
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
