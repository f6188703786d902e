"""`rlhf doctor`: facts on standard output, what must be mended on standard error."""

from __future__ import annotations

from importlib import metadata

import pytest
from typer.testing import CliRunner, Result

from rlhf.cli import app, doctor


def rlhf(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="rlhf")


def test_doctor_is_content_with_this_machine_and_names_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_CACHE", "cache")
    result = rlhf("doctor")
    facts = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if len(line.split()) > 1)
    assert (result.exit_code, result.stderr) == (0, "")
    assert facts["torch"] == metadata.version("torch")
    assert facts["cache"].startswith("cache, ")
    assert facts["embedded:film-reviews"] == "not in the cache yet (made on first use)"
    assert result.stdout.splitlines()[-1] == "all that rlhf needs is here"


def test_doctor_exits_with_4_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.10.1+cpu", "transformers": "5.17.0", "accelerate": "1.15"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    result = rlhf("doctor")
    assert result.exit_code == 4
    assert result.stderr.splitlines() == [
        "error: torch 2.10.1+cpu is too old; run: pip install 'torch>=2.11'",
        "       peft is missing; run: pip install 'peft>=0.21'",
    ]
