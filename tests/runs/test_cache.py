"""The cache: made once, by one process; whole or made again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import SetupError
from rlhf.runs import cache


class Maker:
    """Writes two files and counts how often it was asked to."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, folder: Path) -> None:
        self.made += 1
        (folder / "part").mkdir()
        (folder / "part" / "rows.txt").write_text("some rows")
        (folder / "weights.bin").write_bytes(bytes(range(100)))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    return Maker()


def flip(path: Path) -> None:
    """Another byte, the same size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_folder_is_made_once_and_then_found(make: Maker, tmp_path: Path) -> None:
    first, second = cache.folder("thing", "1", make), cache.folder("thing", "1", make)
    assert first == second == tmp_path / "cache" / "thing"
    assert (first / "part" / "rows.txt").read_text() == "some rows"
    assert make.made == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: flip(folder / "weights.bin"), "weights.bin is damaged"),
        (lambda folder: (folder / "weights.bin").write_bytes(b"short"), "weights.bin has 5 bytes, not 100"),
        (lambda folder: (folder / "part" / "rows.txt").unlink(), "rows.txt is missing"),
        (lambda folder: (folder / cache.MANIFEST).write_text("{"), "cannot be read"),
        (lambda folder: (folder / cache.MANIFEST).unlink(), "manifest.json is missing"),
    ],
)
def test_damage_is_said_and_mended(make: Maker, capsys: pytest.CaptureFixture[str], damage, said: str) -> None:
    folder = cache.folder("thing", "1", make)
    damage(folder)
    capsys.readouterr()
    again = cache.folder("thing", "1", make)
    assert make.made == 2
    assert said in capsys.readouterr().err
    assert (again / "weights.bin").read_bytes() == bytes(range(100))
    assert cache.folder("thing", "1", make) == again and make.made == 2


def test_damage_from_before_this_process_is_found_too(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(cache.folder("thing", "1", make) / "weights.bin")
    monkeypatch.setattr(cache, "_checked", {})
    cache.folder("thing", "1", make)
    assert make.made == 2


def test_another_version_is_made_again(make: Maker) -> None:
    cache.folder("thing", "1", make)
    cache.folder("thing", "2", make)
    cache.folder("thing", "2", make)
    assert make.made == 2


def test_a_failure_half_way_leaves_nothing_under_the_name(make: Maker, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cache.folder("thing", "1", fail)
    assert not (tmp_path / "cache" / "thing").exists()
    assert (cache.folder("thing", "1", make) / "weights.bin").stat().st_size == 100


def test_a_cache_that_cannot_be_written_says_what_to_set(make: Maker, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder belongs")
    with pytest.raises(SetupError, match="RLHF_CACHE"):
        cache.folder("thing", "1", make)


PROGRAM = """
import time
from pathlib import Path
from rlhf.runs import cache

def make(folder):
    with open({log!r}, "a") as log:
        log.write("made\\n")
    time.sleep(1.0)
    (folder / "whole.txt").write_text("whole")

print((cache.folder("thing", "1", make) / "whole.txt").read_text())
"""


def test_two_processes_at_once_make_it_once(make: Maker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = [sys.executable, "-c", PROGRAM.format(log=str(log))]
    both = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["whole\n"] * 2
    assert log.read_text() == "made\n"
