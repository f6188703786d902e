"""PPO-ptx: given rows beside the policy's own samples. Where the samples teach nothing it must be SFT, to the last step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.errors import CheckpointError, DataError
from rlhf.recipe.loader import dump
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.ptx import GivenRows
from rlhf.train.run import train
from tests.train.conftest import REVIEWS, metrics_of
from tests.train.ppo_support import Folders, Recipes, stage_of
from tests.two_processes import in_two

Ragged = Callable[..., TrainRecipe]
LEARNS_NOTHING = {"kl_coef": 0.0, "num_ppo_epochs": 2, "rewards": [{"callable": "tests.train.rewards:the_same"}]}
ONLINE = {"rollout_batch_size": 4, "sampling": {"max_new_tokens": 4, "n": 2}}


def weights(recipe: TrainRecipe) -> dict[str, torch.Tensor]:
    [path] = (Path(recipe.output_dir) / "final").glob("*model.safetensors")
    return load_file(path)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(a[name], b[name], rtol=0, atol=2e-5) for name in b)


@pytest.fixture
def alone(recipe_of: Recipes, model_folder: Folders, rows: dict[str, str]) -> Callable[..., TrainRecipe]:
    """RLOO whose samples all score the same, so that only the given rows teach; and SFT on these rows."""
    rows |= dict.fromkeys(("rloo", "grpo"), rows["ppo"])

    def make(
        method: str = "rloo",
        *,
        out: str = "",
        loss_on: str = "completion",
        steps: int = 3,
        lora: Any = None,
        **own: Any,
    ) -> TrainRecipe:
        each = {"learning_rate": 1e-3, "per_device_train_batch_size": 2}
        if method == "sft":
            training = each | {"max_steps": 2 * steps, "gradient_accumulation_steps": 2}
            return recipe_of("sft", model_folder("llama"), out="sft", training=training, sft={"loss_on": loss_on})
        ptx = {"train": rows["sft"], "rows": 4, "loss_on": loss_on}
        sections = {method: ONLINE | LEARNS_NOTHING | {"ptx": ptx} | own, "lora": lora}
        return recipe_of(
            method, model_folder("llama"), out=out or method, training=each | {"max_steps": steps}, **sections
        )

    return make


@pytest.mark.parametrize("method", ["rloo", "grpo", "ppo"])
@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_where_the_samples_teach_nothing_it_is_sft(
    method: str, loss_on: str, alone: Callable[..., TrainRecipe]
) -> None:
    """Two optimizer steps an iteration, two microbatches a step: the same rows in the same order as SFT's six steps."""
    mixed, plain = alone(method, loss_on=loss_on), alone("sft", loss_on=loss_on)
    train(mixed)
    train(plain)
    assert close(weights(mixed), weights(plain))
    losses = [line["loss"] for line in metrics_of(plain)]
    pairs = [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]
    assert [line["ptx/loss"] for line in metrics_of(mixed)] == pytest.approx(pairs, abs=1e-5)
    if method != "grpo":  # whose loss holds a KL that is not zero from the second step on
        assert [line["loss"] for line in metrics_of(mixed)] == pytest.approx(pairs, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rloo", {}),
        ("ppo", {}),
        ("ppo", {"lora": {"r": 4}}),
        ("ppo", {"value": "shared", "lora": {"r": 4}}),
    ],
)
def test_two_processes_share_the_rows(method: str, options: dict[str, Any], alone: Callable[..., TrainRecipe]) -> None:
    """Also beside a value model, whose parameters have no part in the given rows."""
    one, two = (alone(method, out=out, **options) for out in ("one", "two"))
    train(one)
    path = Path(two.output_dir).with_suffix(".yaml")
    path.write_text(dump(two))  # type: ignore[arg-type]
    in_two("rlhf", "train", str(path))
    assert close(weights(two), weights(one))
    assert [line["ptx/loss"] for line in metrics_of(two)] == pytest.approx(
        [line["ptx/loss"] for line in metrics_of(one)], abs=1e-5
    )


@pytest.mark.parametrize("value", ["own", "shared"])
def test_its_loss_is_the_mean_over_the_steps_rows(
    value: str, recipe_of: Recipes, model_folder: Folders, rows: dict[str, str]
) -> None:
    """Against transformers' own forward pass, one row at a time; the value model has no part in it."""
    ptx = {"train": rows["sft"], "rows": 6, "coef": 0.3}
    recipe = recipe_of("ppo", model_folder("llama"), ppo={"value": value, "ptx": ptx})
    stage = stage_of(recipe)
    update = next(stage.updates(0))
    given = [m.batch for m in update.microbatches if isinstance(m.batch, GivenRows)]
    assert [type(m.batch) is GivenRows for m in update.microbatches][: len(given)] == [True] * len(given)
    outputs = [stage.forward_loss(stage.module, batch, torch.tensor(1.0)) for batch in given]
    sum(output.loss for output in outputs).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for name, p in stage.module.named_parameters() if name.startswith("value_model."))
    network = AutoModelForCausalLM.from_pretrained(model_folder("llama")).double()
    tokenizer = load_tokenizer(model_folder("llama"))
    total, trained = torch.zeros((), dtype=torch.float64), 0
    for prompt, completion, _ in REVIEWS:
        first, rest = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, completion))
        rest = [*rest, tokenizer.eos_token_id]
        logprobs = network(torch.tensor([first + rest])).logits[0].log_softmax(-1)
        total = total - logprobs[range(len(first) - 1, len(first + rest) - 1), rest].sum()
        trained += len(rest)
    (0.3 * total / trained).backward()  # type: ignore[no-untyped-call]
    assert sum(float(o.metrics["ptx/loss"]) for o in outputs) == pytest.approx(
        float(total.detach() / trained), rel=1e-5
    )
    ours = dict(stage.policy.transformer.named_parameters())
    for name, p in network.named_parameters():
        torch.testing.assert_close(ours[name].grad.double(), p.grad, rtol=1e-3, atol=1e-6)


def test_it_goes_on_where_it_was_cut(ragged: Ragged, rows: dict[str, str]) -> None:
    """An iteration that a target KL ends early still counts all of its optimizer steps."""
    ppo = {"num_ppo_epochs": 4, "target_kl": 1e-3, "kl_coef": 0.0, "ptx": {"train": rows["sft"], "rows": 2}}
    options: dict[str, Any] = {"checkpoint": {"save_steps": 1}, "training": {"max_steps": 4, "learning_rate": 3e-3}}
    whole = ragged(out="whole", ppo=dict(ppo), **options)
    train(whole)
    assert any(line["updates"] < 4 for line in metrics_of(whole))
    part = ragged(out="part", ppo=dict(ppo), **options | {"training": options["training"] | {"max_steps": 2}})
    train(part)
    train(part.model_copy(update={"training": whole.training}))
    assert all(torch.equal(weights(part)[name], tensor) for name, tensor in weights(whole).items())


def test_while_the_value_warms_up_the_policy_stays(ragged: Ragged, rows: dict[str, str]) -> None:
    ppo = {"value_warmup_steps": 2, "ptx": {"train": rows["sft"], "rows": 2}}
    recipe = ragged(ppo=ppo, training={"max_steps": 2, "learning_rate": 1e-2})
    train(recipe)
    before = load_file(Path(recipe.model.name_or_path) / "model.safetensors")
    assert all(torch.equal(weights(recipe)[name], tensor) for name, tensor in before.items())
    assert all("ptx/loss" not in line for line in metrics_of(recipe))


def test_what_became_of_the_rows_is_told_and_other_rows_are_refused(ragged: Ragged, rows: dict[str, str]) -> None:
    recipe = ragged(
        ppo={"ptx": {"train": rows["sft"], "rows": 2}}, checkpoint={"save_steps": 2}, training={"max_steps": 2}
    )
    train(recipe)
    report = json.loads((Path(recipe.output_dir) / "data.json").read_text())
    assert report["ptx"]["rows_out"] == len(REVIEWS)
    assert "- ptx: `" in (Path(recipe.output_dir) / "final/README.md").read_text()
    Path(rows["sft"]).write_text('{"prompt": "It is", "completion": " bad"}\n')
    with pytest.raises(CheckpointError, match="given"):
        train(recipe)


def test_rows_that_are_too_long_are_named(ragged: Ragged, rows: dict[str, str]) -> None:
    Path(rows["sft"]).write_text(json.dumps({"prompt": "It is", "completion": " good" * 100}) + "\n")
    with pytest.raises(DataError, match=r"sft\.jsonl.*\b1 of 1 rows of ppo\.ptx\.train are too long"):
        train(ragged(ppo={"ptx": {"train": rows["sft"]}}))


@pytest.mark.parametrize(
    ("ptx", "message"),
    [
        ({"train": "nowhere.jsonl"}, "ppo.ptx.train.0.path"),
        ({"train": "prompts"}, "ppo.ptx.train.0.path: these are prompt rows"),
        ({"train": "sft", "rows": 3}, "ppo.ptx.rows: 3 rows cannot be shared evenly by 2 processes"),
    ],
)
def test_check_finds_what_cannot_run(
    ptx: dict[str, Any],
    message: str,
    ragged: Ragged,
    rows: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {"sft": rows["sft"], "prompts": rows["ppo"]}
    recipe = ragged(ppo={"ptx": ptx | {"train": files.get(ptx["train"], ptx["train"])}})
    (tmp_path / "ppo.yaml").write_text(dump(recipe))  # type: ignore[arg-type]
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "ppo.yaml")])
    assert result.exit_code == 2 and message in result.stderr
