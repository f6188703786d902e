"""`rollouts:` in a recipe: what is wrong with it, in a user's words."""

from __future__ import annotations

import pytest

from rlhf.errors import RecipeError
from rlhf.recipe import load
from tests.recipe.support import workplace, write

__all__ = ["workplace"]

RECIPE = """\
method: grpo
output_dir: out
model: {name_or_path: base}
lora: {r: 8}
data: {train: rows.jsonl}
grpo:
  rewards: [{callable: "scores:score"}]
  rollouts: ROLLOUTS
"""
SERVER = "engine: vllm_server, base_url: 'http://gpu-2:8000/v1'"


@pytest.mark.parametrize(
    ("rollouts", "problem"),
    [
        ("vllm", ": expected a section of keys with values, got the string 'vllm'"),
        ("{max_gap: 1.0}", ": engine: required key is missing"),
        ("{engine: openai}", ": engine: expected one of vllm, vllm_server; got the string 'openai'"),
        ("{engine: vllm_server}", ".base_url: required key is missing"),
        ("{engine: vllm_server, base_url: gpu-2}", ".base_url: expected something like http://localhost:8000/v1"),
        (f"{{{SERVER}, url: x}}", ".url: unknown key; did you mean 'base_url'?"),
        (
            f"{{{SERVER}, sleep: true}}",
            ".sleep: unknown key; the keys here are max_gap, importance_sampling, engine, base_url, api_key_env, concurrency, "
            "timeout, max_retries",
        ),
        ("{engine: vllm, max_gap: 0}", ".max_gap: must be more than 0, got 0"),
        ("{engine: vllm, importance_sampling: {cap: 0.5}}", ".importance_sampling.cap: must be at least 1, got 0.5"),
        ("{engine: vllm, gpu_memory_utilization: 1.5}", ".gpu_memory_utilization: must be at most 1, got 1.5"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(rollouts: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write(RECIPE.replace("ROLLOUTS", rollouts)))
    assert caught.value.problems == [f"r.yaml:8: grpo.rollouts{problem}"]


def test_full_fine_tuning_is_refused_and_told_what_to_do() -> None:
    with pytest.raises(RecipeError) as caught:
        load(write(RECIPE.replace("lora: {r: 8}\n", "").replace("ROLLOUTS", "{engine: vllm}")))
    assert caught.value.problems == [
        "r.yaml:7: grpo.rollouts: vLLM is kept in step with the policy by its LoRA adapter, and full fine-tuning has none; add a "
        "lora: section, or leave rollouts out: the policy then samples in this process"
    ]


@pytest.mark.parametrize("change", ["bnb_4bit_quant_type: fp4", "bnb_4bit_use_double_quant: false"])
def test_vllm_quantises_in_one_way_only(change: str) -> None:
    text = f"{RECIPE}quantization: {{{change}}}\n"
    with pytest.raises(
        RecipeError, match=r"grpo\.rollouts\.engine: vLLM quantises to nf4 with double quantisation only"
    ):
        load(write(text.replace("ROLLOUTS", "{engine: vllm}")))
    assert load(write(text.replace("ROLLOUTS", f"{{{SERVER}}}"))).quantization is not None  # its gap will say


def test_pairs_have_no_use_for_importance_weights() -> None:
    text = RECIPE.replace("grpo", "online_dpo").replace("ROLLOUTS", "{engine: vllm, importance_sampling: {}}")
    with pytest.raises(RecipeError) as caught:
        load(write(text))
    assert caught.value.problems == [
        "r.yaml:8: online_dpo.rollouts.importance_sampling: weighs the loss of a policy gradient, and does nothing here; leave it out"
    ]
