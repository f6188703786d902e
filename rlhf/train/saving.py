"""After which steps a run writes a checkpoint: every so many steps, or every so many minutes.

By time, a crash costs ten minutes whatever a step takes. Each process has its own clock, and all of them take part in a
save: so rank 0 decides, and the others learn it from one number a step. A save changes nothing in the training, so two
runs that save at different steps are the same run.
"""

from __future__ import annotations

from time import monotonic

import torch
from accelerate import Accelerator

from rlhf.recipe.sections import CheckpointSection


class SaveTimes:
    """Asked after every step. `saved`: the run goes on from a checkpoint."""

    def __init__(self, section: CheckpointSection, accelerator: Accelerator, *, saved: bool) -> None:
        self._steps, self._minutes = section.save_steps, section.save_minutes
        self._accelerator = accelerator
        self._saved = saved
        self._since = monotonic()

    def due(self, steps: int, *, last: bool) -> bool:
        """Whether to save after so many finished steps; the same on every rank.

        Counted in steps, the last step is always saved; in minutes, where a checkpoint was written before. A run that is
        shorter leaves its `final/` alone.
        """
        if self._steps is not None:
            return last or steps % self._steps == 0
        if self._minutes is None:
            return False
        due = self._late() or (last and self._saved)
        if due:
            self._saved, self._since = True, monotonic()
        return due

    def _late(self) -> bool:
        """Whether the time is up by rank 0's clock."""
        assert self._minutes is not None
        mine = self._accelerator.is_main_process and monotonic() - self._since >= 60 * self._minutes
        if self._accelerator.num_processes == 1:
            return mine
        vote = torch.tensor(float(mine), device=self._accelerator.device)
        return bool(self._accelerator.reduce(vote, "sum") > 0)
