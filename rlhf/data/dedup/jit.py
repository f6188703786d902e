"""Numba's compiler, set up for this package: compiled once, cached on disk for as long as no kernel changes.

Numba's own cache looks at a function's own file only, so a kernel that calls a changed one in another file would stay as it
was. Here the cache folder is named by a digest of all kernel sources. It is $RLHF_CACHE/numba, so a read-only installation
works; where that cannot be written either, kernels are compiled anew in each process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

from rlhf.runs.cache import root

KERNELS = ("jit.py", "sketch.py", "chars.py", "kernels.py", "similarity.py", "index.py", "greedy.py")

# What kernels pass around: to the type checker, Python's numbers and NumPy's alike.
Int = int | np.integer[Any]
Bool = bool | np.bool_

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def jit(function: _Kernel) -> _Kernel:
    """`numba.njit` with the package's cache, and without reference counting: no kernel allocates, and it cost a tenth."""
    njit, config = cast(Any, numba.njit), cast(Any, numba.config)
    before = config.CACHE_DIR
    config.CACHE_DIR = str(_folder())
    try:
        return cast(_Kernel, njit(function, cache=True, _nrt=False))
    except (OSError, RuntimeError):  # no folder can be written
        return cast(_Kernel, njit(function, _nrt=False))
    finally:
        config.CACHE_DIR = before


def _folder() -> Path:
    sources = [(Path(__file__).parent / name).read_bytes() for name in KERNELS]
    return root() / "numba" / hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]
