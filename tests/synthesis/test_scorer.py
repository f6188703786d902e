"""A reward model as the scorer of a step: it sees the very ids that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import RecipeError
from rlhf.models.lineage import saved_template
from rlhf.models.load import load_scalar_model
from rlhf.recipe.sections import ModelSection, TemplateSection
from rlhf.synthesis import score
from rlhf.tokens.segments import collate
from rlhf.tokens.template import Renderer
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.run import train
from tests.train.conftest import model_folder, recipe_of, rows  # noqa: F401  (fixtures)


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_its_scores_are_those_of_the_rows_it_was_trained_on(
    kind: str,
    model_folder: Callable[[str], str],  # noqa: F811
    recipe_of: Callable[..., Any],  # noqa: F811
) -> None:
    recipe = recipe_of("reward", model_folder("llama"), out=f"rm-{kind}", training={"max_steps": 2})
    data = recipe.data.model_copy(update={"template": TemplateSection(kind=kind)})
    recipe = recipe.model_copy(update={"data": data})
    train(recipe)
    folder = str(Path(recipe.output_dir) / "final")
    ranking = {"prompt": "a good film?", "completions": ["yes", "no, it was not good", "좋은 영화"]}
    made, report = score([ranking], model=folder)

    renderer = Renderer(load_tokenizer(folder), saved_template(Path(folder)) or TemplateSection())
    assert renderer.section.kind == kind
    model = load_scalar_model(ModelSection(name_or_path=folder)).eval()
    segments = [renderer.segment({"prompt": ranking["prompt"], "completion": c}) for c in ranking["completions"]]
    with torch.no_grad():
        raw = [model(collate([segment])).item() for segment in segments]
    assert model.scale is not None
    expected = [(value - model.scale.mean) / model.scale.std for value in raw]
    assert made[0]["scores"] == pytest.approx(expected, abs=1e-4)
    assert len(set(made[0]["scores"])) == 3
    assert report["mean_score"] == pytest.approx(sum(expected) / 3, abs=1e-4)

    if kind == "chat":
        asked = [{"role": "user", "content": "a good film?"}]
        turns = [[{"role": "assistant", "content": c}] for c in ranking["completions"]]
        conversation, _ = score([{"prompt": asked, "completions": turns}], model=folder)
        assert conversation[0]["scores"] == pytest.approx(expected, abs=1e-4)


def test_a_model_that_is_no_reward_model_is_refused(model_folder: Callable[[str], str]) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match="is not a reward model"):
        score([{"prompt": "p", "completions": ["a", "b"]}], model=model_folder("llama"))
