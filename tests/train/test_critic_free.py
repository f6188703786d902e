"""RLOO, GRPO and REINFORCE++ as whole stages: their advantages from the samples, what trains, and that they learn and resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.train.ppo_support import LETTERS, Folders, Recipes, iteration, perturb, stage_of

METHODS = ("rloo", "grpo", "reinforce_pp")
Make = Callable[..., TrainRecipe]


@pytest.fixture
def make(ending: Callable[..., str], recipe_of: Recipes, rows: dict[str, str]) -> Make:
    """Recipes on a model that ends about half of its completions early."""

    def recipe(method: str, *, section: dict[str, Any] | None = None, **sections: Any) -> TrainRecipe:
        content = {"rollout_batch_size": 4, "num_ppo_epochs": 2, "rewards": [LETTERS]}
        content |= {"sampling": {"max_new_tokens": 6, "n": 3}} | (section or {})
        training = {"per_device_train_batch_size": 6} | sections.pop("training", {})
        data = {"train": rows["ppo"], "max_length": 64}
        return recipe_of(method, ending(5.0), data=data, training=training, **{method: content}, **sections)

    return recipe


@pytest.fixture(autouse=True)
def _rows_of_all_methods(rows: dict[str, str]) -> None:
    rows.update(dict.fromkeys(METHODS, rows["ppo"]))


def by_hand(method: str, stage: Any, rollouts: list[Any], coefficient: float) -> list[float]:
    """Each token's advantage, written from the papers over one completion after another."""
    completions, spans = [], []  # (score, [kl of each token]) and the prompt of each
    prompt = 0
    for r in rollouts:
        for m in range(r.batch.num_completions):
            mine = r.batch.rows == m
            kl = (r.old_logprobs[mine] - r.ref_logprobs[mine]).tolist()
            completions.append((r.scores[m].item(), kl))
            spans.append(prompt + int(r.batch.segments[m]))
        prompt += int(r.batch.segments.max()) + 1
    if method == "reinforce_pp":
        tokens = []
        for score, kl in completions:
            rewards = [-coefficient * k for k in kl]
            rewards[-1] += score
            tokens += [sum(rewards[t:]) for t in range(len(rewards))]
        flat = torch.tensor(tokens, dtype=torch.float64)
        return ((flat - flat.mean()) / flat.std()).tolist()
    total = [s - (coefficient * sum(kl) if method == "rloo" else 0.0) for s, kl in completions]
    advantages = []
    for i, own in enumerate(total):
        group = [t for j, t in enumerate(total) if spans[j] == spans[i]]
        others = (sum(group) - own) / (len(group) - 1)
        mean = sum(group) / len(group)
        std = (sum((t - mean) ** 2 for t in group) / (len(group) - 1)) ** 0.5
        advantages.append(own - others if method == "rloo" else (own - mean) / (std + 1e-4))
    return [a for a, (_, kl) in zip(advantages, completions, strict=True) for _ in kl]


@pytest.mark.parametrize("method", METHODS)
def test_the_advantages_are_the_papers(method: str, make: Make) -> None:
    stage = stage_of(make(method, section={"kl_coef": 0.3, "num_mini_batches": 1}))
    perturb(stage.policy, 0.02)  # so that there is a KL
    torch.manual_seed(0)
    rollouts = iteration(stage)
    rollouts.sort(key=lambda r: stage.engine.prompts[0].index(r.batch.input_ids[: r.batch.spans[0].prompt].tolist()))
    assert len(rollouts) == 2 and abs(stage.measured["kl"]) > 1e-3
    found = torch.cat([r.advantages for r in rollouts])
    expected = torch.tensor(by_hand(method, stage, rollouts, 0.3), dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert float(found.abs().max()) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_there_is_no_value_model(method: str, make: Make) -> None:
    stage = stage_of(make(method, lora={"r": 4}))
    assert stage.module is stage.policy and stage.critic is None
    assert all(float(r.old_values.abs().max()) == 0 for r in iteration(stage))
    assert set(stage.state()) == {"kl_coef"}
    assert "value/explained_variance" not in stage.measured


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_what_is_rewarded_and_resumes_bitwise(method: str, make: Make) -> None:
    settings: dict[str, Any] = {"section": {"kl_coef": 0.0}, "checkpoint": {"save_steps": 4}}
    whole = make(method, training={"max_steps": 12, "learning_rate": 3e-3}, **settings)
    train(whole)
    lines = metrics_of(whole)
    early, late = (sum(line["score"] for line in part) / 4 for part in (lines[:4], lines[-4:]))
    assert late > early + 0.5, (early, late)
    part = make(method, out="part", training={"max_steps": 8, "learning_rate": 3e-3}, **settings)
    train(part)
    train(part.model_copy(update={"training": whole.training}))
    again = metrics_of(part)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
    final = Path(part.output_dir) / "final"
    assert (final / "model.safetensors").read_bytes() == (
        Path(whole.output_dir) / "final/model.safetensors"
    ).read_bytes()
    assert json.loads((final / "lineage.json").read_text())["method"] == method


def test_the_kl_of_grpo_is_in_the_loss(make: Make) -> None:
    """The advantages do not know the KL; the loss has kl_coef times the k3 estimate more."""
    losses = {}
    for coefficient in (0.0, 2.0):
        stage = stage_of(make("grpo", section={"kl_coef": coefficient}))
        perturb(stage.policy, 0.02)
        torch.manual_seed(0)
        [first, *_] = iteration(stage)
        count = torch.tensor(float(stage.count(first)))
        losses[coefficient] = stage.forward_loss(stage.module, first, count)
    plain, held = losses[0.0], losses[2.0]
    assert held.metrics["policy/loss"] == plain.metrics["policy/loss"] and held.metrics["kl/loss"] > 0
    assert float(held.loss) == pytest.approx(float(plain.loss + 2.0 * held.metrics["kl/loss"]), rel=1e-5)


def test_grpo_without_the_deviation(make: Make) -> None:
    stage = stage_of(make("grpo", section={"scale_rewards": False}))
    for rollout in iteration(stage):
        for prompt in range(int(rollout.batch.segments.max()) + 1):
            scores = rollout.scores[rollout.batch.segments == prompt]
            own = [rollout.advantages[rollout.batch.rows == m][0] for m in range(rollout.batch.num_completions)
                   if rollout.batch.segments[m] == prompt]  # fmt: skip
            torch.testing.assert_close(torch.stack(own), scores - scores.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "section", "message"),
    [
        ("rloo", {"sampling": {"n": 1}}, "sampling.n: must be 2 at least"),
        ("grpo", {"kl_estimator": "k1"}, "the gradient of k1 is zero on average"),
        ("grpo", {"value": "shared"}, "Extra inputs are not permitted"),
        ("reinforce_pp", {"sampling": {"top_p": 0.9}}, "truncation biases the probability ratios"),
    ],
)
def test_what_a_method_cannot_do_is_refused(method: str, section: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(ValidationError, match=message):
        make(method, section=section)


def test_a_reward_model_scores_them_too(
    make: Make, recipe_of: Recipes, model_folder: Folders, reward_model: Callable[[], str]
) -> None:
    folder = reward_model()
    recipe = recipe_of(
        "grpo",
        model_folder("llama"),
        grpo={"rollout_batch_size": 2, "rewards": [{"model": folder}], "sampling": {"n": 2, "max_new_tokens": 4}},
    )
    assert recipe.grpo.missing_eos.value == 1.0  # type: ignore[attr-defined]
    stage = stage_of(recipe)
    assert all(torch.isfinite(r.scores).all() for r in iteration(stage))
