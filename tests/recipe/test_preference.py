"""The keys of DPO's losses: how they are chosen and mixed, and that no key is taken which does nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import RecipeError
from rlhf.recipe import load
from rlhf.recipe.loader import dump
from rlhf.recipe.training import DpoRecipe
from tests.recipe.support import DPO, workplace, write

__all__ = ["workplace"]


def section(words: str, *overrides: str) -> Any:
    recipe = load(write(DPO + f"dpo: {words}\n"), overrides)
    assert isinstance(recipe, DpoRecipe)
    return recipe.dpo


@pytest.mark.parametrize(
    ("words", "weights", "reference"),
    [
        ("{}", {"sigmoid": 1.0}, True),
        ("{loss_type: hinge}", {"hinge": 1.0}, True),
        ("{loss_type: simpo, beta: 2.0}", {"simpo": 1.0}, False),
        ("{losses: {sigmoid: 1.0, sft: 0.2}, label_smoothing: 0.1}", {"sigmoid": 1.0, "sft": 0.2}, True),
        ("{losses: {sft: 1.0, orpo: 0.1}}", {"sft": 1.0, "orpo": 0.1}, False),
        ("{losses: {simpo: 1.0, sigmoid: 1}, simpo_gamma: 0}", {"simpo": 1.0, "sigmoid": 1.0}, True),
    ],
)
def test_what_a_recipe_chooses_and_that_it_is_written_so(words: str, weights: Any, reference: bool) -> None:
    chosen = section(words)
    assert (chosen.weights, chosen.needs_reference) == (weights, reference)
    again = load(write(dump(load("r.yaml"))))
    assert again == load("r.yaml") and again.dpo == chosen  # type: ignore[union-attr]


def test_losses_from_the_command_line() -> None:
    assert section("{}", "dpo.losses={apo_zero: 1.0, sft: 0.5}").weights == {"apo_zero": 1.0, "sft": 0.5}
    assert section("{losses: {sigmoid: 1.0}}", "dpo.losses.sigmoid=2.0").weights == {"sigmoid": 2.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{loss_type: ipo, losses: {sft: 1.0}}", "dpo.losses: loss_type names one loss and losses a mix"),
        (
            "{loss_type: hinge, label_smoothing: 0.1}",
            "dpo.label_smoothing: does nothing with loss_type: hinge; leave it",
        ),
        ("{losses: {sft: 1.0, orpo: 0.1}, beta: 0.2}", "dpo.beta: does nothing with losses: {sft, orpo}; leave it out"),
        ("{discopop_tau: 0.1}", "dpo.discopop_tau: does nothing with loss_type: sigmoid"),
        ("{dpop_lambda: 5.0}", "dpo.dpop_lambda: does nothing with loss_type: sigmoid"),
        ("{loss_type: ipo, simpo_gamma: 1.0}", "dpo.simpo_gamma: does nothing with loss_type: ipo"),
        ("{loss_type: simpo, reference: base}", "dpo.reference: does nothing with loss_type: simpo, which needs none"),
        ("{loss_type: sft}", "dpo.loss_type: sft compares nothing; add a loss of pairs"),
        ("{losses: {sft: 0.5}}", "dpo.losses: sft compares nothing; add a loss of pairs"),
        (
            "{loss_type: orpo}",
            "dpo.loss_type: orpo is only a part of its paper's loss, beside sft; write losses: {sft: 1",
        ),
        (
            "{losses: {cpo: 1.0}}",
            "dpo.losses: cpo is only a part of its paper's loss, beside sft; write losses: {sft: 1",
        ),
        ("{loss_type: exo_pair}", "dpo.label_smoothing: must be above 0 with exo_pair"),
        ("{losses: {robust: 1.0, sft: 0.1}}", "dpo.label_smoothing: must be above 0 with robust: the share of wrong"),
        ("{losses: {sigmoid: 0}}", "dpo.losses.sigmoid: must be more than 0, got 0"),
        ("{losses: {}}", "dpo.losses: name at least one loss"),
        ("{losses: {sigmod: 1.0}}", "dpo.losses.sigmod: expected one of sigmoid, robust"),
        ("{losses: [sigmoid]}", "dpo.losses: expected a section of keys with values, got a list"),
    ],
)
def test_what_is_refused_and_why(words: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        section(words)
    line = next(i for i, text in enumerate(Path("r.yaml").read_text().splitlines(), start=1) if text.startswith("dpo"))
    assert str(caught.value).startswith(f"r.yaml:{line}: {message}"), str(caught.value)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_a_loss_that_sorts_a_step_needs_it_whole(name: str) -> None:
    write(DPO + f"dpo: {{loss_type: {name}}}\n")
    with pytest.raises(RecipeError, match=f"training.gradient_accumulation_steps: must be 1 with {name}, which sorts"):
        load("r.yaml", ["training.gradient_accumulation_steps=2"])
    with pytest.raises(
        RecipeError, match=r"training\.per_device_train_batch_size: one pair a step leaves nothing to sort"
    ):
        load("r.yaml", ["training.per_device_train_batch_size=1"])
    recipe = load("r.yaml")
    assert isinstance(recipe, DpoRecipe) and recipe.problem_with(1) is None
    key, reason = recipe.problem_with(2)  # type: ignore[misc]
    assert key == "dpo.loss_type" and reason.startswith(
        f"{name} sorts all pairs of a step, and 2 processes hold a part"
    )
