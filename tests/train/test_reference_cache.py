"""A reference's log-probabilities computed once: the same training, no second model, and shared by exactly the runs that may share them."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlhf.models import policy
from rlhf.recipe.loader import dump
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens import cache
from rlhf.train import reference_cache, run
from rlhf.train.run import train
from rlhf.train.setup import Setup
from tests.train.conftest import metrics_of
from tests.train.ppo_support import Folders, Recipes
from tests.two_processes import in_two

CACHED = {"cache_reference": True}
NF4 = {"quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and parts of two rows: there are six rows."""
    monkeypatch.setenv("RLHF_TOKENS", str(tmp_path / "tokens"))
    monkeypatch.setattr(reference_cache, "PART", 2)
    return tmp_path / "tokens"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that references were asked about."""
    asked: list[int] = []
    plain = reference_cache.collate

    def count(rows: Any, **options: Any) -> Any:
        asked.append(len(rows))
        return plain(rows, **options)

    monkeypatch.setattr(reference_cache, "collate", count)
    return asked


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-0000?"))


def weights(recipe: TrainRecipe) -> dict[str, torch.Tensor]:
    [path] = (Path(recipe.output_dir) / "final").glob("*model.safetensors")
    return load_file(path)


def losses(recipe: TrainRecipe) -> list[float]:
    return [line["loss"] for line in metrics_of(recipe) if "loss" in line]


@pytest.mark.parametrize("start", ["full", "fresh", "continue", "nf4", "elsewhere"])
def test_it_trains_what_the_reference_in_the_step_trains(
    start: str, recipe_of: Recipes, model_folder: Folders, rows: dict[str, str]
) -> None:
    """After an SFT stage, whose adapters the reference has and the policy goes on from."""
    lora: dict[str, Any] = {} if start in ("full", "elsewhere") else {"lora": {"r": 4}}
    base = lora | (NF4 if start == "nf4" else {})
    sft = recipe_of("sft", model_folder("llama"), out="sft", **base)
    train(sft)
    sections = {"lora": {"r": 4, "start": "fresh" if start == "fresh" else "continue"}} if lora else {}
    dpo = {"reference": model_folder("llama")} if start == "elsewhere" else {}
    options = {"data": {"eval": rows["dpo"]}, "training": {"max_steps": 4, "eval_steps": 2, "learning_rate": 1e-3}}
    plain, cached = (
        recipe_of("dpo", sft.output_dir, out=str(how), dpo=dpo | {"cache_reference": how}, **sections, **options)
        for how in (False, True)
    )
    train(plain)
    train(cached)
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-5)
    assert metrics_of(cached)[-1]["eval/loss"] == pytest.approx(metrics_of(plain)[-1]["eval/loss"], abs=1e-5)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(cached)[name], tensor, rtol=0, atol=1e-4)


def test_a_full_fine_tune_holds_no_second_model(
    recipe_of: Recipes, model_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any) -> Any:
        raise AssertionError(f"a second {type(model).__name__}")

    monkeypatch.setattr(policy, "copy", SimpleNamespace(deepcopy=refuse))
    with pytest.raises(AssertionError, match="a second Policy"):
        train(recipe_of("dpo", model_folder("llama")))
    cached = recipe_of("dpo", model_folder("llama"), dpo=CACHED)
    train(cached)
    assert losses(cached)[0] == pytest.approx(np.log(2), abs=1e-5)


def test_a_reference_from_elsewhere_is_let_go(
    recipe_of: Recipes, model_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    plain = Setup.other_policy

    def remember(setup: Setup, name: str) -> Any:
        other = plain(setup, name)
        loaded.append(weakref.ref(other))
        return other

    def none_is_left(*_: Any, **__: Any) -> dict[str, float]:
        gc.collect()
        assert [reference() for reference in loaded] == [None]
        return {}

    monkeypatch.setattr(Setup, "other_policy", remember)
    monkeypatch.setattr(run, "fit", none_is_left)
    train(recipe_of("dpo", model_folder("llama"), dpo=CACHED | {"reference": model_folder("gpt2")}))


def test_of_a_conversation_the_trained_turns_count(recipe_of: Recipes, model_folder: Folders, tmp_path: Path) -> None:
    """Sides that differ in several turns, with a user's turns between: three rows, so two parts."""

    def said(*turns: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]

    pairs = [
        {
            "chosen": said("a film?", "good", "well?", f"{n} yes"),
            "rejected": said("a film?", "no", "well?", "I like", "here", f"{n}"),
        }
        for n in "123"
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = {"train": str(path), "template": {"train_on": "all"}, "max_length": 256}
    options = {"data": data, "training": {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3}}
    plain, cached = (
        recipe_of("dpo", model_folder("llama"), out=str(how), dpo={"cache_reference": how}, **options)
        for how in (False, True)
    )
    train(plain)
    train(cached)
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-5)
    assert losses(plain)[-1] < losses(plain)[0] - 1e-3


def test_runs_share_what_they_may_share(
    recipe_of: Recipes, model_folder: Folders, made: list[int], own_cache: Path
) -> None:
    """Three parts of two rows; another seed, beta, rate, batch or number of steps asks nothing again."""
    train(recipe_of("dpo", model_folder("llama"), out="one", dpo=CACHED))
    assert made == [2, 2, 2] and len(parts(own_cache)) == 3
    others: list[dict[str, Any]] = [
        {"seed": 7},
        {"dpo": CACHED | {"beta": 0.3}},
        {"training": {"learning_rate": 1e-3, "max_steps": 2, "per_device_train_batch_size": 2}},
        {"lora": {"r": 4}},
    ]
    for i, other in enumerate(others):
        train(recipe_of("dpo", model_folder("llama"), out=f"other{i}", **{"dpo": CACHED} | other))
        assert made == [2, 2, 2], other


@pytest.mark.parametrize("what", ["model", "rows", "reference", "batch", "batching", "bf16", "weights"])
def test_and_nothing_else(
    what: str, recipe_of: Recipes, model_folder: Folders, rows: dict[str, str], made: list[int], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_folder("llama"), base)
    train(recipe_of("dpo", str(base), out="one", dpo=CACHED, training={"max_steps": 1}))
    made.clear()
    other: dict[str, Any] = {"dpo": CACHED}
    match what:
        case "model":
            base = Path(model_folder("gpt2"))
        case "rows":
            lines = Path(rows["dpo"]).read_text().splitlines()
            Path(rows["dpo"]).write_text("\n".join([*lines[:-1], lines[-1].replace("10", "100")]) + "\n")
        case "reference":
            other = {"dpo": CACHED | {"reference": model_folder("gpt2")}}
        case "batch":
            other |= {"training": {"max_steps": 1, "per_device_eval_batch_size": 1}}
        case "batching":
            other |= {"model": {"batching": "padded"}}
        case "bf16":
            other |= {"training": {"max_steps": 1, "bf16": True}}
        case "weights":  # under the same name
            state = load_file(base / "model.safetensors")
            state["lm_head.weight"][0, 0] += 1.0
            from safetensors.torch import save_file

            save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    train(recipe_of("dpo", str(base), out="two", **{"training": {"max_steps": 1}} | other))
    assert sum(made) == 6


def test_a_run_that_was_killed_goes_on_with_the_next_part(
    recipe_of: Recipes, model_folder: Folders, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("dpo", model_folder("llama"), dpo=CACHED)
    plain, calls = reference_cache._logprobs, []

    def dies(model: Any, batch: Any) -> Any:
        calls.append(len(batch))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(model, batch)

    monkeypatch.setattr(reference_cache, "_logprobs", dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    assert len(parts(own_cache)) == 1
    train(recipe)
    assert calls == [2, 2, 2, 2] and len(parts(own_cache)) == 3


def test_a_damaged_part_is_made_again(
    recipe_of: Recipes, model_folder: Folders, own_cache: Path, made: list[int]
) -> None:
    train(recipe_of("dpo", model_folder("llama"), out="one", dpo=CACHED))
    before = losses(recipe_of("dpo", model_folder("llama"), out="one"))
    file = parts(own_cache)[1] / "logprobs.npy"
    file.write_bytes(file.read_bytes()[:-4])
    again = recipe_of("dpo", model_folder("llama"), out="two", dpo=CACHED)
    train(again)
    assert made == [2, 2, 2, 2] and losses(again) == before


def test_two_processes_share_the_work(recipe_of: Recipes, model_folder: Folders, own_cache: Path) -> None:
    """Parts are whole there (1,024 rows), so one rank makes the only one; both train on it as one process does."""
    one = recipe_of("dpo", model_folder("llama"), out="one", dpo=CACHED, training={"learning_rate": 1e-3})
    two = recipe_of(
        "dpo",
        model_folder("llama"),
        out="two",
        dpo=CACHED,
        training={"learning_rate": 1e-3, "per_device_train_batch_size": 2},
    )
    train(one)
    path = Path(two.output_dir).with_suffix(".yaml")
    path.write_text(dump(two))  # type: ignore[arg-type]
    in_two("rlhf", "train", str(path))
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)


def test_the_cache_is_listed_and_cleaned_with_the_tokens(
    recipe_of: Recipes, model_folder: Folders, own_cache: Path
) -> None:
    train(recipe_of("dpo", model_folder("llama"), dpo=CACHED))
    listed = [entry for entry in cache.entries() if "log-probabilities by" in entry.sources[0]]
    assert sum(entry.rows for entry in listed) == 6
    report = json.loads((parts(own_cache)[0] / "report.json").read_text())["report"]
    assert report["sources"][0]["path"] == f"log-probabilities by {model_folder('llama')}"
    cache.clean()
    assert not parts(own_cache)
