"""`rlhf check` on recipes whose completions come from vLLM: what the run would do, and how to start the server."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rlhf.models.lineage import Base, Lineage
from rlhf.runs.identity import of_model
from tests.cli.support import PPO, recipe, rlhf, workplace

__all__ = ["workplace"]

SERVER = "ppo.rollouts={engine: vllm_server, base_url: 'http://localhost:8000/v1'}"


@pytest.fixture(autouse=True)
def base_and_parent(workplace: None) -> None:
    """A base, a parent stage with adapters of rank 4 on it in 4 bits, and a reward."""
    Path("scores.py").write_text("score = len\n")
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    final = Path("sft/final")
    final.mkdir(parents=True)
    (final / "adapter_model.safetensors").write_bytes(b"")
    (final / "adapter_config.json").write_text('{"r": 4}')
    base = Base("base", of_model("base"), "float32", {"load_in_4bit": True})
    Lineage("sft", base, (), {"kind": "plain"}, "rows", 1, 1, "0").write(final)


@pytest.mark.parametrize(("lora", "room"), [("{}", 8), ("{start: fresh, r: 30}", 64)])
def test_the_server_has_room_for_all_adapters_on_their_base(lora: str, room: int) -> None:
    result = rlhf("check", recipe(PPO), "model.name_or_path=sft", f"lora={lora}", SERVER)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith(
        "ppo.rollouts: the server at http://localhost:8000/v1 loads the policy's adapter before each sampling; it is not asked "
        f"now. Start it with: VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve base --enable-lora --max-lora-rank {room} "
        "--max-model-len 1024 --dtype bfloat16 --logprobs-mode processed_logprobs --generation-config vllm --quantization bitsandbytes "
        "--load-format bitsandbytes"
    )


def test_a_rank_that_vllm_does_not_take_is_refused() -> None:
    result = rlhf("check", recipe(PPO), "model.name_or_path=sft", "lora={start: fresh, r: 600}", SERVER)
    assert result.exit_code == 2
    assert "lora.r: the policy's adapters have rank 604 together, and vLLM takes 512 at most" in result.stderr


def test_vllm_that_is_missing_is_noted() -> None:
    result = rlhf("check", recipe(PPO), "lora={}", "ppo.rollouts={engine: vllm}")
    assert result.exit_code == 0, result.stderr
    assert "ppo.rollouts: vLLM loads the base once more in this process" in result.stdout
    missing = importlib.util.find_spec("vllm") is None
    assert ("vLLM is not installed in this Python" in result.stdout) == missing
