"""`kill -9` at random moments of a real build: every row once, and nothing that was journalled asked for again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.data.support import lines
from tests.synthesis.server import Asked, serving
from tests.synthesis.support import fence, read

ROOT = Path(__file__).parents[2]
ROWS = 60


def answer(prompt: str) -> str:
    if "<answer_A" not in prompt:
        return f"{prompt} answered at some length {'x' * (len(prompt) % 7)}"
    a, b = (fence(prompt, f"answer_{side}") for side in "AB")
    return f"Because.\nVerdict: {'A' if a[::-1] > b[::-1] else 'B'}"


def write_recipe(folder: Path, out: str, source: str, url: str) -> Path:
    engine = {"engine": "openai", "base_url": url, "model": "m", "concurrency": 4}
    members = [{"engine": "m", "system": "One."}, {"engine": "m", "system": "Two."}]
    steps = [{"pool": {"members": members, "per_prompt": 1}}, {"judge": {"engine": "m"}}, {"select": {}}]
    recipe = {
        "method": "data",
        "output_dir": str(folder / out),
        "engines": {"m": engine},
        "sources": source,
        "steps": steps,
    }
    path = folder / f"{out}.yaml"
    path.write_text(json.dumps(recipe))
    return path


class Zygote:
    """Builds in forks of one process; `start` gives the pid, `wait` the exit code."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("w")
        command = [sys.executable, "-m", "tests.synthesis.zygote"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log, "text": True}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        assert self._read() == "ready"

    def start(self, recipe: Path) -> int:
        assert self._process.stdin is not None
        print(recipe, file=self._process.stdin, flush=True)
        return int(self._read())

    def wait(self) -> int:
        return int(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._log.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def zygote(log: Path) -> Iterator[Zygote]:
    process = Zygote(log)
    try:
        yield process
    finally:
        process.close()


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for it, but not for ever."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.002)


def journalled(out: Path) -> Counter[str]:
    """The keys whose whole line is in a journal, by how often."""
    found: Counter[str] = Counter()
    for path in (out / "journal").glob("step-*.jsonl"):
        for line in path.read_bytes().split(b"\n")[1:-1]:
            found[f"{path.name} {json.loads(line)['key']}"] += 1
    return found


@pytest.mark.parametrize(("times", "rows"), [(8, 40), pytest.param(50, 200, marks=pytest.mark.slow)])
def test_killed_again_and_again(tmp_path: Path, times: int, rows: int) -> None:
    source = lines(tmp_path / "rows.jsonl", [{"prompt": f"prompt {i}", "completion": f"own {i}"} for i in range(rows)])
    draws = random.Random(11)
    with serving(answer, 0.004) as server, zygote(tmp_path / "log.txt") as builds:
        whole = write_recipe(tmp_path, "whole", source, server.url)
        builds.start(whole)
        assert builds.wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
        expected = read(tmp_path / "whole")
        once = server.asked.copy()
        assert sum(once.values()) == rows * 3

        server.asked.clear()
        server.seconds = 0.03
        killed = write_recipe(tmp_path, "killed", source, server.url)
        before: Counter[str] = Counter()
        grew = kills = 0
        while kills < times:
            asked_before = server.asked.total()
            pid = builds.start(killed)
            if kills % 3:  # at a random moment of the asking; else at any moment, the start and the end too
                until(lambda: server.asked.total() > asked_before)  # noqa: B023
            time.sleep(draws.uniform(0.0, 0.25))
            with suppress(ProcessLookupError):  # it was done before
                os.kill(pid, signal.SIGKILL)
            code = builds.wait()
            assert code in (0, -signal.SIGKILL), (tmp_path / "log.txt").read_text()[-3000:]
            kills += code != 0
            now = journalled(tmp_path / "killed")
            assert not before - now  # nothing that was there is lost
            grew += now != before
            before = now
            if sum(now.values()) > rows * 2:  # nearly done: slower, so that the kills fall into the work
                server.seconds = 0.1
        server.seconds = 0.0
        builds.start(killed)
        assert builds.wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
        time.sleep(0.2)  # what a killed build had sent is still being answered
        asked = server.asked.copy()

    assert grew >= times // 3  # the kills did fall into the work
    assert read(tmp_path / "killed") == expected
    keys = journalled(tmp_path / "killed")
    assert len(keys) == rows * 3
    assert set(keys.values()) == {1}
    assert set(asked) == set(once)
    # asked more often than once was only what a kill took from the wire: at most `concurrency` a kill
    assert sum(asked.values()) - sum(once.values()) <= times * 4
    assert not [path for path in (tmp_path / "killed").iterdir() if path.name.startswith(".build")]


def killed_at_work(builds: Zygote, recipe: Path, server: Asked) -> None:
    before = server.asked.total()
    pid = builds.start(recipe)
    until(lambda: server.asked.total() > before)
    time.sleep(0.15)
    os.kill(pid, signal.SIGKILL)
    assert builds.wait() == -signal.SIGKILL


def test_what_is_journalled_is_not_asked_again(tmp_path: Path) -> None:
    """Between two kills: the prompts of journalled answers are never sent again, by name."""
    source = lines(tmp_path / "rows.jsonl", [{"prompt": f"prompt {i}", "completion": f"own {i}"} for i in range(ROWS)])
    with serving(answer, 0.05) as server, zygote(tmp_path / "log.txt") as builds:
        recipe = write_recipe(tmp_path, "out", source, server.url)
        for _ in range(3):
            killed_at_work(builds, recipe, server)
            time.sleep(0.2)
            texts = []
            for line in (tmp_path / "out/journal/step-1.jsonl").read_bytes().split(b"\n")[1:-1]:
                texts.append(json.loads(line)["texts"][0])
            known = {prompt for prompt in server.asked if answer(prompt) in texts}
            assert len(known) == len(texts)
            held = {prompt: server.asked[prompt] for prompt in known}
            killed_at_work(builds, recipe, server)
            assert {prompt: server.asked[prompt] for prompt in known} == held
        assert len(known) > 10
