"""`import rlhf.data` costs nothing, and reading rows needs neither torch nor transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("rlhf.data", ("torch", "transformers", "datasets", "pyarrow", "numpy")),
        ("rlhf.data.load", ("torch", "transformers", "datasets", "pyarrow")),
        ("rlhf.data.build", ("torch", "transformers", "datasets", "datasketch")),
    ],
)
def test_what_an_import_brings(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
