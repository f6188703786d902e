"""The house keeps its shape: imports run one way, files stay readable, nothing is pickled, tests mirror the packages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "rlhf").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PYTHON = [*SOURCES, *TESTS, *sorted((ROOT / "benchmarks").rglob("*.py"))]
# Folders of tests that belong to no package of rlhf.
BESIDE = {"benchmarks", "golden", "journey", "mutants", "parity", "smoke", "vllm"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_run_one_way() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]


def test_a_file_has_at_most_300_lines() -> None:
    assert {name(p): n for p in PYTHON if (n := len(p.read_text().splitlines())) > 300} == {}


def test_imports_are_absolute() -> None:
    relative = {
        name(path): node.lineno
        for path in PYTHON
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert relative == {}


def test_every_module_says_what_it_is() -> None:
    """An `__init__.py` of tests may be empty; every other module has a docstring."""
    silent = [
        name(path)
        for path in PYTHON
        if ast.get_docstring(ast.parse(path.read_text())) is None and (path in SOURCES or path.read_text())
    ]
    assert silent == []


def test_the_tests_mirror_the_packages() -> None:
    packages = {
        path.parent.name for path in SOURCES if path.name == "__init__.py" and path.parent.parent.name == "rlhf"
    }
    folders = {path.parent.name for path in TESTS if path.parent.parent == ROOT / "tests"}
    assert folders - packages <= BESIDE


def test_no_pickle() -> None:
    unsafe = re.compile(
        r"torch\.(save|load)\(|import pickle|\bpickle\.(load|dump)|weights_only|trust_remote_code\s*=\s*True"
    )
    assert [name(p) for p in SOURCES if unsafe.search(p.read_text())] == []
