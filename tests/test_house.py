"""The house keeps its shape: imports run one way, files stay readable, nothing is pickled."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "rlhf").rglob("*.py"))


def test_imports_run_one_way() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]


def test_a_source_file_has_at_most_300_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 300}
    assert long == {}


def test_no_pickle() -> None:
    unsafe = re.compile(
        r"torch\.(save|load)\(|import pickle|\bpickle\.(load|dump)|weights_only|trust_remote_code\s*=\s*True"
    )
    found = [str(p.relative_to(ROOT)) for p in SOURCES if unsafe.search(p.read_text())]
    assert found == []
