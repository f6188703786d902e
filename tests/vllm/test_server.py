"""vLLM's server as our child: started, asked, and gone when we are, however we go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import SetupError
from rlhf.generation.engines import open_engine
from rlhf.recipe.synthesis import OpenaiSection, TextSampling, VllmSection
from tests.vllm.conftest import MODEL
from tests.vllm.test_in_process import GREEDY, QUESTIONS, ask


def section(**changes: Any) -> VllmSection:
    small = {"max_model_len": 512, "enforce_eager": True, "dtype": "float32", "serve": True}
    return VllmSection.model_validate({"engine": "vllm", "model": MODEL} | small | changes)


def group(pid: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, leader = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(leader) == pid and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def server(adapter: Path) -> Iterator[Any]:
    engine = open_engine(section(adapter=str(adapter)), name="writer")
    yield engine
    pid = engine.pid
    assert group(pid)
    engine.close()
    assert not group(pid)


def test_it_says_what_the_engine_in_process_says(server: Any, vllm: Any, adapter: Path) -> None:
    here = ask(vllm(adapter=str(adapter)), QUESTIONS, GREEDY)
    there = ask(server, QUESTIONS, GREEDY)
    assert {k: (a.texts, a.ended) for k, a in there.items()} == {k: (a.texts, a.ended) for k, a in here.items()}
    sampled = TextSampling(temperature=0.8, top_k=5, n=2, max_new_tokens=8)
    assert ask(server, QUESTIONS, sampled, seed=2) == ask(server, QUESTIONS, sampled, seed=2)


def test_guided_choices(server: Any) -> None:
    """Nothing but the choices themselves can be said with a stop at the first line break, whatever the model would like."""
    for answer in ask(server, QUESTIONS, TextSampling(max_new_tokens=64), choices=["Score: 1", "Score: 5"]).values():
        assert not answer.ended[0] or answer.texts[0].splitlines()[-1] in ("Score: 1", "Score: 5")


def test_any_client_can_ask_it(server: Any) -> None:
    """The server is an ordinary one: its own chat template, its base model beside the adapter, its refusals."""
    url = server._client._section.base_url
    client = OpenaiSection(engine="openai", base_url=url, model="model", timeout=300.0)
    chat = ask(open_engine(client, name="client"), QUESTIONS[:1], GREEDY)[QUESTIONS[0]]
    assert chat.texts == ["The capital of France is Paris."] and chat.ended == [True] and chat.prompt_tokens > 0
    plain = client.model_copy(update={"chat": "plain"})
    said = ask(open_engine(plain, name="client"), ["The capital of France is"], GREEDY)["The capital of France is"]
    assert "Paris" in said.texts[0]
    adapted = client.model_copy(update={"model": "adapter"})
    assert ask(open_engine(adapted, name="client"), QUESTIONS, GREEDY) != ask(
        open_engine(client, name="client"), QUESTIONS, GREEDY
    )
    with pytest.raises(SetupError, match="no model 'gpt'; it has model, adapter"):
        ask(open_engine(client.model_copy(update={"model": "gpt"}), name="client"), QUESTIONS, GREEDY)


def test_what_it_refuses_is_the_requests_error(server: Any) -> None:
    answers = ask(server, ["sea " * 600, QUESTIONS[0]], GREEDY)
    assert str(answers["sea " * 600].error).startswith("HTTP 400: ")
    assert answers[QUESTIONS[0]].error is None


def test_a_server_that_cannot_start_shows_its_log() -> None:
    with pytest.raises(
        SetupError, match=r"engine writer: vLLM's server ended with \d+ before it was ready(.|\n)*99999"
    ):
        open_engine(section(max_model_len=99999), name="writer")


def test_a_server_dies_with_a_parent_that_is_killed() -> None:
    code = (
        "from tests.vllm.test_server import section; from rlhf.generation.engines.vllm_server import VllmServer\n"
        "import time; engine = VllmServer(section()); print(engine.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert group(pid)
        os.kill(parent.pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while group(pid) and time.monotonic() < until:
        time.sleep(0.2)
    assert not group(pid)
