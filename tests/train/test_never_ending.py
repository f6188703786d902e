"""A policy that stops ending its texts earns nothing: the fault that once took the quickstart's PPO to 1% of finished texts.

A reward model that saw an end on every text was asked about texts without one, and happened to score them three deviations higher.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rlhf.models.load import load_scalar_model
from rlhf.models.scores import ScoreScale
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.train.ppo_support import EOS, Recipes

RANDOM = [[3 + (7 * i * i + 53 * j) % 380 for j in range(1 + i % 6)] for i in range(400)]


@pytest.fixture
def likes_no_end(ending: Callable[..., str], recipe_of: Recipes) -> str:
    """A reward model's final/ whose head scores a text without EOS three deviations higher than the same text with it."""
    recipe = recipe_of("reward", ending(5.0), out="reward", training={"max_steps": 1, "learning_rate": 1e-9})
    train(recipe)
    final = Path(recipe.output_dir) / "final"
    model = load_scalar_model(ModelSection(name_or_path=str(final)))
    with torch.no_grad():  # fitted: 1 where the last token is not EOS, 0 where it is; a deviation is a third of that
        bare, ended = (torch.stack([_last_state(model, [*ids, *end]) for ids in RANDOM]) for end in ([], [EOS]))
        states = torch.cat([bare, ended]).double()
        states = torch.cat([states, torch.ones_like(states[:, :1])], dim=1)
        wanted = torch.cat([torch.ones(len(bare)), torch.zeros(len(ended))]).double()
        fitted = torch.linalg.lstsq(states, wanted[:, None]).solution[:, 0].float()
        model.head.weight.copy_(fitted[None, :-1])
        model.head.bias.copy_(fitted[-1:])
    scale = ScoreScale(mean=0.0, std=1 / 3, completions=len(ended), unfinished=0.0)
    save_file({"weight": model.head.weight.detach(), "bias": model.head.bias.detach()}, final / "head.safetensors")
    scale.write(final)
    (final / "probe.json").unlink()  # of the head that was replaced
    return str(final)


def _last_state(model: Any, ids: list[int]) -> torch.Tensor:
    state: torch.Tensor = model.transformer(torch.tensor([[5, 6, *ids]])).last_hidden_state[0, -1]
    return state


def ppo(recipe_of: Recipes, base: str, reward: str, **section: Any) -> TrainRecipe:
    content = {
        "rollout_batch_size": 8,
        "num_ppo_epochs": 2,
        "kl_coef": 0.0,
        "sampling": {"max_new_tokens": 6, "n": 4},
        "rewards": [{"model": reward}],
    }
    training = {"max_steps": 12, "per_device_train_batch_size": 32, "learning_rate": 3e-3}
    return recipe_of("ppo", base, ppo=content | section, training=training, out=f"ppo-{len(section)}")


def ends(recipe: TrainRecipe) -> tuple[float, float]:
    """The share of texts that ended in the first iteration, and in the last three."""
    rates = [line["eos_rate"] for line in metrics_of(recipe)]
    return rates[0], sum(rates[-3:]) / 3


def test_never_ending_earns_nothing(
    likes_no_end: str, ending: Callable[..., str], recipe_of: Recipes, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ppo(recipe_of, ending(5.0), likes_no_end)
    train(recipe)
    said = " ".join(capsys.readouterr().out.split())
    assert "deviations lower with their end than without" in said
    first, last = ends(recipe)
    assert 0.3 < first < 0.9 and last > first + 0.1, (first, last)


def test_it_did_once(
    likes_no_end: str, ending: Callable[..., str], recipe_of: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old rule: what did not end is scored as it is, and nothing is taken off."""
    monkeypatch.setattr(ScoreScale, "knows_unfinished", property(lambda self: True))
    recipe = ppo(recipe_of, ending(5.0), likes_no_end, missing_eos=None)
    train(recipe)
    first, last = ends(recipe)
    assert last < first - 0.1, (first, last)
