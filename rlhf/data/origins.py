"""Where rows came from, kept in little memory, for messages and reports.

`OnDemand` is the ground for sequences whose items are made only when they are read, here and in `rlhf.tokens.store`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

import numpy as np

from rlhf.data.rows import Located

T = TypeVar("T")
Numbers = Sequence[int] | np.ndarray


class OnDemand(Sequence[T]):
    """A sequence that makes item i when it is read. A subclass says how many items there are, and makes one."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        found = range(len(self))[index]
        return [self._at(i) for i in found] if isinstance(found, range) else self._at(found)

    @abstractmethod
    def _at(self, index: int) -> T:
        """Item `index`, 0 <= index < len(self)."""


class Origins(OnDemand[Located]):
    """The file and row of each of N rows, as rows without data. `file_of` [N] is an index into `files`; `row_of` is [N]."""

    def __init__(self, files: Sequence[str] = (), file_of: Numbers = (), row_of: Numbers = ()) -> None:
        self._files, self._file_of, self._row_of = files, file_of, row_of

    def __len__(self) -> int:
        return len(self._row_of)

    def _at(self, index: int) -> Located:
        return Located(self._files[int(self._file_of[index])], int(self._row_of[index]), {})
