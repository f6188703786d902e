"""Several reward models as one reward: each in its own unit, combined, and how far apart they are; full, LoRA, nf4."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import RecipeError
from rlhf.generation.reward_scorer import load_reward_model
from rlhf.generation.scorers import load_scorers, total_scores
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.training import TrainRecipe
from rlhf.train.online import samples_of
from rlhf.train.run import train
from tests.tiny import tiny_tokenizer
from tests.train.conftest import metrics_of
from tests.train.ppo_support import Folders, Recipes, iteration, stage_of
from tests.train.test_qlora import NF4

KINDS = {"full": {}, "lora": {"lora": {"r": 4}}, "nf4": {"lora": {"r": 4}, "quantization": NF4}}
kinds = pytest.mark.parametrize("kind", KINDS)
Make = Callable[..., TrainRecipe]


@pytest.fixture
def make(recipe_of: Recipes, model_folder: Folders) -> Callable[[str], tuple[list[str], Make]]:
    """Three reward models that were trained apart, and a maker of PPO recipes with them as one reward."""

    def members(kind: str) -> tuple[list[str], Make]:
        base = model_folder("llama")
        folders = []
        for seed in (0, 1, 2):
            recipe = recipe_of(
                "reward", base, out=f"{kind}-{seed}", seed=seed, training={"max_steps": 2 + seed}, **KINDS[kind]
            )
            train(recipe)
            folders.append(f"{recipe.output_dir}/final")

        def ppo(out: str = "ppo", sections: dict[str, Any] | None = None, **options: Any) -> TrainRecipe:
            section = {"rewards": [{"models": folders} | options], "missing_eos": None, "center_rewards": False}
            return recipe_of("ppo", base, out=out, ppo=section, **KINDS[kind] | (sections or {}))

        return folders, ppo

    return members


def apart(folders: list[str], stage: Any) -> torch.Tensor:
    """Each member's scores of the iteration's samples, by a model of its own: [members, M]."""
    samples = samples_of(stage.engine.groups[-1], stage._prompts_of(0))
    sections = [ScorerSection(name=str(i), model=folder) for i, folder in enumerate(folders)]
    loaded = [load_scorers([s], tiny_tokenizer(), load_reward_model)[0] for s in sections]
    return torch.tensor([scorer.score(samples) for scorer in loaded])


@kinds
def test_members_are_combined_in_their_own_units(kind: str, make: Callable[[str], tuple[list[str], Make]]) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    folders, ppo = make(kind)
    expected = {
        "mean": lambda each: each.mean(0),
        "min": lambda each: each.amin(0),
        "mean_minus_std": lambda each: each.mean(0) - 2.0 * each.std(0, correction=0),
    }
    for combine, by_hand in expected.items():
        weight = {"std_weight": 2.0} if combine == "mean_minus_std" else {}
        stage = stage_of(ppo(combine=combine, **weight))
        rollouts = iteration(stage)
        each = apart(folders, stage)
        spread = each.std(0, correction=0)
        assert spread.min() > 1e-3  # members that agree would prove nothing
        close = {"rel": 2e-3, "abs": 2e-3}
        assert torch.cat([r.scores for r in rollouts]).tolist() == pytest.approx(by_hand(each).tolist(), **close)
        assert stage.measured["score/ensemble"] == pytest.approx(by_hand(each).mean().item(), **close)
        assert stage.measured["score/ensemble_spread"] == pytest.approx(spread.mean().item(), **close)


def test_members_with_adapters_lie_on_the_policys_base(make: Callable[[str], tuple[list[str], Make]]) -> None:
    _, ppo = make("lora")
    stage = stage_of(ppo())
    [scorer] = stage.scorers
    assert {id(m.model.transformer) for m in scorer.score.members} == {id(stage.policy.transformer)}
    assert {"reward-0", "reward-1", "reward-2"} <= set(stage.policy.model.peft_config)


def test_a_run_with_an_ensemble_resumes_bitwise_and_knows_its_members(
    make: Callable[[str], tuple[list[str], Make]],
) -> None:
    folders, ppo = make("lora")
    sections = {"checkpoint": {"save_steps": 1, "save_total_limit": None}, "training": {"max_steps": 2}}
    whole, broken = (ppo(out, sections) for out in ("whole", "broken"))
    assert whole.other_models() == {f"ppo.rewards.0.models.{i}": folder for i, folder in enumerate(folders)}
    train(whole)
    shutil.copytree(whole.output_dir, broken.output_dir)
    shutil.rmtree(Path(broken.output_dir) / "checkpoints/step-000002")
    train(broken)
    ours, theirs = (metrics_of(recipe)[-1] for recipe in (whole, broken))
    assert {k: v for k, v in ours.items() if "second" not in k} == {
        k: v for k, v in theirs.items() if "second" not in k
    }


def test_a_member_without_a_unit_is_refused(make: Callable[[str], tuple[list[str], Make]]) -> None:
    folders, _ = make("full")
    (Path(folders[1]) / "scores.json").unlink()
    with pytest.raises(RecipeError, match=rf"models: {folders[1]} has no scores.json.*normalize: false"):
        load_scorers([ScorerSection(models=folders)], tiny_tokenizer())
    for combine in ("mean", "min", "mean_minus_std"):  # of no samples, which a process may have in an evaluation
        raw = ScorerSection(models=folders, normalize=False, combine=combine)
        assert total_scores(load_scorers([raw], tiny_tokenizer()), [])[1] == {"ensemble_spread": [], "ensemble": []}


def test_the_value_model_starts_as_the_first_member(make: Callable[[str], tuple[list[str], Make]]) -> None:
    folders, ppo = make("full")
    stage = stage_of(ppo(weight=2.0))
    scale = json.loads((Path(folders[0]) / "scores.json").read_text())
    first = load_reward_model(folders[0])
    torch.testing.assert_close(stage.critic.value_model.head.weight, first.head.weight * 2.0 / scale["std"])
