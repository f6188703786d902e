"""A full fine-tune's final/ in another dtype than it was trained in: the loss is said, and the next stage starts from what is stored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from rlhf.models.load import load_policy, load_scalar_model
from rlhf.models.probe import check_probe
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_a_final_in_bfloat16_says_what_it_lost(
    method: str,
    recipe_of: Callable[..., TrainRecipe],
    model_folder: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = recipe_of(method, model_folder("llama"), training={"max_steps": 3}, checkpoint={"final_dtype": "bfloat16"})
    train(made)
    found = re.search(r"stored in bfloat16, trained in float32: off by (\S+) on 4 rows", capsys.readouterr().out)
    assert found is not None and 0 < float(found[1]) < 0.03
    final = Path(made.output_dir) / "final"
    with safe_open(final / "model.safetensors", "pt") as weights:
        dtypes = {name: weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    dtypes.pop("score.weight", None)  # of a classifier: the head stays as it was
    assert set(dtypes.values()) == {torch.bfloat16}
    load = load_policy if method == "sft" else load_scalar_model
    again = load(ModelSection(name_or_path=str(final)))  # as the next stage does, in float32: exact, to the stored
    assert check_probe(again, final) == pytest.approx(0.0, abs=1e-5)
    follows = recipe_of("sft" if method == "sft" else "reward", str(final), out="next", training={"max_steps": 1})
    train(follows)
    assert json.loads((Path(follows.output_dir) / "final/lineage.json").read_text())["parents"]


def test_adapters_have_no_such_choice(
    recipe_of: Callable[..., TrainRecipe], model_folder: Callable[[str], str]
) -> None:
    with pytest.raises(
        ValidationError, match=r"checkpoint\.final_dtype: is of full fine-tunes; adapters are always stored"
    ):
        recipe_of("sft", model_folder("llama"), lora={"r": 2}, checkpoint={"final_dtype": "bfloat16"})
