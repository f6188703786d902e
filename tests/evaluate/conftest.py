"""Tiny random models on disk, held-out rows, and an evaluation recipe over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.models.lineage import Base, Lineage
from rlhf.models.load import load_scalar_model
from rlhf.models.save import save_final
from rlhf.recipe.schema import RECIPE, EvalRecipe
from rlhf.recipe.sections import ModelSection
from tests.tiny import tiny_tokenizer

PROMPTS = ["The film was", "I like", "the answer is", "you are", "It is <b>", "there is", "hello", "Question: what"]


def tiny_llama(seed: int, vocabulary: int, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=vocabulary, **sizes, max_position_embeddings=64, initializer_range=0.3, use_cache=True, **options
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of two policies, A and B, and a reward model, R."""
    tokenizer, folders = tiny_tokenizer(), {}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    for seed, name in enumerate("AB"):
        folder = tmp_path_factory.mktemp(name)
        tiny_llama(seed, len(tokenizer), **ids).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = str(folder)
    reward = tmp_path_factory.mktemp("R")
    torch.manual_seed(2)
    scalar = load_scalar_model(ModelSection(name_or_path=folders["A"]))
    torch.nn.init.normal_(scalar.head.weight)
    base = Base(folders["A"], "", "float32", None)
    lineage = Lineage("reward", base, (), {"kind": "plain"}, rows="", steps=1, processes=1, rlhf="0.1.0")
    save_final(scalar, tokenizer, reward, dtype=torch.float32, lineage=lineage)
    return {**folders, "R": str(reward)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def recipe_of(tmp_path: Path, models: dict[str, str]) -> Callable[..., EvalRecipe]:
    """An evaluation recipe: `recipe_of("AB", dtype="bfloat16")` compares A with B."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])

    def make(names: str, **sections: Any) -> EvalRecipe:
        content: dict[str, Any] = {
            "method": "eval",
            "output_dir": str(tmp_path / "out"),
            "models": [{"name": name, "name_or_path": models[name]} for name in names],
            "prompts": [{"path": prompts}],
            "sampling": {"max_new_tokens": 8},
            "scorers": [{"callable": "tests.evaluate.scorers:letters"}],
        }
        recipe = RECIPE.validate_python(content | sections)
        assert isinstance(recipe, EvalRecipe)
        return recipe

    return make
