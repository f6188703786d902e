"""The reward model against TRL's RewardTrainer and transformers' sequence classification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.reward import Reward
from tests.parity.support import (
    PAIR_ROWS,
    arguments,
    gradients,
    needs_trl,
    perturb,
    rendered,
    setup,
    trl,
    worst,
    worst_gradient,
)

pytestmark = needs_trl
Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]


def trainer_of(folder: str, rows: list[dict[str, Any]], out: Path, pad: str, center: float | None = None) -> Any:
    from datasets import Dataset

    module = trl("trl.trainer.reward_trainer")
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    args = arguments(module.RewardConfig, out, center_rewards_coefficient=center)
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = pad
    data = Dataset.from_list(rows)
    return module.RewardTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)


def stage_like(trainer: Any, recipe: TrainRecipe, segments: list[Segment]) -> Reward:
    """Our stage with TRL's body, and its `score` weight as the head; both a little off where they were loaded."""
    stage = Reward(recipe, setup(recipe, segments))
    perturb(trainer.model, seed=2)
    stage.module.transformer.load_state_dict(trainer.model.base_model.state_dict())
    with torch.no_grad():
        stage.module.head.weight.copy_(trainer.model.score.weight)
        stage.module.head.bias.zero_()
    return stage


def forward(trainer: Any) -> tuple[dict[str, Any], torch.Tensor]:
    """TRL's inputs, and its scores in our order (chosen, rejected of each pair in turn)."""
    inputs = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    with torch.no_grad():
        scores = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return inputs, scores.view(2, -1).T.flatten()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("margin", "center"), [(False, None), (True, None), (False, 0.05), (True, 0.05)])
def test_scores_loss_and_gradients(
    name: str, margin: bool, center: float | None, recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    rows = [row | ({"margin": 0.25 * i} if margin else {}) for i, row in enumerate(PAIR_ROWS)]
    reward = {"use_margin": margin, "center_coefficient": center or 0.0}
    recipe = recipe_of("reward", model_folder(name), reward=reward)
    segments = rendered(recipe, rows)
    trainer = trainer_of(model_folder(name), rows, tmp_path, pad="<|pad|>", center=center)
    for row, segment in zip(trainer.train_dataset, segments, strict=True):
        chosen, rejected = ([*segment.prompt_ids, *c] for c in segment.completion_ids)
        assert [chosen, rejected] == [row["chosen_ids"], row["rejected_ids"]]

    stage = stage_like(trainer, recipe, segments)
    batch = collate(segments)
    inputs, scores = forward(trainer)
    assert stage.module.segments
    assert worst(stage.module(batch), scores) <= 1e-5
    count = torch.tensor(stage.count(batch))
    assert count == len(rows)
    output = stage.forward_loss(stage.module, batch, count)
    output.loss.backward()
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    assert output.loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    mode = "train" if trainer.model.training else "eval"
    for metric in ("accuracy", "margin"):
        assert output.metrics[metric].item() == pytest.approx(trainer._metrics[mode][metric][-1], rel=1e-5, abs=1e-6)
    ours, other = gradients(stage.module.transformer), gradients(trainer.model.base_model)
    ours["score"], other["score"] = stage.module.head.weight.grad, trainer.model.score.weight.grad
    assert worst_gradient(ours, other) <= 1e-4


def test_where_pad_is_eos_transformers_scores_the_token_before_eos(
    recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    """Its pooling takes the last token that is not the pad token, by id; ours is the last token, by place."""
    recipe = recipe_of("reward", model_folder("llama"))
    segments = rendered(recipe, PAIR_ROWS)
    trainer = trainer_of(model_folder("llama"), PAIR_ROWS, tmp_path, pad="<|im_end|>")
    stage = stage_like(trainer, recipe, segments)
    _, scores = forward(trainer)
    cut = [Segment(s.prompt_ids, [list(c)[:-1] for c in s.completion_ids]) for s in segments]
    with torch.no_grad():
        assert worst(stage.module(collate(cut)), scores) <= 1e-5
        assert (stage.module(collate(segments)) - scores).abs().min() > 1e-3
