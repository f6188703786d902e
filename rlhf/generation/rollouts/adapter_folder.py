"""Where the policy's adapter lies for an engine to read it: in shared memory where that is possible, and gone after the run.

A new folder for each sync, because an engine may remember what it has read under a name. The names are those of one run
folder, so that what a killed run left is found and removed when the run goes on.
"""

from __future__ import annotations

import os
import shutil
import uuid
import weakref
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from rlhf.models.one_adapter import adapter_state, write_adapter
from rlhf.models.policy import Policy
from rlhf.runs.identity import digest

MEMORY = Path("/dev/shm")
ROOM = 2  # of the adapter's size: the old one goes only when the new one is there
_OVERHEAD = 2**16  # bytes for the config and the names of the weights


class AdapterFolder:
    """The adapter's folders of one run and rank. `prefix` begins the names of all that this run folder ever makes."""

    def __init__(self, output_dir: Path, rank: int, *, in_memory: bool) -> None:
        """`in_memory`: the engine reads this machine's shared memory. What a killed run left is removed."""
        self.prefix = f"rlhf-{digest(str(output_dir.resolve()))[:12]}"
        self._name = f"{self.prefix}-{rank}"
        self._roots = [MEMORY / self._name] if in_memory and os.access(MEMORY, os.W_OK) else []
        self._roots.append(output_dir.resolve() / "rollouts" / self._name)
        self._run = uuid.uuid4().hex[:8]  # a server may still know the names of a killed run
        self._written = 0
        self._latest: Path | None = None
        _remove_all(self._roots)
        if rank == 0:  # by more processes than there are now
            for place in (MEMORY, self._roots[-1].parent):
                _remove_all(list(place.glob(f"{self.prefix}-*")))
        self._at_exit = weakref.finalize(self, _remove_all, self._roots)

    def write(self, policy: Policy) -> Path:
        """The policy's adapter in a new folder; its name is unlike any before it. The one before is removed."""
        state = adapter_state(policy.model)
        before, self._written = self._latest, self._written + 1
        folder = self._root_for(state) / f"{self._name}-{self._run}-{self._written}"
        write_adapter(policy.model, state, folder)
        self._latest = folder
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
        return folder

    def close(self) -> None:
        """Remove all that was written."""
        self._at_exit()

    def _root_for(self, state: dict[str, Tensor]) -> Path:
        """Shared memory if the adapter fits in it twice, else the run's folder."""
        needed = ROOM * (sum(weight.nbytes for weight in state.values()) + _OVERHEAD)
        first = self._roots[0]
        return first if len(self._roots) == 1 or shutil.disk_usage(MEMORY).free > needed else self._roots[-1]


def _remove_all(roots: list[Path]) -> None:
    for root in roots:
        shutil.rmtree(root, ignore_errors=True)
        if root.parent.name == "rollouts":
            with suppress(OSError):  # not there, or another rank's adapter is in it
                root.parent.rmdir()
