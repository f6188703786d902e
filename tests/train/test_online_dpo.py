"""Online DPO as a whole stage: its pairs, its loss against DPO's formula, and that it learns and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.train.ppo_support import LETTERS, Recipes, iteration, perturb, plain_logprobs, stage_of

Make = Callable[..., TrainRecipe]


@pytest.fixture
def make(ending: Callable[..., str], recipe_of: Recipes, rows: dict[str, str]) -> Make:
    """Recipes on a model that ends about half of its completions early."""

    def recipe(*, section: dict[str, Any] | None = None, **sections: Any) -> TrainRecipe:
        content = {"rollout_batch_size": 6, "rewards": [LETTERS], "sampling": {"max_new_tokens": 6, "n": 4}}
        training = {"per_device_train_batch_size": 8} | sections.pop("training", {})
        rows["online_dpo"] = rows["ppo"]
        data = {"train": rows["ppo"], "max_length": 64}
        return recipe_of(
            "online_dpo", ending(5.0), data=data, training=training, online_dpo=content | (section or {}), **sections
        )

    return recipe


def test_a_pair_is_the_best_and_the_worst_of_a_prompt(make: Make) -> None:
    stage = stage_of(make())
    batches = iteration(stage)
    found = []
    for batch in batches:
        for chosen, rejected in zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True):
            assert batch.batch.segments[chosen] == batch.batch.segments[rejected]
            found.append((batch.scores[chosen].item(), batch.scores[rejected].item()))
    scores = [[float(sum(c.isalpha() for c in s.text)) for s in group] for group in stage.engine.groups[-1]]
    expected = [(max(own), min(own)) for own in scores if max(own) > min(own)]
    assert sorted(found) == sorted(expected) and found
    assert stage.measured["paired"] == len(expected) / len(scores)
    assert stage.measured["score"] == pytest.approx(
        sum(map(sum, scores)) / 24
    )  # of all samples, not of the pairs alone


def test_the_loss_is_dpos_on_these_pairs(make: Make) -> None:
    """By plain forward passes, one completion at a time, in float64."""
    stage = stage_of(make(section={"beta": 0.5, "sampling": {"max_new_tokens": 6, "n": 2, "temperature": 0.8}}))
    perturb(stage.policy, 0.02)
    torch.manual_seed(0)
    [batch, *_] = iteration(stage)
    count = torch.tensor(float(stage.count(batch)))
    output = stage.forward_loss(stage.module, batch, count)
    reference = stage.reference._policy.transformer
    total = 0.0
    for chosen, rejected in zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True):
        drift = []
        for m in (chosen, rejected):
            span = batch.batch.spans[int(batch.batch.segments[m])]
            prompt = batch.batch.input_ids[span.start : span.start + span.prompt].tolist()
            ids = batch.batch.targets[batch.batch.rows == m].tolist()
            own, ref = (
                plain_logprobs(n, prompt, ids, 0.8).double().sum() for n in (stage.policy.transformer, reference)
            )
            drift.append(float(own - ref))
        total += math.log1p(math.exp(-0.5 * (drift[0] - drift[1])))
    assert float(output.loss.detach()) == pytest.approx(total / len(batch.chosen), rel=1e-4)
    assert abs(total / len(batch.chosen) - math.log(2)) > 1e-3


def test_samples_that_all_score_the_same_teach_nothing(make: Make) -> None:
    recipe = make(section={"rewards": [{"callable": "tests.train.rewards:the_same"}]}, training={"max_steps": 2})
    train(recipe)
    for line in metrics_of(recipe):
        assert line["paired"] == 0.0 and line["loss"] == 0.0 and line["grad_norm"] == 0.0


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_it_learns_what_is_rewarded_and_resumes_bitwise(lora: dict[str, int] | None, make: Make) -> None:
    settings: dict[str, Any] = {"checkpoint": {"save_steps": 5}} | ({"lora": lora} if lora else {})
    fast = {"learning_rate": 3e-3 if lora is None else 1e-2}
    whole = make(training={"max_steps": 20} | fast, **settings)
    train(whole)
    lines = metrics_of(whole)
    early, late = (sum(line["score"] for line in part) / 4 for part in (lines[:4], lines[-4:]))
    assert late > early + 0.5, (early, late)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    part = make(out="part", training={"max_steps": 10} | fast, **settings)
    train(part)
    train(part.model_copy(update={"training": whole.training}))
    assert [line["loss"] for line in metrics_of(part)] == [line["loss"] for line in lines]
    name = "model.safetensors" if lora is None else "adapter_model.safetensors"
    finals = [Path(recipe.output_dir) / "final" / name for recipe in (part, whole)]
    assert finals[0].read_bytes() == finals[1].read_bytes()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sampling": {"n": 1}}, "the best and the worst"),
        ({"kl_coef": 0.1}, "kl_coef"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "does nothing with loss_type: hinge"),
    ],
)
def test_what_cannot_be_is_refused(section: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(ValidationError, match=message):
        make(section=section)
