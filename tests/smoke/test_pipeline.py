"""Every layer once, with the real commands in one process: rankings, pairs, tokens, SFT, reward, DPO, PPO, samples, report.

It takes seconds, so it is the first thing to run after a change. It says only that the stages fit together; what each of
them computes is tested in the folder of its package.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from rlhf.cli import app
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.smoke

TRAINING = "training: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1.0e-3}\n"
PAIRS = "data: {train: [{path: out/pairs, split: train}], eval: [{path: out/pairs, split: test}], max_length: 64}\n"
RECIPES = {
    "data": "sources: [{path: rankings.jsonl}]\n"
    "steps: [{pairs: {strategy: all}}, {dedup: {column: prompt, threshold: 0.9}}, {split: {test: 0.2, by: prompt}}]\n",
    "sft": "model: {name_or_path: base}\nlora: {r: 2}\ndata: {train: demonstrations.jsonl, max_length: 64}\n" + TRAINING,
    "reward": "model: {name_or_path: out/sft/final}\n" + PAIRS + TRAINING,
    "dpo": "model: {name_or_path: out/sft/final}\nlora: {r: 2}\n" + PAIRS + TRAINING,
    "ppo": "model: {name_or_path: out/sft/final}\nlora: {r: 2}\ndata: {train: demonstrations.jsonl, max_length: 64}\n"
    "ppo: {rollout_batch_size: 4, sampling: {max_new_tokens: 6, n: 2}, rewards: [{model: out/reward/final}]}\n" + TRAINING,
    "generate": "model: {name_or_path: out/ppo/final}\nprompts: [{path: demonstrations.jsonl, max_rows: 4}]\n"
    "sampling: {max_new_tokens: 6, n: 2}\nscorers: [{callable: 'tests.train.rewards:count_letters'}]\n",
    "eval": "models: [{name: SFT, name_or_path: out/sft/final, run: out/sft}, {name: DPO, name_or_path: out/dpo/final, run: out/dpo},"
    " {name: PPO, name_or_path: out/ppo/final, run: out/ppo}]\n"
    "prompts: [{path: demonstrations.jsonl, max_rows: 4}]\nsampling: {max_new_tokens: 6}\nreward_model: out/reward/final\n"
    "scorers: [{callable: 'tests.train.rewards:count_letters'}]\npreferences: [{path: out/pairs, split: test}]\n",
}  # fmt: skip
SUBJECTS = ["film", "answer", "sea", "day", "book", "song", "meal", "walk", "house", "garden", "train", "letter"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, rows and recipes; the test runs in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_DEBUG", "1")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained("base")
    tokenizer.save_pretrained("base")
    prompts = [f"What do you say of the {subject}, and why do you say it?" for subject in SUBJECTS]
    answers = [" It is good.", " I am not sure.", " 1 2 3"]
    write("rankings.jsonl", [{"prompt": p, "completions": answers, "ranking": [0, 1, 2]} for p in prompts])
    write("demonstrations.jsonl", [{"prompt": p, "completion": answers[0]} for p in prompts])
    for method, body in RECIPES.items():
        name = "pairs" if method == "data" else method
        Path(f"{method}.yaml").write_text(f"method: {method}\noutput_dir: out/{name}\n{body}")
    return tmp_path


def write(name: str, rows: list[dict[str, object]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rlhf(*arguments: str) -> str:
    """What a command prints; it must end well."""
    result = CliRunner().invoke(app, list(arguments), prog_name="rlhf", catch_exceptions=False)
    assert result.exit_code == 0, f"rlhf {' '.join(arguments)}\n{result.output}"
    return result.output


def test_from_rankings_to_a_report(workplace: Path) -> None:
    rlhf("data", "lint", "rankings.jsonl")
    rlhf("data", "build", "data.yaml")
    rlhf("data", "stats", "out/pairs")
    report = json.loads(Path("out/pairs/report.json").read_text())
    assert report["rows_out"] == sum(report["splits"].values()) > 12
    rlhf("inspect", "sft.yaml")
    for method in ("sft", "reward", "dpo", "ppo"):
        rlhf("check", f"{method}.yaml")
        rlhf("train", f"{method}.yaml")
        lines = [json.loads(line) for line in Path(f"out/{method}/metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 2
        assert list(Path(f"out/{method}/final").glob("*.safetensors"))
    rlhf("generate", "generate.yaml")
    rlhf("eval", "eval.yaml")
    report = json.loads(Path("out/eval/report.json").read_text())
    assert {"SFT", "DPO", "PPO"} <= set(json.dumps(report).replace('"', " ").split())
    assert Path("out/eval/report.html").read_text().startswith("<!")
