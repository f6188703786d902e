"""Completions that did not end in PPO, and the KL controller's reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rlhf.generation.reward_scorer import RewardScorer
from rlhf.recipe.training import TrainRecipe
from tests.train.ppo_support import LETTERS, Folders, Recipes, iteration, stage_of


def test_missing_eos_is_on_beside_a_reward_model_and_can_be_switched_off(
    recipe_of: Recipes, model_folder: Folders
) -> None:
    def rule(**ppo: object) -> object:
        return recipe_of("ppo", model_folder("llama"), ppo=ppo).ppo.missing_eos  # type: ignore[attr-defined]

    model, function = {"rewards": [{"model": "run"}]}, {"rewards": [LETTERS]}
    assert rule(**model).model_dump() == {"mode": "penalty", "value": 1.0}  # type: ignore[attr-defined]
    assert rule(**function) is None and rule(**model, missing_eos=None) is None
    assert rule(**model, missing_eos={"mode": "replace", "value": -2.0}).value == -2.0  # type: ignore[attr-defined]


def test_a_reward_model_that_goes_by_the_end_is_named_at_the_start(
    recipe_of: Recipes, model_folder: Folders, reward_model: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = reward_model()
    ppo = {"rewards": [{"model": folder, "name": "taste"}]}
    stage = stage_of(recipe_of("ppo", model_folder("llama"), ppo=ppo))
    scorer = stage.scorers[0].score
    assert isinstance(scorer, RewardScorer)
    for effect, said in ((0.9, 0), (-1.2, 1)):
        scorer.effect_of_end = lambda samples, effect=effect: effect  # type: ignore[method-assign]
        capsys.readouterr()
        iteration(stage)
        out = " ".join(capsys.readouterr().out.split())
        assert out.count("warning: taste scores the same texts 1.2 standard deviations lower with their end") == said
        assert out.count("for a text that did not end, it pays ppo.missing_eos") == said
    iteration(stage, step=1)
    assert "warning" not in capsys.readouterr().out, "it is said once"


@pytest.mark.parametrize("horizon", [None, 10_000])
def test_the_horizon_fits_the_run_and_its_range_is_said(
    horizon: int | None, ragged: Callable[..., TrainRecipe], capsys: pytest.CaptureFixture[str]
) -> None:
    adaptive = {"target": 0.05} | ({} if horizon is None else {"horizon": horizon})
    recipe = ragged(ppo={"adaptive_kl": adaptive}, training={"max_steps": 40})
    stage = stage_of(recipe)
    used = horizon or 40 * 8 // 20
    assert stage.kl.horizon == used  # type: ignore[attr-defined]
    said = " ".join(capsys.readouterr().out.split())
    grows = (1 + 0.2 * 8 / used) ** 40
    assert (
        f"ppo.adaptive_kl, horizon {used}: in 320 episodes kl_coef can grow by a factor of {grows:.3g} at most" in said
    )
    assert ("lower ppo.adaptive_kl.horizon" in said) == (horizon is not None)
