"""Every stage trains every architecture, from files to a `final/` that plain transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf.models.load import load_policy, load_scalar_model
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.run import train
from tests.tiny import tiny_tokenizer
from tests.train.conftest import metrics_of

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
ARCHITECTURES = ["llama", "gpt2", "qwen2", "gemma3"]


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sft_lowers_the_loss(name: str, lora: Any, recipe_of: Recipes, model_folder: Folders) -> None:
    rate = 1e-1 if lora else 1e-2
    recipe = recipe_of("sft", model_folder(name), lora=lora, training={"max_steps": 20, "learning_rate": rate})
    train(recipe)
    losses = [line["loss"] for line in metrics_of(recipe)]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.4


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reward_and_dpo_learn_the_pairs(name: str, lora: Any, recipe_of: Recipes, model_folder: Folders) -> None:
    for method in ("reward", "dpo"):
        recipe = recipe_of(method, model_folder(name), out=method, lora=lora, training={"max_steps": 12})
        train(recipe)
        lines = metrics_of(recipe)
        assert lines[-1]["accuracy"] == 1.0
        assert lines[-1]["margin"] > lines[0]["margin"]
        if method == "dpo":  # the policy starts as its own reference
            assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
            assert lines[0]["drift/chosen"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ppo_raises_the_reward(name: str, lora: Any, recipe_of: Recipes, model_folder: Folders) -> None:
    ppo = {"kl_coef": 0.01, "rollout_batch_size": 12, "sampling": {"max_new_tokens": 6, "n": 4}}
    options = {"max_steps": 25, "learning_rate": 5e-2 if lora else 3e-3, "per_device_train_batch_size": 16}
    recipe = recipe_of("ppo", model_folder(name), lora=lora, ppo=ppo, training=options)
    train(recipe)
    lines = metrics_of(recipe)
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["kl"] > 0.01
    first, last = (sum(line["score"] for line in part) / 3 for part in (lines[:3], lines[-3:]))
    assert last > first + 1.0


def test_whole_rankings_train_a_reward_model(recipe_of: Recipes, model_folder: Folders, rows: dict[str, str]) -> None:
    recipe = recipe_of("reward", model_folder("llama"), data={"train": rows["rankings"]}, training={"max_steps": 15})
    train(recipe)
    assert metrics_of(recipe)[-1]["accuracy"] == 1.0
    model = load_scalar_model(ModelSection(name_or_path=f"{recipe.output_dir}/final"))
    tokenizer = tiny_tokenizer()
    end = [tokenizer.eos_token_id]
    prompt = tokenizer("The film was").input_ids
    completions = [tokenizer(t).input_ids + end for t in (" good", " here", " bad")]  # ranking: [0, 2, 1]
    best, middle, worst = model(collate([Segment(prompt, completions)])).tolist()
    assert best > middle > worst


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_final_is_the_trained_model_and_loads_in_transformers(
    name: str, lora: Any, recipe_of: Recipes, model_folder: Folders
) -> None:
    recipe = recipe_of("sft", model_folder(name), lora=lora, checkpoint={"save_steps": 4})
    train(recipe)
    final = Path(recipe.output_dir) / "final"
    assert sorted(p.suffix for p in final.iterdir() if p.is_file() and p.suffix in {".bin", ".pt", ".pkl"}) == []
    lineage = json.loads((final / "lineage.json").read_text())
    assert (
        lineage["base"]["name_or_path"] == model_folder(name) and lineage["method"] == "sft" and lineage["steps"] == 4
    )
    batch = collate([Segment([5, 6, 7], [[8, 9, 10], [11]])])
    merged = load_policy(ModelSection(name_or_path=str(final)))
    trained = load_policy(recipe.model, lora=recipe.lora)
    state = load_file(Path(recipe.output_dir) / "checkpoints/step-000004/model.safetensors")
    with torch.no_grad():
        before = trained(batch)
        for parameter_name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[parameter_name])
        torch.testing.assert_close(merged(batch), trained(batch), rtol=1e-5, atol=1e-5)
        assert (trained(batch) - before).abs().max() > 0.1
        if lora is None:
            plain = AutoModelForCausalLM.from_pretrained(final)
        else:
            plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder(name)), str(final))
        logits = plain(torch.tensor([[5, 6, 7, 11]])).logits.log_softmax(-1)
        torch.testing.assert_close(logits[0, 2, 11], merged(batch)[3], rtol=1e-4, atol=1e-4)
    assert (final / "adapter_model.safetensors").is_file() == (lora is not None)
    assert (final / "model.safetensors").is_file() == (lora is None)


def test_a_reward_models_head_survives_saving(recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = recipe_of("reward", model_folder("gpt2"), lora={"r": 4}, data={"eval": recipe_of("dpo", "x").data.train[0].path},
                       training={"max_steps": 8, "eval_steps": 8})  # fmt: skip
    train(recipe)
    model = load_scalar_model(ModelSection(name_or_path=f"{recipe.output_dir}/final"))
    tokenizer = tiny_tokenizer()
    end = [tokenizer.eos_token_id]
    margins = []
    from tests.train.conftest import REVIEWS

    for prompt, chosen, rejected in REVIEWS:
        ids = [tokenizer(t).input_ids + end for t in (chosen, rejected)]
        a, b = model(collate([Segment(tokenizer(prompt).input_ids, ids)])).tolist()
        margins.append(a - b)
    assert sum(margins) / len(margins) == pytest.approx(metrics_of(recipe)[-1]["eval/margin"], rel=1e-4)


def test_padded_batching_trains_the_same(recipe_of: Recipes, model_folder: Folders) -> None:
    for method in ("sft", "dpo", "reward"):
        lines = []
        for batching in ("segments", "padded"):
            model = {"name_or_path": model_folder("llama"), "batching": batching}
            recipe = recipe_of(method, "", out=f"{method}-{batching}", model=model)
            train(recipe)
            lines.append([(line["loss"], line["grad_norm"]) for line in metrics_of(recipe)])
        assert lines[0] == [pytest.approx(pair, rel=2e-3, abs=2e-5) for pair in lines[1]]
