"""Numba's compiler, set up for this package: compiled once, cached on disk for as long as no kernel changes.

Numba's own cache looks at a function's own file only, so a kernel that calls a changed one in another file would stay as it
was. Here the cache folder is named by a digest of all kernel sources. It is $RLHF_CACHE/numba, so a read-only installation
works; where that cannot be written either, kernels are compiled anew in each process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from rlhf.cache import root

KERNELS = ("jit.py", "sketch.py", "chars.py", "kernels.py", "similarity.py", "index.py", "greedy.py")


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit` with the package's cache."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_folder())
    try:
        return numba.njit(cache=True)(function)  # type: ignore[no-any-return]
    except (OSError, RuntimeError):  # no folder can be written
        return numba.njit(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = before


def _folder() -> Path:
    sources = [(Path(__file__).parent / name).read_bytes() for name in KERNELS]
    return root() / "numba" / hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]
