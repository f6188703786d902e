"""What a recipe may set beside PPO's usual numbers: the target-KL stop, the value model's warm-up and its own lambda."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.train.ppo_support import Folders, Recipes, by_completion, iteration, stage_of

Ragged = Callable[..., TrainRecipe]
FAST = {"max_steps": 2, "learning_rate": 3e-3}


def weights(recipe: TrainRecipe) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.output_dir) / "final/model.safetensors")


def test_an_iteration_stops_when_the_policy_moved_too_far(ragged: Ragged) -> None:
    """The first updates are the same as without the stop; the update that finds the policy too far is the last."""
    settings: dict[str, Any] = {"num_ppo_epochs": 6, "num_mini_batches": 1, "kl_coef": 0.0}
    free = ragged(out="free", ppo=settings, training=FAST)
    train(free)
    assert [line["updates"] for line in metrics_of(free)] == [6, 6]
    stopped = ragged(out="stopped", ppo=settings | {"target_kl": 1e-4}, training=FAST)
    train(stopped)
    lines = metrics_of(stopped)
    # at the first update the policy is the one that sampled, so there are two of them at least
    assert all(2 <= line["updates"] < 6 for line in lines)
    same = ragged(
        out="same", ppo=settings | {"num_ppo_epochs": int(lines[0]["updates"])}, training=FAST | {"max_steps": 1}
    )
    train(same)
    assert metrics_of(same)[0]["loss"] == lines[0]["loss"]


def test_a_target_that_is_never_reached_changes_nothing(ragged: Ragged) -> None:
    plain = ragged(out="plain", ppo={"num_ppo_epochs": 3}, training=FAST)
    loose = ragged(out="loose", ppo={"num_ppo_epochs": 3, "target_kl": 100.0}, training=FAST)
    for recipe in (plain, loose):
        train(recipe)
    assert [line["loss"] for line in metrics_of(plain)] == [line["loss"] for line in metrics_of(loose)]


def test_the_value_model_warms_up_alone(ragged: Ragged) -> None:
    """In these iterations the policy stays as it is, to the bit, and the value model learns; after them both learn."""
    warm: dict[str, Any] = {"value_warmup_steps": 2, "num_ppo_epochs": 4, "kl_coef": 0.0}
    recipe = ragged(out="warm", ppo=warm, training=FAST | {"max_steps": 2})
    train(recipe)
    before = load_file(Path(recipe.model.name_or_path) / "model.safetensors")
    after = weights(recipe)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    first, second = metrics_of(recipe)
    assert second["kl"] == 0.0 and second["value/error"] < first["value/error"]
    longer = ragged(out="longer", ppo=warm, training=FAST | {"max_steps": 3})
    train(longer)
    assert any(not torch.equal(weights(longer)[name], tensor) for name, tensor in before.items())


def test_a_warm_up_goes_on_where_it_was_cut(ragged: Ragged) -> None:
    warm: dict[str, Any] = {"value_warmup_steps": 2, "num_ppo_epochs": 2}
    whole = ragged(out="whole", ppo=warm, training=FAST | {"max_steps": 4}, checkpoint={"save_steps": 1})
    train(whole)
    part = ragged(out="part", ppo=warm, training=FAST | {"max_steps": 1}, checkpoint={"save_steps": 1})
    train(part)
    train(part.model_copy(update={"training": whole.training}))
    assert [line["loss"] for line in metrics_of(part)] == [line["loss"] for line in metrics_of(whole)]
    ours, theirs = weights(part), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_value_models_lambda_is_its_own(ragged: Ragged) -> None:
    """Targets with `lam_value: 1` are the sums of the rewards still to come; the advantages stay those of `lam`."""
    settings: dict[str, Any] = {"lam": 0.7, "whiten_advantages": False, "kl_coef": 0.0}
    plain = by_completion(iteration(stage_of(ragged(ppo=settings))))
    apart = by_completion(iteration(stage_of(ragged(ppo=settings | {"lam_value": 1.0}))))
    assert plain.keys() == apart.keys()
    for key, own in apart.items():
        assert torch.equal(own["advantages"], plain[key]["advantages"])
        # without a KL the only reward is the score, at the end
        torch.testing.assert_close(own["returns"], own["scores"].expand_as(own["returns"]), rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(own["returns"], plain[key]["returns"]) for key, own in apart.items())


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "reinforce_pp"])
def test_entropy_is_paid_for(method: str, ending: Folders, recipe_of: Recipes, rows: dict[str, str]) -> None:
    """Where all samples score the same, the bonus alone decides, and the policy gets more varied."""
    rows |= dict.fromkeys(("grpo", "rloo", "reinforce_pp"), rows["ppo"])
    section = {"rollout_batch_size": 8, "num_ppo_epochs": 2, "sampling": {"max_new_tokens": 6, "n": 4}, "kl_coef": 0.0}
    section |= {"rewards": [{"callable": "tests.train.rewards:the_same"}]}
    training = {"max_steps": 12, "learning_rate": 3e-3, "per_device_train_batch_size": 32}
    entropies = {}
    for coefficient in (0.0, 1.0):
        recipe = recipe_of(method, ending(5.0), out=f"run-{coefficient}", training=training,
                           **{method: section | {"entropy_coef": coefficient}})  # fmt: skip
        train(recipe)
        lines = metrics_of(recipe)
        entropies[coefficient] = sum(line["entropy"] * line["length"] for line in lines[-3:]) / 3
    assert entropies[1.0] > entropies[0.0] + 1.0, entropies


def test_the_bonus_is_minus_the_log_probability_of_each_token(ragged: Ragged) -> None:
    stage = stage_of(ragged(ppo={"entropy_coef": 0.3, "kl_coef": 0.0}))
    for rollout in iteration(stage):
        plain = -0.3 * rollout.old_logprobs
        last = torch.cumsum(rollout.batch.lengths, 0) - 1
        plain[last] += rollout.scores
        torch.testing.assert_close(stage.token_rewards(rollout), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ppo": {"value": "shared", "value_warmup_steps": 2}}, "trains the policy too"),
        ({"ppo": {"value_warmup_steps": 2}, "training": {"weight_decay": 0.1}}, "would pull at the policy"),
        ({"ppo": {"target_kl": 0.0}}, "greater than 0"),
    ],
)
def test_settings_that_work_against_each_other_are_refused(
    ragged: Ragged, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ragged(**change)
