"""The shipped recipes whose rewards read columns of the rows, in small: each stage from what the one before wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.cli.support import ROOT, rlhf, workplace
from tests.tiny import tiny_tokenizer

__all__ = ["workplace"]
GSM8K = ROOT / "recipes/gsm8k"
ROWS = "{{path: {path}, format: prompt, columns: {{prompt: question}}}}"


@pytest.fixture
def model() -> str:
    """A tiny Llama that often writes digits: its answers are sometimes right."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=1024, **sizes, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    return "tiny"


def done(*words: str) -> None:
    result = rlhf(*words)
    assert result.exit_code == 0, result.stderr[-2000:]


def test_gsm8k_from_sft_to_the_evaluation(model: str) -> None:
    rows = ROWS.format(path=GSM8K / "example.jsonl")
    given = [json.loads(line)["answer"] for line in (GSM8K / "example.jsonl").read_text().splitlines()]
    small = ["training.max_steps=2", "training.per_device_train_batch_size=4", "data.max_length=700"]
    pairs = f"data.train={{path: {GSM8K}/example.jsonl, format: demonstration, columns: {{prompt: question, completion: answer}}}}"
    done("train", str(GSM8K / "1_sft.yaml"), f"model.name_or_path={model}", pairs, *small)
    for method, number in (("grpo", 2), ("ppo", 3)):
        keys = ["rollout_batch_size=4", "num_mini_batches=1", "sampling.max_new_tokens=8", "sampling.n=2"]
        changes = [f"{method}.{key}" for key in keys]
        done("train", str(GSM8K / f"{number}_{method}.yaml"), f"data.train={rows}", *changes, *small)
        lines = [json.loads(x) for x in Path(f"outputs/gsm8k/{method}/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2]
        for line in lines:
            assert line["score"] == pytest.approx(line["score/correct"] + 0.1 * line["score/ended"])
    done("eval", str(GSM8K / "4_eval.yaml"), f"prompts={rows}", "sampling.max_new_tokens=8")
    report = json.loads(Path("outputs/gsm8k/eval/report.json").read_text())
    assert report["scorers"] == ["correct", "anywhere"] and report["prompts"]["count"] == len(given)


def test_the_gold_answers_of_the_example_are_right() -> None:
    """Each solution gets full marks from the reward that it is the example of."""
    from rlhf.rewards import gsm8k

    rows = [json.loads(line) for line in (GSM8K / "example.jsonl").read_text().splitlines()]
    solutions = [row["answer"] for row in rows]
    assert gsm8k(solutions, solutions) == [1.0] * len(rows)
    shifted = solutions[1:] + solutions[:1]
    assert gsm8k(solutions, shifted) == [0.0] * len(rows)
