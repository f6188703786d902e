"""Evaluation loads each model as it was trained or stored, or as the recipe says; and so `rlhf generate`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.evaluate import preferences, sampling
from rlhf.evaluate.run import evaluate
from rlhf.generation import reward_scorer
from rlhf.generation import run as generation
from rlhf.generation.run import generate
from rlhf.models.batching import SegmentModule
from rlhf.recipe.schema import RECIPE, EvalRecipe, GenerateRecipe
from tests.evaluate.conftest import write_rows

Make = Callable[..., EvalRecipe]
Loads = list[tuple[str, torch.dtype, bool]]
PAIRS = [{"prompt": "I like", "chosen": " it", "rejected": " a film"}]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    """Of each model that is loaded: its folder's name, its dtype, whether it is in 4 bits."""
    seen: Loads = []

    def watched(load: Callable[..., SegmentModule]) -> Callable[..., SegmentModule]:
        def loaded(section: Any, **options: Any) -> SegmentModule:
            model = load(section, **options)
            bits = any(type(m).__name__ == "Linear4bit" for m in model.modules())
            seen.append((Path(section.name_or_path).name, model.transformer.dtype, bits))
            return model

        return loaded

    for module, name in (
        (sampling, "load_policy"),
        (generation, "load_policy"),
        (preferences, "load_scalar_model"),
        (reward_scorer, "load_scalar_model"),
    ):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    return seen


@pytest.fixture
def folders(models: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """A in float32; H, the same in bfloat16; R, a reward model stored in bfloat16."""
    half = tmp_path / "H"
    shutil.copytree(models["A"], half)
    AutoModelForCausalLM.from_pretrained(models["A"], dtype=torch.bfloat16).save_pretrained(half)
    reward = tmp_path / "R"
    shutil.copytree(models["R"], reward)
    config = json.loads((reward / "config.json").read_text()) | {"dtype": "bfloat16"}
    (reward / "config.json").write_text(json.dumps(config))
    return {"A": models["A"], "H": str(half), "R": str(reward)}


def compared(recipe_of: Make, folders: dict[str, str], tmp_path: Path, **sections: Any) -> EvalRecipe:
    named = [{"name": name, "name_or_path": folders[name]} for name in "AH"]
    pairs = [{"path": write_rows(tmp_path / "pairs.jsonl", PAIRS)}]
    return recipe_of("A", models=named, reward_model=folders["R"], preferences=pairs, **sections)


def by_name(loads: Loads, folders: dict[str, str]) -> dict[str, set[tuple[torch.dtype, bool]]]:
    names = {Path(path).name: name for name, path in folders.items()}
    return {name: {(d, b) for n, d, b in loads if names[n] == name} for name in {names[n] for n, _, _ in loads}}


def test_each_model_is_loaded_as_it_is_stored(
    recipe_of: Make, folders: dict[str, str], loads: Loads, tmp_path: Path
) -> None:
    report = evaluate(compared(recipe_of, folders, tmp_path))
    half, full = (torch.bfloat16, False), (torch.float32, False)
    assert by_name(loads, folders) == {"A": {full}, "H": {half}, "R": {half}}
    assert len(loads) == 4  # the reward model scores the samples, and is measured on the pairs
    assert report["dtype"] == "dtype as trained or stored"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_is_for_all_models(
    dtype: str, recipe_of: Make, folders: dict[str, str], loads: Loads, tmp_path: Path
) -> None:
    report = evaluate(compared(recipe_of, folders, tmp_path, dtype=dtype))
    assert {(d, b) for _, d, b in loads} == {(getattr(torch, dtype), False)}
    assert report["dtype"] == dtype


def test_whole_models_are_evaluated_in_4_bits(
    recipe_of: Make, folders: dict[str, str], loads: Loads, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    report = evaluate(compared(recipe_of, folders, tmp_path, quantization={"load_in_4bit": True}))
    found = by_name(loads, folders)
    assert found["A"] == {(torch.float32, True)} and found["H"] == {(torch.bfloat16, True)}
    assert (torch.bfloat16, True) in found["R"]
    assert report["quantization"]["load_in_4bit"]


@pytest.mark.parametrize("bits", [False, True], ids=["dense", "nf4"])
def test_generate_loads_its_model_as_it_is_stored(
    bits: bool, folders: dict[str, str], loads: Loads, tmp_path: Path
) -> None:
    if bits:
        pytest.importorskip("bitsandbytes")
    recipe = RECIPE.validate_python(
        {
            "method": "generate",
            "output_dir": str(tmp_path / "out"),
            "model": {"name_or_path": folders["H"]},
            "quantization": {} if bits else None,
            "prompts": [{"path": write_rows(tmp_path / "prompts.jsonl", [{"prompt": "I like"}])}],
            "sampling": {"max_new_tokens": 4, "n": 2},
            "scorers": [{"model": folders["R"]}],
        }
    )
    assert isinstance(recipe, GenerateRecipe)
    generate(recipe)
    assert by_name(loads, folders) == {"H": {(torch.bfloat16, bits)}, "R": {(torch.bfloat16, bits)}}
