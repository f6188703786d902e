"""What an engine returns: which texts go, and the witness of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, order=True)
class Removal:
    """Text `index` goes, because the text `witness` stays. `similarity` is the engine's own, `jaccard` is exact."""

    index: int
    witness: int
    similarity: float
    jaccard: float


@dataclass(frozen=True)
class Removals:
    """M removals, sorted by `index`: index and witness int64 [M], similarity and jaccard float64 [M]."""

    index: NDArray[np.int64]
    witness: NDArray[np.int64]
    similarity: NDArray[np.float64]
    jaccard: NDArray[np.float64]

    @classmethod
    def of(cls, removals: Iterable[Removal]) -> Removals:
        """From single removals in any order."""
        rows = np.array([(r.index, r.witness, r.similarity, r.jaccard) for r in sorted(removals)]).reshape(-1, 4)
        index, witness = rows[:, :2].astype(np.int64).T  # float64 holds them exactly
        return cls(index, witness, rows[:, 2], rows[:, 3])

    @classmethod
    def confirmed(cls, witness: NDArray[np.int64], jaccard: NDArray[np.float64]) -> Removals:
        """From a witness (-1: stays) and an exact similarity for each of N texts."""
        index = np.flatnonzero(witness >= 0)
        found = jaccard[index]
        return cls(index, witness[index], found, found)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Removal]:
        columns = (self.index, self.witness, self.similarity, self.jaccard)
        return (Removal(*row) for row in zip(*(c.tolist() for c in columns), strict=True))
