"""The training doctor in real runs: each finding in a run that has the fault, none in runs that are well."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import RecipeError, RlhfError
from rlhf.recipe.loader import dump, load
from rlhf.recipe.training import FindingName, TrainRecipe
from rlhf.runs.start import run_recipe
from rlhf.train import online
from rlhf.train.findings import CHECKS
from rlhf.train.ppo import Ppo
from rlhf.train.run import train
from rlhf.train.setup import Setup
from tests.train.conftest import metrics_of
from tests.train.ppo_support import Folders, Recipes
from tests.two_processes import in_two

Ragged = Callable[..., TrainRecipe]
FREE = {"kl_coef": 0.0, "rollout_batch_size": 8, "sampling": {"n": 4}, "num_ppo_epochs": 2}


def said(recipe: TrainRecipe) -> dict[str, dict[str, Any]]:
    """The findings of a run, by name."""
    return {found["name"]: found for line in metrics_of(recipe) for found in line.get("findings", [])}


def reward(name: str) -> dict[str, Any]:
    return {"rewards": [{"callable": f"tests.train.rewards:{name}"}]}


def steps(count: int, rate: float, batch: int = 32) -> dict[str, Any]:
    return {"max_steps": count, "learning_rate": rate, "per_device_train_batch_size": batch}


def test_the_recipe_names_the_findings_that_there_are() -> None:
    assert set(FindingName.__args__) == CHECKS.keys()


def test_first_ratio(ragged: Ragged, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old log-probabilities of another function, as an engine of another precision would give them."""
    plain = online.evaluate

    def noisy(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        return [replace(r, old_logprobs=r.old_logprobs + 0.1 * torch.randn(len(r.old_logprobs))) for r in found]

    monkeypatch.setattr(online, "evaluate", noisy)
    recipe = ragged(training=steps(1, 1e-6))
    train(recipe)
    assert said(recipe)["first_ratio"]["step"] == 1


def test_negative_kl(ragged: Ragged, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that goes on sampling from the policy as it was."""
    plain = Setup.engine
    monkeypatch.setattr(Setup, "engine", lambda setup, policy: plain(setup, copy.deepcopy(policy)))
    recipe = ragged(ppo=FREE | reward("count_letters"), training=steps(14, 3e-3))
    train(recipe)
    assert "negative_kl" in said(recipe)


def test_kl_blow_up_and_entropy_collapse(ragged: Ragged) -> None:
    recipe = ragged(ppo=FREE | reward("count_letters"), training=steps(24, 3e-2))
    train(recipe)
    assert {"kl_blow_up", "entropy_collapse"} <= said(recipe).keys()


def test_ends_less(ragged: Ragged) -> None:
    recipe = ragged(ppo=FREE | reward("never_ending"), training=steps(16, 3e-3))
    train(recipe)
    evidence = said(recipe)["ends_less"]["evidence"]
    first = metrics_of(recipe)[:5]
    assert f"at the start it was {100 * sum(line['eos_rate'] for line in first) / 5:.0f}%" in evidence


def test_rises_with_length(ragged: Ragged) -> None:
    recipe = ragged(ppo=FREE | reward("num_tokens") | {"num_ppo_epochs": 1}, training=steps(24, 1e-3))
    train(recipe)
    assert "rises_with_length" in said(recipe)


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_no_spread(method: str, ending: Folders, recipe_of: Recipes, rows: dict[str, str]) -> None:
    rows["grpo"] = rows["ppo"]
    section = {"rollout_batch_size": 4, "num_ppo_epochs": 1, "sampling": {"max_new_tokens": 6, "n": 4}}
    recipe = recipe_of(method, ending(5.0), **{method: section | reward("the_same")}, training=steps(10, 1e-4))
    train(recipe)
    assert said(recipe)["no_spread"]["step"] == 10


def test_value_explains_nothing(ragged: Ragged) -> None:
    """A value model that is not trained."""
    recipe = ragged(ppo=FREE | reward("count_letters") | {"vf_coef": 0.0}, training=steps(20, 1e-4))
    train(recipe)
    assert said(recipe)["value_explains_nothing"]["step"] == 20


def test_engine_gap(ragged: Ragged, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric as an engine apart would have it."""
    plain = Ppo.own_metrics
    monkeypatch.setattr(Ppo, "own_metrics", lambda *args: plain(*args) | {"engine_gap": 0.3})
    recipe = ragged(training=steps(1, 1e-6))
    train(recipe)
    assert "0.3 nats" in said(recipe)["engine_gap"]["evidence"]


def pairs(path: Path, lines: Sequence[tuple[str, str, str]]) -> str:
    path.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in lines))
    return str(path)


def test_chosen_falls(model_folder: Folders, recipe_of: Recipes) -> None:
    """SFT has learnt the chosen completions by heart, so the margin can only grow by what both lose."""
    sft = recipe_of("sft", model_folder("llama"), out="sft", training=steps(40, 1e-2, 8))
    train(sft)
    recipe = recipe_of("dpo", f"{sft.output_dir}/final", dpo={"beta": 1.0}, training=steps(30, 2e-2, 4))
    train(recipe)
    assert "chosen_falls" in said(recipe), [line["reward/chosen"] for line in metrics_of(recipe)]


def test_stuck_at_log_2(model_folder: Folders, recipe_of: Recipes) -> None:
    recipe = recipe_of("dpo", model_folder("llama"), training=steps(24, 1e-9, 4))
    train(recipe)
    assert said(recipe)["stuck_at_log_2"]["step"] == 20


def test_overfits(model_folder: Folders, recipe_of: Recipes, tmp_path: Path) -> None:
    """Labels without a rule: what is learnt of some pairs does not hold for others."""
    words = ["good", "bad", "film", "answer", "here", "yes"]
    random = [(f"the {a}", f" {b} {c}", f" {c} {b}") for a in words for b in words for c in words if b < c]
    train_file, eval_file = (
        pairs(tmp_path / "t.jsonl", random[::7]),
        pairs(tmp_path / "e.jsonl", [(p, r, c) for p, c, r in random[3::7]]),
    )
    recipe = recipe_of("reward", model_folder("llama"), data={"train": train_file, "eval": eval_file},
                       training=steps(40, 3e-3, 8) | {"eval_steps": 4})  # fmt: skip
    train(recipe)
    assert "overfits" in said(recipe)


def test_no_better_than_length(model_folder: Folders, recipe_of: Recipes, tmp_path: Path) -> None:
    longer = [(f"the film {i}", " good" * (i + 2), " good" * (i + 1)) for i in range(8)]
    file = pairs(tmp_path / "longer.jsonl", longer)
    recipe = recipe_of("reward", model_folder("llama"), data={"train": file, "eval": file},
                       training=steps(2, 1e-9, 4) | {"eval_steps": 1})  # fmt: skip
    train(recipe)
    found = said(recipe)["no_better_than_length"]
    assert found["step"] == 2 and "the longer one is right in 100%" in found["evidence"]
    assert metrics_of(recipe)[-1]["eval/ended_wins"] == 0.5  # all of them end


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo", "grpo", "rloo"])
def test_a_healthy_run_is_left_alone(
    method: str, ending: Folders, model_folder: Folders, recipe_of: Recipes, rows: dict[str, str]
) -> None:
    """24 steps in which the method learns what it should."""
    if method in ("sft", "reward", "dpo"):
        sections: dict[str, Any] = {"data": {"eval": rows[method]}, "training": steps(24, 1e-3, 4) | {"eval_steps": 6}}
        recipe = recipe_of(method, model_folder("llama"), **sections)
    else:
        rows |= dict.fromkeys(("grpo", "rloo"), rows["ppo"])
        section = {
            "kl_coef": 0.05,
            "rollout_batch_size": 8,
            "num_ppo_epochs": 2,
            "sampling": {"max_new_tokens": 6, "n": 4},
            "missing_eos": {},
        }
        recipe = recipe_of(
            method, ending(5.0), **{method: section | reward("share_of_letters")}, training=steps(24, 1e-3)
        )
    train(recipe)
    assert said(recipe) == {}
    name = "objective" if method in ("ppo", "grpo", "rloo") else "loss"
    lines = [line for line in metrics_of(recipe) if name in line]
    first, last = (sum(line[name] for line in part) for part in (lines[:5], lines[-5:]))
    assert last > first if name == "objective" else last < first


def test_a_run_stops_where_the_recipe_says_so(
    model_folder: Folders, recipe_of: Recipes, capsys: pytest.CaptureFixture[str]
) -> None:
    """The finding is on file and in the terminal, the checkpoints stay, and without the name the run goes on from them."""
    settings: dict[str, Any] = {"training": steps(24, 1e-9, 4), "checkpoint": {"save_steps": 5}}
    recipe = recipe_of("dpo", model_folder("llama"), doctor={"halt": ["stuck_at_log_2"]}, **settings)
    with pytest.raises(
        RlhfError, match=r"step 20: the loss has stayed at log 2 .*doctor.halt names stuck_at_log_2"
    ) as error:
        run_recipe(recipe)  # type: ignore[arg-type]
    status = json.loads((Path(recipe.output_dir) / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["error"]) == ("failed", 1, str(error.value))
    assert capsys.readouterr().err.count("warning: step 20: the loss has stayed") == 1
    assert metrics_of(recipe)[-1]["step"] == 20 and "stuck_at_log_2" in said(recipe)
    train(recipe_of("dpo", model_folder("llama"), **settings))
    output = capsys.readouterr()
    assert "resumed from" in output.out and metrics_of(recipe)[-1]["step"] == 24


def test_a_resumed_run_says_what_the_unbroken_one_says(model_folder: Folders, recipe_of: Recipes) -> None:
    settings: dict[str, Any] = {"checkpoint": {"save_steps": 2}, "logging": {"logging_steps": 1}}
    whole = recipe_of("dpo", model_folder("llama"), out="whole", training=steps(26, 1e-9, 4), **settings)
    train(whole)
    for cut in (8, 22):  # before the finding, and after it
        part = recipe_of("dpo", model_folder("llama"), out=f"part-{cut}", training=steps(cut, 1e-9, 4), **settings)
        train(part)
        train(part.model_copy(update={"training": whole.training}))
        assert [line.get("findings") for line in metrics_of(part)] == [
            line.get("findings") for line in metrics_of(whole)
        ]


def test_two_processes_stop_together(model_folder: Folders, recipe_of: Recipes) -> None:
    """Also where the finding was half made before the run was interrupted: both have the lines from rank 0."""
    settings: dict[str, Any] = {"checkpoint": {"save_steps": 5}, "doctor": {"halt": ["stuck_at_log_2"]}}
    part = recipe_of("dpo", model_folder("llama"), training=steps(15, 1e-9, 2), **settings)
    whole = recipe_of("dpo", model_folder("llama"), training=steps(24, 1e-9, 2), **settings)
    path = Path(f"{whole.output_dir}.yaml")
    path.write_text(dump(part))  # type: ignore[arg-type]
    in_two("rlhf", "train", str(path))
    path.write_text(dump(whole))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="step 20: the loss has stayed at log 2"):
        in_two("rlhf", "train", str(path))
    status = json.loads((Path(whole.output_dir) / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1) and "doctor.halt names" in status["error"]
    assert [line["step"] for line in metrics_of(whole)] == list(range(1, 21))
    assert (Path(whole.output_dir) / "checkpoints/step-000015/manifest.json").is_file()


def test_an_unknown_finding_is_refused(model_folder: Folders, recipe_of: Recipes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe_of("dpo", model_folder("llama"), doctor={"halt": ["kl_blow_up"]})))  # type: ignore[arg-type]
    with pytest.raises(RecipeError) as error:
        load(str(path), ["doctor.halt=[kl_blow_ups]"])
    said = str(error.value)
    assert "doctor.halt.0: expected one of" in said and "did you mean 'kl_blow_up'?" in said
    assert all(name in said for name in CHECKS)
