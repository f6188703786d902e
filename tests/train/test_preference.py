"""DPO's family as whole stages: mixes, losses without a reference, resuming, several processes, and what is loaded."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from rlhf.errors import RecipeError
from rlhf.recipe.loader import dump
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import collate
from rlhf.train import dpo
from rlhf.train.dpo import Dpo
from rlhf.train.run import train
from rlhf.train.setup import Setup
from tests.losses.preference_cases import FREE, SETTINGS, expected_loss
from tests.parity.support import PAIR_ROWS, perturb, rendered, setup
from tests.train.conftest import metrics_of
from tests.train.ppo_support import LETTERS, iteration, stage_of
from tests.train.test_loop import assert_close
from tests.train.test_resume import assert_same, quiet, state_of
from tests.two_processes import in_two

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
MIX = {"losses": {"sigmoid": 1.0, "apo_zero": 0.5, "sft": 0.2}, "beta": 0.2}
SIMPO = {"loss_type": "simpo", "beta": 2.0}
ORPO = {"losses": {"sft": 1.0, "orpo": 0.1}}
STEADY = {"max_steps": 3, "learning_rate": 1e-3, "adam_epsilon": 1e-3}
SAVING = {"save_steps": 2, "save_total_limit": None}
COMMON = ("loss", "accuracy", "margin", "logprobs/chosen", "logprobs/rejected")


@pytest.fixture
def no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a second model, copying the policy, or making a reference of its adapters is an error."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a reference was made")

    monkeypatch.setattr(Setup, "other_policy", refused)
    monkeypatch.setattr(dpo, "Reference", refused)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("section", [SIMPO, ORPO], ids=["simpo", "orpo"])
def test_without_a_reference_none_is_made_and_it_learns_and_resumes(
    section: dict[str, Any], lora: Any, no_reference: None, recipe_of: Recipes, model_folder: Folders
) -> None:
    recipe = recipe_of("dpo", model_folder("llama"), dpo=section, lora=lora, checkpoint=SAVING)
    assert recipe.other_models() == {}
    train(recipe)
    lines = metrics_of(recipe)
    parts = [f"loss/{name}" for name in section.get("losses", ())]
    for line in lines:
        assert {key for key in line if "/" in key or key in COMMON} == {*COMMON, *parts}
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["margin"] > lines[0]["margin"]
    _assert_resumes(recipe, recipe_of("dpo", model_folder("llama"), out="b", dpo=section, lora=lora, checkpoint=SAVING))


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_a_mix_starts_where_it_must_logs_its_parts_and_resumes(
    lora: Any, recipe_of: Recipes, model_folder: Folders
) -> None:
    recipe = recipe_of("dpo", model_folder("llama"), dpo=MIX, lora=lora, checkpoint=SAVING)
    train(recipe)
    first, *_, last = metrics_of(recipe)
    assert first["loss/sigmoid"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["loss/apo_zero"] == pytest.approx(1.0, abs=1e-6)
    for line in (first, last):
        parts = sum(weight * line[f"loss/{name}"] for name, weight in MIX["losses"].items())  # type: ignore[attr-defined]
        assert line["loss"] == pytest.approx(parts, rel=1e-6)
    for name in MIX["losses"]:  # type: ignore[attr-defined]
        assert last[f"loss/{name}"] < first[f"loss/{name}"]
    _assert_resumes(recipe, recipe_of("dpo", model_folder("llama"), out="b", dpo=MIX, lora=lora, checkpoint=SAVING))


def _assert_resumes(whole: TrainRecipe, broken: TrainRecipe) -> None:
    """The run of four steps again from its second, as if it had been killed there: bitwise the same."""
    shutil.copytree(whole.output_dir, broken.output_dir)
    checkpoints = Path(broken.output_dir) / "checkpoints"
    shutil.rmtree(checkpoints / "step-000004")
    torch.manual_seed(123)
    train(broken)
    assert_same(state_of(Path(whole.output_dir) / "checkpoints/step-000004"), state_of(checkpoints / "step-000004"))
    assert quiet(metrics_of(whole)) == quiet(metrics_of(broken))


def test_every_loss_on_a_model_is_the_oracles(recipe_of: Recipes, model_folder: Folders) -> None:
    """From the batch's tokens to the loss: which side is which, its length, its reference."""
    for name in SETTINGS:
        mix: dict[str, Any] = {"loss_type": name}
        if name in ("cpo", "orpo", "sft"):
            mix = {"losses": {"sft": 0.5, "simpo" if name == "sft" else name: 2.0}}
        settings = SETTINGS["simpo"] if name == "sft" else SETTINGS[name]
        recipe = recipe_of("dpo", model_folder("llama"), dpo=mix | settings)
        segments = rendered(recipe, PAIR_ROWS)
        stage = Dpo(recipe, setup(recipe, segments))  # type: ignore[arg-type]
        assert (stage.reference is None) == (name in FREE)
        if stage.reference is not None:
            stage.reference._policy.double()
        perturb(stage.module, seed=1)
        stage.module.double()
        batch = collate(segments)
        with torch.no_grad():
            sums = batch.sum_rows(stage.module(batch)).view(-1, 2).T.numpy()
            ref = sums if stage.reference is None else batch.sum_rows(stage.reference(batch)).view(-1, 2).T.numpy()
            loss = stage.forward_loss(stage.module, batch, torch.tensor(7.0)).loss.item()
        lengths = [[float(len(s.completion_ids[side])) for s in segments] for side in (0, 1)]
        six = [*sums, *ref, *lengths]
        weights = mix.get("losses", {name: 1.0})
        expected = [weight * expected_loss(part, six, SETTINGS[part], 7) for part, weight in weights.items()]
        assert loss == pytest.approx(sum(expected), rel=1e-9), name


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo"])
def test_one_loss_is_a_mix_of_one(name: str, recipe_of: Recipes, model_folder: Folders) -> None:
    short = recipe_of("dpo", model_folder("llama"), out="short", dpo={"loss_type": name})
    long = recipe_of("dpo", model_folder("llama"), out="long", dpo={"losses": {name: 1.0}})
    finals = []
    for recipe in (short, long):
        train(recipe)
        finals.append(load_file(Path(recipe.output_dir) / "final/model.safetensors"))
    assert_same(*finals)
    assert quiet(metrics_of(short)) == quiet(metrics_of(long))


@pytest.mark.parametrize("section", [MIX, ORPO], ids=["mix", "orpo"])
def test_accumulation_and_processes_change_nothing(
    section: dict[str, Any], recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    """Six rows by four: the last step of an epoch has fewer, and one process fewer than the other."""
    runs = {}
    for name, size, accumulation in (("alone", 4, 1), ("by_ones", 1, 4), ("both", 2, 1)):
        training = STEADY | {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        runs[name] = recipe_of("dpo", model_folder("llama"), out=name, dpo=section, training=training)
    train(runs["alone"])
    train(runs["by_ones"])
    path = tmp_path / "both.yaml"
    path.write_text(dump(runs["both"]))  # type: ignore[arg-type]
    in_two("rlhf", "train", str(path))
    assert_close(runs["alone"], runs["by_ones"])
    assert_close(runs["alone"], runs["both"])


def test_aot_trains_on_one_process_and_is_refused_on_two(
    recipe_of: Recipes, model_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("dpo", model_folder("llama"), dpo={"loss_type": "aot"})
    train(recipe)
    first, *_, last = metrics_of(recipe)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and last["loss"] < first["loss"]
    monkeypatch.setattr("accelerate.Accelerator.num_processes", property(lambda _: 2))
    monkeypatch.setattr("rlhf.train.run.refuse_rival_processes", lambda _: None)
    with pytest.raises(
        RecipeError, match=r"dpo\.loss_type: aot sorts all pairs of a step, and 2 processes hold a part"
    ):
        train(recipe)


@pytest.fixture
def online(ending: Callable[..., str], recipe_of: Recipes, rows: dict[str, str]) -> Recipes:
    def make(**section: Any) -> TrainRecipe:
        rows["online_dpo"] = rows["ppo"]
        content = {"rollout_batch_size": 6, "rewards": [LETTERS], "sampling": {"max_new_tokens": 6, "n": 2}}
        return recipe_of("online_dpo", ending(5.0), online_dpo=content | section)

    return make


def test_online_dpo_takes_a_mix(online: Recipes) -> None:
    stage = stage_of(online(losses={"sigmoid_norm": 1.0, "sft": 0.3}, beta=2.0))
    [batch, *_] = iteration(stage)
    output = stage.forward_loss(stage.module, batch, torch.tensor(float(stage.count(batch))))
    sums = batch.batch.sum_rows(batch.old_logprobs)
    lengths = batch.batch.lengths
    nll = -(sums[batch.chosen] / lengths[batch.chosen]).mean().item()
    assert output.metrics["loss/sft"].item() == pytest.approx(nll, rel=1e-5)
    assert output.loss.item() == pytest.approx(math.log(2) + 0.3 * nll, rel=1e-5)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (SIMPO, "loss_type: simpo needs no reference, and this method measures"),
        (ORPO, r"losses: \{sft, orpo\} needs no reference, and this method measures"),
        ({"loss_type": "aot"}, "aot sorts all pairs of a step, and here a step has several"),
        ({"loss_type": "hinge", "dpop_lambda": 2.0}, "dpop_lambda: does nothing with loss_type: hinge"),
    ],
)
def test_what_online_dpo_cannot_do_is_refused(section: dict[str, Any], message: str, online: Recipes) -> None:
    with pytest.raises(ValidationError, match=message):
        online(**section)
