"""The tiny models and the rows of the golden runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.golden.cases import CRITIC_FREE
from tests.tiny import tiny_tokenizer
from tests.train.conftest import REVIEWS, config_of


def make_model(name: str, folder: Path) -> str:
    """A tiny random model of an architecture, the same every time."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(name, tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_rows(folder: Path) -> dict[str, str]:
    """A file of rows for each method."""
    demonstrations = [{"prompt": p, "completion": c} for p, c, _ in REVIEWS]
    pairs = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in REVIEWS]
    prompts = [{"prompt": p} for p, _, _ in REVIEWS]
    rows = {
        method: _write(folder / f"{method}.jsonl", rows)
        for method, rows in (("sft", demonstrations), ("reward", pairs), ("dpo", pairs), ("ppo", prompts))
    }
    return rows | dict.fromkeys(CRITIC_FREE, rows["ppo"])


def recipe_file(content: dict[str, Any], folder: Path) -> str:
    """The recipe as a YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
