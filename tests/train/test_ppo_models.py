"""PPO's models: heads, value model, reference, dropout, precision, and what a checkpoint holds of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, LlamaConfig

from rlhf.errors import RecipeError
from rlhf.models.load import load_policy, load_scalar_model
from rlhf.models.scalar import ScalarModel
from rlhf.models.scores import read_scale
from rlhf.recipe.sections import ModelSection, TemplateSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.run import train
from rlhf.train.setup import Setup
from tests.train.ppo_support import (
    EOS,
    LETTERS,
    Folders,
    Recipes,
    by_completion,
    iteration,
    stage_of,
)


def test_08_the_reward_heads_start() -> None:
    """At 0, so that every score is; a head that has learnt reads at the last real token."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=11, hidden_size=64, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=4, num_key_value_heads=4)  # fmt: skip
    model = ScalarModel(AutoModel.from_config(config), pad_token_id=2)
    assert not model.head.weight.any() and not model.head.bias.any()
    torch.nn.init.normal_(model.head.weight)
    rows = [[3, 4, 5, 2], [6, 7], [8, 2, 2]]  # 2 is EOS and padding alike
    with torch.no_grad():
        alone = [
            float(model.head(model.transformer(torch.tensor([[1, 9, *row]])).last_hidden_state[0, -1])) for row in rows
        ]
        for segments in (True, False):
            model.segments = segments
            scores = model(collate([Segment([1, 9], rows)]))
            assert scores.tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [1.0, -3.0])
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_09_the_value_model_starts_as_the_reward_models_share(
    lora: Any,
    weight: float,
    normalize: bool,
    recipe_of: Recipes,
    model_folder: Folders,
    reward_model: Callable[[], str],
) -> None:
    """Its values are in the unit of the reward: what the reward model says, normalised as its scores are, by its weight."""
    folder = reward_model()
    rewards = [LETTERS, {"model": folder, "weight": weight, "normalize": normalize}]
    stage = stage_of(recipe_of("ppo", model_folder("llama"), ppo={"rewards": rewards}, lora=lora))
    rollouts = iteration(stage)
    theirs = load_scalar_model(ModelSection(name_or_path=folder))
    assert theirs.scale is not None
    mean, std = (theirs.scale.mean, theirs.scale.std) if normalize else (0.0, 1.0)
    for r in rollouts:
        with torch.no_grad():
            values = weight * (theirs(r.batch, per_token=True) - mean) / std
        torch.testing.assert_close(r.old_values, values, rtol=1e-4, atol=1e-5)
        assert r.old_values.abs().min() > 0


def test_a_reward_model_of_another_template_is_refused(
    recipe_of: Recipes, model_folder: Folders, reward_model: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = reward_model()
    question = TemplateSection(kind="plain", prompt="Question: {prompt}")
    for reward, refused in (({"model": folder}, True), ({"model": folder, "other_template": True}, False)):
        recipe = recipe_of("ppo", model_folder("llama"), ppo={"rewards": [reward]})
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"template": question})})
        if refused:
            with monkeypatch.context() as patch:
                patch.setattr(Setup, "policy", lambda self: pytest.fail("a 7B model was loaded before that was said"))
                with pytest.raises(RecipeError, match=r"was trained with another template .*other_template: true"):
                    stage_of(recipe)
        else:
            stage_of(recipe)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_11_dropout_is_off_everywhere(lora: Any, recipe_of: Recipes, model_folder: Folders) -> None:
    """GPT-2 is published with dropout 0.1; in train mode policy, value model and reference still repeat themselves."""
    config = GPT2Config.from_pretrained(model_folder("gpt2"))
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    noisy = AutoModelForCausalLM.from_pretrained(model_folder("gpt2")).train()
    ids = torch.arange(20)[None]
    assert not torch.equal(noisy(ids).logits, noisy(ids).logits)
    for batching in ("segments", "padded"):
        model = {"name_or_path": model_folder("gpt2"), "batching": batching}
        stage = stage_of(recipe_of("ppo", "", model=model, lora=lora))
        stage.module.train()
        batch = collate([Segment(range(10), [range(20, 30), range(40, 45)])])
        first, second = (stage.module(batch, temperature=1.0) for _ in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
        assert torch.equal(stage.reference(batch), stage.reference(batch))


def test_11_dropout_in_a_recipes_adapters_is_refused(ragged: Callable[..., TrainRecipe]) -> None:
    with pytest.raises(ValidationError, match="lora_dropout must be 0 in PPO"):
        ragged(lora={"r": 4, "lora_dropout": 0.1})


def test_bf16_acts_and_master_weights_stay_float32(ragged: Callable[..., TrainRecipe]) -> None:
    exact, rounded = (iteration(stage_of(ragged(training={"bf16": b})))[0] for b in (False, True))
    ours, theirs = by_completion([rounded]), by_completion([exact])
    both = ours.keys() & theirs.keys()
    assert both
    assert any(not torch.equal(ours[k]["old_logprobs"], theirs[k]["old_logprobs"]) for k in both)
    for key in both:
        torch.testing.assert_close(ours[key]["old_logprobs"], theirs[key]["old_logprobs"], rtol=0.05, atol=0.1)
    stage = stage_of(ragged(training={"bf16": True}))
    assert {p.dtype for p in stage.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_the_value_model_is_in_the_checkpoint(lora: Any, ragged: Callable[..., TrainRecipe]) -> None:
    recipe = ragged(lora=lora, checkpoint={"save_steps": 2}, training={"max_steps": 2})
    train(recipe)
    folder = Path(recipe.output_dir) / "checkpoints/step-000002"
    saved = load_file(folder / "model.safetensors")
    stage = stage_of(recipe)
    trains = {n for n, p in stage.module.named_parameters() if p.requires_grad}
    assert saved.keys() == trains
    assert {"value_model.head.weight", "value_model.head.bias"} <= saved.keys()
    values = r"value_model\.model\..*q_proj" if lora is None else r"policy\.model\..*q_proj\.lora_B\.value\."
    assert any(re.match(values, n) for n in saved)
    moments = {n.rsplit("/", 1)[0] for n in load_file(folder / "optimizer.safetensors")}
    assert moments == trains
    start = dict(stage.module.named_parameters())
    assert not torch.equal(saved["value_model.head.weight"], start["value_model.head.weight"])


def test_the_reference_may_be_another_model(ragged: Callable[..., TrainRecipe], ending: Callable[..., str]) -> None:
    for lora in (None, {"r": 4}):
        stage = stage_of(ragged(lora=lora, ppo={"reference": ending(8.0)}))
        rollouts = iteration(stage)
        other = load_policy(ModelSection(name_or_path=ending(8.0)))
        for r in rollouts:
            with torch.no_grad():
                assert torch.equal(other(r.batch), r.ref_logprobs)
        assert stage.measured["kl"] > 0.05
        trains = [n for n, p in stage.module.named_parameters() if p.requires_grad]
        assert trains and not any(p.requires_grad for p in stage.reference._policy.parameters())


def test_the_initial_reference_does_not_follow_the_policy(ragged: Callable[..., TrainRecipe]) -> None:
    for lora in (None, {"r": 4}):
        stage = stage_of(ragged(lora=lora))
        batch = collate([Segment([3, 4, 5], [[6, 7, 8], [9, EOS]])])
        policy, reference = stage.policy(batch).detach(), stage.reference(batch)
        assert torch.equal(policy, reference)
        with torch.no_grad():
            for parameter in stage.policy.parameters():
                if parameter.requires_grad:
                    parameter += 0.05
        assert torch.equal(stage.reference(batch), reference)
        assert (stage.policy(batch) - policy).abs().max() > 1e-3


def test_the_value_model_may_be_given(
    recipe_of: Recipes, model_folder: Folders, reward_model: Callable[[], str]
) -> None:
    """`ppo.value_model` wins over the reward model; without either it is the policy's own base under a fresh head."""
    folder = reward_model()
    plain = stage_of(recipe_of("ppo", model_folder("llama")))
    given = stage_of(recipe_of("ppo", model_folder("llama"), ppo={"value_model": folder}))
    over = stage_of(
        recipe_of(
            "ppo", model_folder("llama"), ppo={"rewards": [{"model": folder}], "value_model": model_folder("qwen2")}
        )
    )
    saved = load_file(Path(folder) / "head.safetensors")
    scale = read_scale(Path(folder))
    assert scale is not None
    torch.testing.assert_close(given.module.value_model.head.weight, saved["weight"] / scale.std)
    assert not torch.equal(plain.module.value_model.head.weight, saved["weight"])
    base = AutoModel.from_pretrained(model_folder("llama")).state_dict()
    assert all(torch.equal(v, base[n]) for n, v in plain.module.value_model.transformer.state_dict().items())
    assert type(over.module.value_model.transformer).__name__ == "Qwen2Model"
    assert not torch.equal(over.module.value_model.head.weight, saved["weight"])
    for stage in (plain, given, over):
        assert all(torch.isfinite(r.old_values).all() for r in iteration(stage))


def test_policy_and_value_model_share_no_weights(ragged: Callable[..., TrainRecipe]) -> None:
    """The value loss alone moves the value model alone, the policy loss the policy alone."""
    for lora in (None, {"r": 4}):
        stage = stage_of(ragged(lora=lora))
        batch = collate([Segment([3, 4, 5], [[6, 7, 8], [9, EOS]])])
        for index, name in enumerate(("policy", "value_model")):
            stage.module.zero_grad(set_to_none=True)
            stage.module(batch, temperature=1.0)[index].sub(1.0).pow(2).sum().backward()
            moved = {n for n, p in stage.module.named_parameters() if p.grad is not None and p.grad.any()}
            roles = {
                "value_model" if ".value." in n else n.split(".")[0] for n in moved
            }  # an adapter on the policy's base
            assert roles == {name}
