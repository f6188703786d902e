"""The README.md of final/."""

from __future__ import annotations

from typing import Any

import yaml

from rlhf.models.card import model_card, short_card
from rlhf.models.lineage import Base, Lineage
from rlhf.recipe import load
from rlhf.recipe.loader import dump


def lineage(base: str, method: str = "dpo", identity: str = "0123") -> Lineage:
    template = {"kind": "plain", "prompt": "{prompt}"}
    own = Base(base, identity, "float32", None)
    return Lineage(method, own, (), template, rows="", steps=1, processes=2, rlhf="0.1.0")


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
    text = model_card(recipe, lineage(model, method), REPORT, {"loss": 0.25, "step": 1})
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


def header_of(found: Lineage) -> dict[str, Any]:
    header: dict[str, Any] = yaml.safe_load(short_card(found, "it", adapters=True).split("---\n")[1])
    return header


def test_the_base_is_named_where_others_find_it_and_nowhere_else() -> None:
    assert "base_model" not in header_of(lineage("outputs/sft")), "two words and a slash make no hub name"
    assert header_of(lineage("owner/name", identity="owner/name@abc"))["base_model"] == "owner/name"
    assert header_of(lineage("embedded:smollm2-135m-instruct"))["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_short_card_says_what_the_lineage_tells() -> None:
    merged = short_card(lineage("outputs/base"), "it", adapters=False)
    assert "# it\n" in merged and "`outputs/base` trained with `method: dpo`" in merged
    assert "; the whole model lies here.\n" in merged and "Peft" not in merged
    assert "(`kind: plain`): `'{prompt}'`" in merged
    assert "base = AutoModelForCausalLM" in short_card(lineage("outputs/base"), "it", adapters=True)
    assert "AutoModelForCausalLM" not in short_card(lineage("outputs/base", "reward"), "it", adapters=False)
