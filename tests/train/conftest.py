"""Tiny models of several architectures on disk, and rows to train them on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from rlhf.recipe.schema import RECIPE
from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.tiny import tiny_tokenizer

REVIEWS = [
    ("The film was", " good", " bad"),
    ("I like", " the film", " no film"),
    ("the answer is", " yes", " 1 2 3"),
    ("you are", " well, thank you.", " here"),
    ("It is", " a good film", " a film"),
    ("there is", " good", " 9 10"),
]


def config_of(name: str, tokenizer: Any) -> PretrainedConfig:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,  # in so small a model the usual 0.02 leaves adapters next to nothing to steer
    } | ids
    match name:
        case "llama":
            return LlamaConfig(**sizes)
        case "qwen2":
            return Qwen2Config(**sizes)
        case "gemma3":
            return Gemma3TextConfig(
                **sizes, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
            )
        case "gpt2":
            return GPT2Config(
                vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.1, **ids
            )
    raise ValueError(name)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny random model of an architecture, made once."""
    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            torch.manual_seed(0)
            tokenizer = tiny_tokenizer()
            path = tmp_path_factory.mktemp(name)
            AutoModelForCausalLM.from_config(config_of(name, tokenizer)).save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[name] = str(path)
        return made[name]

    return folder


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, str]:
    """Files of each kind of row, by method."""

    def write(name: str, lines: list[dict[str, Any]]) -> str:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    pairs = write("pairs", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in REVIEWS])
    return {
        "sft": write("sft", [{"prompt": p, "completion": c} for p, c, _ in REVIEWS]),
        "reward": pairs,
        "dpo": pairs,
        "ppo": write("prompts", [{"prompt": p} for p, _, _ in REVIEWS]),
        "rankings": write(
            "rankings",
            [
                {"prompt": p, "completions": [c, r, " here"], "ranking": [0, 2, 1]}
                for p, c, r in REVIEWS
                if r != " here"
            ],
        ),
    }


@pytest.fixture
def recipe_of(tmp_path: Path, rows: dict[str, str]) -> Callable[..., TrainRecipe]:
    """A recipe for a method with sections merged into tiny defaults: `recipe_of("dpo", model, lora={"r": 4})`."""

    def make(method: str, base: str, *, out: str = "run", **sections: Any) -> TrainRecipe:
        content: dict[str, Any] = {
            "method": method,
            "output_dir": str(tmp_path / out),
            "model": {"name_or_path": base},
            "data": {"train": rows[method], "max_length": 64},
            "training": {
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "lr_scheduler_type": "constant",
            },
        }
        if method == "ppo":
            content["ppo"] = {
                "rollout_batch_size": 4,
                "num_ppo_epochs": 2,
                "sampling": {"max_new_tokens": 6, "n": 2},
                "rewards": [{"callable": "tests.train.rewards:count_letters"}],
            }
        for name, section in sections.items():
            both = isinstance(section, dict) and isinstance(content.get(name), dict)
            content[name] = content[name] | section if both else section
        recipe = RECIPE.validate_python(content)
        assert isinstance(recipe, TrainRecipe)
        return recipe

    return make


@pytest.fixture(scope="session")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A tiny Llama whose next token is EOS with a chosen logit: 6 is about as likely as all other tokens together."""
    made: dict[float, str] = {}

    def folder(logit: float) -> str:
        if logit not in made:
            torch.manual_seed(1)
            tokenizer = tiny_tokenizer()
            network = AutoModelForCausalLM.from_config(config_of("llama", tokenizer))
            with torch.no_grad():  # one dimension of every hidden state is large and constant, and EOS reads it
                network.model.embed_tokens.weight[:, 0] = 5.0
                network.lm_head.weight[:, 0] = 0.0
                network.lm_head.weight[tokenizer.eos_token_id] = 0.0
                network.lm_head.weight[tokenizer.eos_token_id, 0] = logit / 32**0.5
            made[logit] = str(tmp_path_factory.mktemp("ending"))
            network.save_pretrained(made[logit])
            tokenizer.save_pretrained(made[logit])
        return made[logit]

    return folder


@pytest.fixture
def ragged(ending: Callable[..., str], recipe_of: Callable[..., TrainRecipe]) -> Callable[..., TrainRecipe]:
    """PPO recipes on a model that ends about half of its completions early: `ragged(ppo=...)`."""

    def make(*, logit: float = 5.0, ppo: dict[str, Any] | None = None, **sections: Any) -> TrainRecipe:
        model = {"name_or_path": ending(logit)} | sections.pop("model", {})
        training = {"per_device_train_batch_size": 8} | sections.pop("training", {})
        sampling = {"max_new_tokens": 6, "n": 2} | (ppo or {}).pop("sampling", {})
        return recipe_of(
            "ppo", ending(logit), model=model, training=training, ppo={"sampling": sampling} | (ppo or {}), **sections
        )

    return make


@pytest.fixture
def reward_model(recipe_of: Callable[..., TrainRecipe], model_folder: Callable[[str], str]) -> Callable[[], str]:
    """The `final/` of a reward model that was trained a little."""

    def make(name: str = "llama") -> str:
        recipe = recipe_of("reward", model_folder(name), out=f"rm-{name}")
        train(recipe)
        return f"{recipe.output_dir}/final"

    return make


def metrics_of(recipe: TrainRecipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(recipe.output_dir) / "metrics.jsonl").read_text().splitlines()]
