"""One writer for each run folder, and launchers that would make rival runs are refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import RecipeError, SetupError
from rlhf.recipe import load
from rlhf.runs.launch import refuse_rival_processes, refuse_several_processes, refuse_unsupported_launchers
from rlhf.runs.lock import FolderLock
from rlhf.runs.status import Status, read_status

HOLD = "import sys, time; from pathlib import Path; from rlhf.runs.lock import FolderLock\nlock = FolderLock(Path('.')); lock.acquire(); print('held', flush=True); time.sleep(60)"
DATA = {"method": "data", "output_dir": ".", "sources": "rows.jsonl"}


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process that writes into the working folder."""
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_with_the_other_process_named(holder: subprocess.Popen) -> None:
    with (
        pytest.raises(
            RecipeError, match=rf"written by another run \(process {holder.pid} on \S+, started 20"
        ) as caught,
        Status(load(DATA)),
    ):
        pass
    assert "wait until it ends, or set another output_dir" in str(caught.value)
    assert read_status(".") is None  # nothing of the other run was touched


def test_a_killed_run_leaves_no_lock(holder: subprocess.Popen) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock = FolderLock(Path("."))
    lock.acquire()
    lock.release()


def test_the_lock_is_free_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with Status(load(DATA)):
            pass
    assert not Path(".lock.json").exists()


def test_other_ranks_do_not_take_the_lock(holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with Status(load(DATA)):
        pass


def test_rival_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SetupError, match=re.escape("started 2 processes (WORLD_SIZE), but 1 work together")):
        refuse_rival_processes(1)
    refuse_rival_processes(2)
    with pytest.raises(SetupError, match="method: generate runs in one process"):
        refuse_several_processes("generate")


@pytest.mark.slow
def test_a_real_launch_without_its_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    command = [*launch, "--config_file", str(root / "accelerate_configs/ddp_cpu.yaml"), "-m", "rlhf", "train"]
    recipe = [str(root / "recipes/quickstart/1_sft.yaml"), "training.max_steps=1", "output_dir=out"]
    done = subprocess.run([*command, *recipe], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.count("started 2 processes (WORLD_SIZE), but 1 work together") == 1
    status = read_status(tmp_path / "out")
    assert status is not None and (status["state"], status["exit_code"]) == ("failed", 4)
    assert not (tmp_path / "out/checkpoints").exists() and not (tmp_path / "out/final").exists()


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_launchers_that_do_not_work_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    refuse_unsupported_launchers()
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(SetupError, match=r"accelerate_configs/ddp\.yaml"):
        refuse_unsupported_launchers()
