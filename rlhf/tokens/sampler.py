"""Which rows go into which microbatch of which optimizer step, on which rank: a pure function of (seed, epoch, step).

Stands between `dataset` (segments) and the training loop. An epoch is one permutation of the rows. An optimizer step takes the
next *window* of it, and the window is shared among ranks and accumulation steps. This has three effects. The rows of step k do not
depend on the number of processes or accumulation steps. Every row is used exactly once in an epoch (the last window is smaller,
and nothing is dropped). A resumed run asks for window(k) and does not read what came before.

A *slot* is one microbatch on one rank. A window's rows fill its slots as evenly as possible, across the ranks first. If the epoch's
last window has fewer rows than slots, a rank may have an empty microbatch; the loop must still take part in the gradient sync
there. A microbatch that would be empty on every rank is left out. Every rank always has the same number of microbatches.

With a token budget (`max_tokens`), rows are packed in order until the next one would go over the budget. `batch_size` is then not
used, and the number of steps may differ a little between epochs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Sampler:
    """The batch plan over `lengths`: one number for each row, `Segment.num_tokens`."""

    lengths: Sequence[int] | Ints
    batch_size: int = 1
    max_tokens: int | None = None
    seed: int = 0
    shuffle: bool = True
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1
    _starts: list[int] = field(default_factory=lambda: [0], init=False, repr=False)  # first step of each known epoch
    _cached: tuple[int, Ints, Ints] | None = field(default=None, init=False, repr=False)  # epoch, order, batch starts

    def __post_init__(self) -> None:
        if not len(self.lengths):
            raise ValueError("a sampler needs at least one row")
        if min(self.batch_size, self.world_size, self.accumulation, self.max_tokens or 1) < 1:
            raise ValueError("batch_size, max_tokens, world_size and accumulation must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is outside a world of {self.world_size}")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in the first epoch (in every epoch, without a token budget)."""
        return self.steps_in(0)

    def steps_in(self, epoch: int) -> int:
        """Optimizer steps in one epoch."""
        if self.max_tokens is None:
            return math.ceil(len(self.lengths) / (self.batch_size * self._slots))
        return math.ceil((len(self._plan(epoch)[1]) - 1) / self._slots)

    def total_steps(self, num_train_epochs: float) -> int:
        """Optimizer steps in so many epochs. A part of an epoch is rounded up to a whole step."""
        whole = int(num_train_epochs)
        part = num_train_epochs - whole
        return self._start_of(whole) + (math.ceil(part * self.steps_in(whole)) if part else 0)

    def epoch_of(self, step: int) -> int:
        """The epoch that optimizer step `step` (from 0) belongs to."""
        if self.max_tokens is None:
            return step // self.steps_in(0)
        while self._starts[-1] <= step:
            self._start_of(len(self._starts))
        return bisect_right(self._starts, step) - 1

    def window(self, step: int) -> list[list[int]]:
        """This rank's microbatches of optimizer step `step` (from 0), as lists of row indices. A list may be empty."""
        if step < 0:
            raise ValueError("steps count from 0")
        epoch = self.epoch_of(step)
        order, starts = self._plan(epoch)
        window = step - self._start_of(epoch)
        if self.max_tokens is None:
            size = self.batch_size * self._slots
            slots = _deal(order[window * size : (window + 1) * size].tolist(), self._slots)
        else:
            cuts = starts[window * self._slots : (window + 1) * self._slots + 1].tolist()
            slots = [order[a:b].tolist() for a, b in pairwise(cuts)]
        return _even(slots, self.world_size)[self.rank :: self.world_size]

    @property
    def _slots(self) -> int:
        return self.world_size * self.accumulation

    def _start_of(self, epoch: int) -> int:
        if self.max_tokens is None:
            return epoch * self.steps_in(0)
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + self.steps_in(len(self._starts) - 1))
        return self._starts[epoch]

    def _plan(self, epoch: int) -> tuple[Ints, Ints]:
        """An epoch's order of rows; with a token budget also where in it each batch starts, and the end."""
        if self._cached is None or self._cached[0] != epoch:
            n = len(self.lengths)
            order = np.random.default_rng([self.seed, epoch]).permutation(n) if self.shuffle else np.arange(n)
            lengths = np.asarray(self.lengths)
            starts = _pack(lengths[order], self.max_tokens) if self.max_tokens else np.empty(0, dtype=np.int64)
            self._cached = epoch, order, starts
        return self._cached[1:]


def _deal(rows: list[int], slots: int) -> list[list[int]]:
    """Consecutive rows for each slot. Sizes differ by one at most. Empty slots at the end are left out."""
    small, larger = divmod(len(rows), slots)
    sizes = [small + 1] * larger + [small] * (slots - larger)
    ends = np.cumsum(sizes).tolist()
    return [rows[end - size : end] for size, end in zip(sizes, ends, strict=True) if size]


def _pack(lengths: Ints, budget: int) -> Ints:
    """Where the batches start, and where the last one ends. A new batch starts when the next row would go over the budget.

    A row that is over the budget alone is a batch of its own.
    """
    ends = np.cumsum(lengths)
    starts = [0]
    while starts[-1] < len(lengths):
        before = ends[starts[-1] - 1] if starts[-1] else 0
        starts.append(max(int(np.searchsorted(ends, before + budget, side="right")), starts[-1] + 1))
    return np.array(starts)


def _even(slots: list[list[int]], world_size: int) -> list[list[int]]:
    """The same number of slots on every rank: empty ones complete the last microbatch."""
    return slots + [[] for _ in range(-len(slots) % world_size)]
