"""Run the tests that concern a mutant, each mutant in a forked process of its own.

The parent imports the slow packages (torch, transformers) once and no module of rlhf; a child puts the changed source in
the place of the module, runs pytest in its own process and ends at the first failure. So a mutant costs about as much as
its tests, and not a second start of torch.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from tests.mutants.operators import Mutant

HEAVY = ("torch", "numpy", "hypothesis", "pytest", "pyarrow", "pydantic", "transformers", "transformers.models.llama",
         "tokenizers", "_pytest.assertion.rewrite", "scipy")  # fmt: skip
KILLED, SURVIVED, TIMEOUT = "killed", "survived", "killed (too slow)"


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the mutant's source in place of the file's."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.module = mutant.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return (
            importlib.machinery.ModuleSpec(fullname, self, origin=self.mutant.path) if fullname == self.module else None
        )

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(Path(self.mutant.path).resolve())
        exec(compile(self.mutant.source, self.mutant.path, "exec"), module.__dict__)


def preload() -> None:
    """Import what every child needs. Must import nothing of rlhf, or a child would test the code as it is."""
    for name in HEAVY:
        __import__(name)
    early = [name for name in sys.modules if name.split(".")[0] == "rlhf"]
    if early:
        raise RuntimeError(f"imported before the mutants: {early}")


def outcomes(
    mutants: Sequence[tuple[Mutant, list[str]]], *, processes: int, limit: float
) -> Iterator[tuple[Mutant, str, float]]:
    """Each mutant with what became of it, in the order in which they end. `limit`: seconds a mutant may take."""
    waiting = list(mutants)[::-1]
    running: dict[int, tuple[Mutant, float]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            mutant, tests = waiting.pop()
            running[_start(mutant, tests)] = mutant, time.monotonic()
        time.sleep(0.02)
        for pid, (mutant, began) in list(running.items()):
            seconds = time.monotonic() - began
            if seconds > limit:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, 0 if seconds > limit else os.WNOHANG)
            if done:
                del running[pid]
                yield mutant, _word(mutant, status), seconds


def _word(mutant: Mutant, status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code in (4, 5):  # pytest: a wrong command line, no tests
        raise RuntimeError(f"no test ran for {mutant.path}")
    return SURVIVED if code == 0 else TIMEOUT if code == -signal.SIGKILL else KILLED


def _start(mutant: Mutant, tests: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        sys.meta_path.insert(0, _Changed(mutant))
        import hypothesis
        import pytest

        # A failure is enough: nothing is gained by looking for the smallest example of it.
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", phases=phases, database=None, deadline=None)

        code = pytest.main(
            [*tests, "-x", "-q", "-n0", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--hypothesis-profile=mutants"]
        )
        os._exit(int(code))
    except BaseException:
        os._exit(3)
