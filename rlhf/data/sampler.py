"""Which rows go into which microbatch of which optimizer step, on which rank: a pure function of (seed, epoch, step).

Stands between `dataset` (segments) and the training loop. An epoch is one permutation of the rows; an optimizer step
takes the next *window* of it and deals the window out over ranks and accumulation steps. So the rows of step k do not
depend on how many processes or accumulation steps share the work, every row is used exactly once per epoch (the last
window is smaller, nothing is dropped), and a resumed run asks for window(k) without reading what came before.

Dealing: a window of W rows fills its slots as evenly as it can, across the ranks first. A rank may therefore hold an
empty microbatch in the epoch's last window (fewer rows than slots): the loop must still take part in the gradient sync
there. Microbatches that would be empty on every rank are left out; every rank always gets the same number of them.

With a token budget (`max_tokens`) rows are packed in order until the next would go over the budget, `batch_size` is
not used, and an epoch's number of steps may differ a little from the next one's.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Sampler:
    """The batch plan over `lengths` (one token count a row, `Segment.num_tokens`)."""

    lengths: Sequence[int]
    batch_size: int = 1
    max_tokens: int | None = None
    seed: int = 0
    shuffle: bool = True
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1
    _starts: list[int] = field(default_factory=lambda: [0], init=False, repr=False)  # first step of each known epoch
    _cached: tuple[int, list[list[list[int]]]] | None = field(default=None, init=False, repr=False)

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
        return len(self._plan(epoch))

    def total_steps(self, num_train_epochs: float) -> int:
        """Optimizer steps in so many epochs; a part of an epoch rounds up to a whole step."""
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
        """This rank's microbatches of optimizer step `step` (from 0): row indices, possibly none in a microbatch."""
        if step < 0:
            raise ValueError("steps count from 0")
        epoch = self.epoch_of(step)
        slots = self._plan(epoch)[step - self._start_of(epoch)]
        return slots[self.rank :: self.world_size]

    @property
    def _slots(self) -> int:
        return self.world_size * self.accumulation

    def _start_of(self, epoch: int) -> int:
        if self.max_tokens is None:
            return epoch * self.steps_in(0)
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + self.steps_in(len(self._starts) - 1))
        return self._starts[epoch]

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.lengths)))
        order: list[int] = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths)).tolist()
        return order

    def _plan(self, epoch: int) -> list[list[list[int]]]:
        """All of an epoch's windows, each as its slots in the order (microbatch, rank)."""
        if self._cached is None or self._cached[0] != epoch:
            order = self._order(epoch)
            if self.max_tokens is None:
                size = self.batch_size * self._slots
                windows = [_deal(order[i : i + size], self._slots) for i in range(0, len(order), size)]
            else:
                batches = _pack(order, self.lengths, self.max_tokens)
                windows = [batches[i : i + self._slots] for i in range(0, len(batches), self._slots)]
            self._cached = epoch, [_even(slots, self.world_size) for slots in windows]
        return self._cached[1]


def _deal(rows: list[int], slots: int) -> list[list[int]]:
    """Consecutive runs of rows, one a slot, their sizes within one of each other; empty ones at the end left out."""
    small, larger = divmod(len(rows), slots)
    sizes = [small + 1] * larger + [small] * (slots - larger)
    ends = np.cumsum(sizes).tolist()
    return [rows[end - size : end] for size, end in zip(sizes, ends, strict=True) if size]


def _pack(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows in order, a new batch whenever the next row would go over the budget; a row over it goes alone."""
    batches: list[list[int]] = []
    room = -1  # the first row opens the first batch
    for row in order:
        if lengths[row] > room:
            batches.append([])
            room = budget
        batches[-1].append(row)
        room -= lengths[row]
    return batches


def _even(slots: list[list[int]], world_size: int) -> list[list[int]]:
    """As many slots on every rank: empty ones fill up the last microbatch."""
    return slots + [[] for _ in range(-len(slots) % world_size)]
