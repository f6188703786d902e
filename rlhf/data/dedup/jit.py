"""Numba's compiler, set up for this package: kernels are compiled once, and cached on disk until one of them changes.

Numba's own cache looks only at the file of a function. If a kernel calls another one in a changed file, it would not be compiled again. So
the cache folder's name is a digest of all kernel sources. It is below $RLHF_CACHE/numba, so the installation may be read-only. If that
folder cannot be written, kernels are compiled in each process.
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

# The numbers of the kernels, for the type checker: Python's and NumPy's.
Int = int | np.integer[Any]
Bool = bool | np.bool_

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def jit(function: _Kernel) -> _Kernel:
    """`numba.njit` with the package's cache, and without reference counting: it cost a tenth of the time, and no kernel allocates memory."""
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
