"""The README.md of final/."""

from __future__ import annotations

from typing import Any

import yaml

from rlhf.models.card import model_card
from rlhf.models.lineage import Base, Lineage
from rlhf.recipe import load
from rlhf.recipe.loader import dump


def lineage(base: str) -> Lineage:
    return Lineage("dpo", Base(base, "", "float32", None), (), {}, rows="", steps=1, processes=2, rlhf="0.1.0")


REPORT: dict[str, Any] = {
    "train": {"sources": [{"path": "rows.jsonl", "format": "preference", "rows_in": 1200, "rows_out": 1100}]},
    "eval": {"sources": []},
}


def card(method: str, model: str) -> tuple[dict[str, Any], str, Any]:
    recipe: Any = load(
        {
            "method": method,
            "output_dir": "outputs/it",
            "model": {"name_or_path": model},
            "data": {"train": "rows.jsonl"},
        }
    )
    text = model_card(recipe, lineage(model), REPORT, {"loss": 0.25, "step": 1})
    header, _, body = text.removeprefix("---\n").partition("---\n")
    return yaml.safe_load(header), body, recipe


def test_a_card_says_what_was_trained_on_what_and_how() -> None:
    header, body, recipe = card("dpo", "embedded:smollm2-135m-instruct")
    assert header["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert header["pipeline_tag"] == "text-generation" and header["tags"] == ["rlhf", "dpo"]
    assert "for 1 step in 2 processes; trained: every weight." in body
    assert "- train: `rows.jsonl` (preference), 1,100 of 1,200 rows usable\n" in body
    assert "- loss: 0.25\n" in body and dump(recipe) in body


def test_a_local_base_is_no_hub_name_and_a_reward_model_is_no_generator() -> None:
    header, body, _ = card("reward", "outputs/sft/final")
    assert "base_model" not in header and header["pipeline_tag"] == "text-classification"
    assert "AutoModelForCausalLM" not in body
