"""Rollouts by vLLM itself, in process and by its server: the log-probabilities are those of the policy that trains."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rlhf.embedded import resolve
from rlhf.errors import RlhfError, SetupError
from rlhf.generation.rollouts.command import serve_command
from rlhf.recipe.schema import RECIPE
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.vllm.conftest import MODEL

GAP = 2e-3  # nats: both compute in float32; one step at this learning rate moves the policy by much more
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def recipe_of(folder: Path, rollouts: dict[str, Any], **sections: Any) -> Any:
    """RLOO on the built-in model with a few short completions."""
    content: dict[str, Any] = {
        "method": "rloo",
        "output_dir": str(folder),
        "model": {"name_or_path": MODEL},
        "lora": LORA,
        "data": {
            "train": [{"path": str(folder.parent / "prompts.jsonl")}],
            "max_length": 128,
            "template": {"kind": "chat"},
        },
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 3e-3},
        "rloo": {
            "rollout_batch_size": 4,
            "sampling": {"max_new_tokens": 12, "n": 2, "temperature": 0.7},
            "rewards": [{"callable": "tests.train.rewards:count_letters"}],
            "rollouts": {"max_gap": GAP} | rollouts,
        },
    }
    return RECIPE.validate_python(content | sections)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Any]:
    """`recipe_of` with prompts: `recipe({"engine": "vllm"}, out="other")`."""
    lines = ["Name a colour.", "What is the capital of France?", "Write a line about the sea.", "What is 2 + 2?"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))

    def make(rollouts: dict[str, Any], *, out: str = "run", **sections: Any) -> Any:
        return recipe_of(tmp_path / out, rollouts, **sections)

    return make


def assert_in_step(recipe: Any) -> None:
    lines = metrics_of(recipe)
    assert len(lines) == 2 and all(0 < line["engine_gap"] < GAP for line in lines)
    assert abs(lines[1]["kl"]) > 10 * GAP  # the policy has moved, and the engine with it
    assert not list(Path("/dev/shm").glob("rlhf-*"))


def test_vllm_in_process_is_in_step(recipe: Callable[..., Any]) -> None:
    asked = recipe({"engine": "vllm", "enforce_eager": True})
    train(asked)
    assert_in_step(asked)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The very command that `rlhf check` shows, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shown = serve_command(recipe_of(Path("run"), {"engine": "vllm"}), resolve(MODEL), 4, None)
    variable, vllm, serve, *words = shown.split(" ")
    assert (vllm, serve) == ("vllm", "serve")
    name, value = variable.split("=")
    options = ["--port", str(port), "--enforce-eager", "--no-enable-chunked-prefill"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *words, *options]
    with subprocess.Popen(command, env={**os.environ, name: value}) as process:
        try:
            until = time.monotonic() + 300
            while process.poll() is None and time.monotonic() < until:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def test_a_server_is_in_step(recipe: Callable[..., Any], server: str) -> None:
    asked = recipe({"engine": "vllm_server", "base_url": server})
    train(asked)
    assert_in_step(asked)
    with urllib.request.urlopen(f"{server}/models") as reply:
        assert [model["parent"] for model in json.load(reply)["data"]] == [None]  # no adapter is left


def test_a_server_is_in_step_with_stacked_adapters(recipe: Callable[..., Any], server: str) -> None:
    first = recipe({"engine": "vllm_server", "base_url": server}, out="first")
    train(first)
    lora = {"r": 4, "target_modules": ["k_proj", "v_proj"], "start": "fresh"}
    second = recipe(
        {"engine": "vllm_server", "base_url": server},
        out="second",
        lora=lora,
        model={"name_or_path": f"{first.output_dir}/final"},
    )
    train(second)
    assert_in_step(second)


def test_an_adapter_of_a_higher_rank_is_refused(recipe: Callable[..., Any], server: str) -> None:
    with pytest.raises(SetupError, match=r"LoRA rank 12 is greater than max_lora_rank 8.*--max-lora-rank 16"):
        train(recipe({"engine": "vllm_server", "base_url": server}, lora=LORA | {"r": 12}))


def test_a_bound_under_the_rounding_stops_the_run(recipe: Callable[..., Any], server: str) -> None:
    """The gap is of two programs, and not 0: the bound has something to hold."""
    with pytest.raises(RlhfError, match=r"rloo\.rollouts\.max_gap"):
        train(recipe({"engine": "vllm_server", "base_url": server, "max_gap": 1e-12}))


def test_a_base_in_4_bits_is_in_step(recipe: Callable[..., Any], server: str) -> None:
    """vLLM computes in bfloat16 here, so its rounding is coarser. A server with the base in 32 bits is another model, and shows it."""
    pytest.importorskip("vllm_bnb_plugin")
    engines = {"nf4": {"engine": "vllm", "enforce_eager": True}, "whole": {"engine": "vllm_server", "base_url": server}}
    gaps = {}
    for name, engine in engines.items():
        once = {"max_steps": 1, "per_device_train_batch_size": 4}
        asked = recipe(engine | {"max_gap": 10.0}, out=name, quantization={"load_in_4bit": True}, training=once)
        train(asked)
        [line] = metrics_of(asked)
        gaps[name] = line["engine_gap"]
    assert gaps["nf4"] < 0.1 < gaps["whole"] / 2
