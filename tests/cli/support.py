"""What the tests of the commands share: a folder to work in, recipes, and the command line in this process."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rlhf.cli import app

ROOT = Path(__file__).resolve().parents[2]
DATA = "method: data\noutput_dir: out\nsources: rows.jsonl\n"
SFT = "method: sft\noutput_dir: out\nmodel: {name_or_path: base}\ndata: {train: rows.jsonl}\n"
PPO = SFT.replace("sft", "ppo") + "ppo: {rewards: [{callable: scores:score}]}\n"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with rows.jsonl; the process's own settings come back afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RLHF_DEBUG", "0")  # the commands may set it; monkeypatch sets it back
    handler = signal.getsignal(signal.SIGTERM)
    Path("rows.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    yield
    signal.signal(signal.SIGTERM, handler)


def rlhf(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="rlhf")


def recipe(text: str, name: str = "r.yaml") -> str:
    Path(name).write_text(text)
    return name
