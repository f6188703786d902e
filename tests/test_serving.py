"""The Python blocks of docs/serving.md that need no vLLM run, and give what the trained models give."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.models.load import load_policy, load_scalar_model
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.run import train
from tests.train.conftest import model_folder, recipe_of, rows

__all__ = ["model_folder", "recipe_of", "rows"]
PAGE = Path(__file__).parents[1] / "docs/serving.md"


def run_blocks(base: str) -> dict[str, Any]:
    """Run the page's blocks one after the other, in the precision of the tiny models; returns their variables."""
    found: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        if "vllm" not in block:
            exec(block.replace('"BASE"', repr(base)).replace("bfloat16", "float32"), found)
    return found


def test_the_examples_give_what_was_trained(
    recipe_of: Callable[..., TrainRecipe],
    model_folder: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = model_folder("llama")
    monkeypatch.chdir(tmp_path)
    for method, merged in (("sft", "merged"), ("reward", "merged_reward")):
        steps = {"max_steps": 6, "learning_rate": 3e-2}
        train(recipe_of(method, base, out=f"outputs/{method}", lora={"r": 4}, training=steps))
        result = CliRunner().invoke(app, ["merge", f"outputs/{method}", "-o", merged, "--dtype", "float32"])
        assert result.exit_code == 0, result.output
    found = run_blocks(base)
    assert found["beside"].tolist() == found["merged"].tolist()
    [prompt] = found["inputs"].input_ids.tolist()
    answer = found["beside"][0, len(prompt) :].tolist()
    policy = load_policy(ModelSection(name_or_path="outputs/sft"))
    reward = load_scalar_model(ModelSection(name_or_path="outputs/reward"))
    texts = [found["tokenizer"](row).input_ids for row in found["rows"]]
    with torch.no_grad():
        greedy = policy(collate([Segment(prompt, [answer])]))
        others = [
            policy(collate([Segment(prompt, [[*answer[:-1], other]])]))[-1]
            for other in range(0, policy.transformer.config.vocab_size, 7)
        ]
        expected = reward(collate([Segment(ids[:1], [ids[1:]]) for ids in texts]))
    assert greedy[-1] >= max(others)
    torch.testing.assert_close(found["scores"], expected, rtol=1e-5, atol=1e-5)
