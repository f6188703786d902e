"""SFT against `AutoModelForCausalLM(..., labels=...)` and TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.sft import Sft
from tests.parity.support import (
    DEMONSTRATIONS,
    arguments,
    gradients,
    needs_trl,
    rendered,
    setup,
    trl,
    worst,
    worst_gradient,
)

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]


def labelled(segments: list[Segment], pad: int, loss_on: str) -> dict[str, torch.Tensor]:
    """The rows right-padded, with labels made here by hand: -100 on padding, and on prompts unless all is trained."""
    rows = [([*s.prompt_ids, *s.completion_ids[0]], len(s.prompt_ids)) for s in segments]
    width = max(len(ids) for ids, _ in rows)
    ids, labels, mask = [], [], []
    for row, prompt in rows:
        padding = width - len(row)
        ids.append(row + [pad] * padding)
        masked = [-100] * prompt + row[prompt:] if loss_on == "completion" else row
        labels.append(masked + [-100] * padding)
        mask.append([1] * len(row) + [0] * padding)
    return {k: torch.tensor(v) for k, v in (("input_ids", ids), ("labels", labels), ("attention_mask", mask))}


@pytest.mark.parametrize("loss_on", ["completion", "all"])
@pytest.mark.parametrize("count", [1, len(DEMONSTRATIONS)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_loss_and_gradients(name: str, count: int, loss_on: str, recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = recipe_of("sft", model_folder(name), sft={"loss_on": loss_on})
    segments = rendered(recipe, DEMONSTRATIONS)[:count]
    stage = Sft(recipe, setup(recipe, segments))
    assert stage.module.segments
    batch = collate(segments, score_prompt=loss_on == "all")
    theirs = AutoModelForCausalLM.from_pretrained(model_folder(name)).eval()
    inputs = labelled(segments, load_tokenizer(model_folder(name)).pad_token_id, loss_on)
    trained = int((inputs["labels"][:, 1:] != -100).sum())
    assert stage.count(batch) == trained
    ours = stage.forward_loss(stage.module, batch, torch.tensor(float(trained)))
    expected = theirs(**inputs).loss
    assert ours.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    ours.loss.backward()
    expected.backward()
    assert worst_gradient(gradients(stage.module.transformer), gradients(theirs)) <= 1e-5
    # the normaliser of a larger step, as the loop gives it under accumulation
    share = stage.forward_loss(stage.module, batch, torch.tensor(1000.0)).loss
    assert share.item() == pytest.approx(theirs(**inputs, num_items_in_batch=1000).loss.item(), rel=1e-6)


def test_the_loop_trains_on_what_the_recipe_says(recipe_of: Recipes, model_folder: Folders) -> None:
    """The stage's own window, not a batch made here, has the loss that transformers gives over all its rows."""
    losses = []
    for loss_on in ("completion", "all"):
        training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
        recipe = recipe_of("sft", model_folder("llama"), sft={"loss_on": loss_on}, training=training)
        segments = rendered(recipe, DEMONSTRATIONS)
        stage = Sft(recipe, setup(recipe, segments))
        [update] = stage.updates(0)
        window = update.microbatches
        assert len(window) == 3
        count = torch.tensor(float(sum(stage.count(m.batch) for m in window)))
        ours = sum(stage.forward_loss(stage.module, m.batch, count).loss.item() for m in window)
        theirs = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
        losses.append(theirs(**labelled(segments, 0, loss_on)).loss.item())
        assert ours == pytest.approx(losses[-1], rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gemma3"])
def test_packed_documents_do_not_see_each_other(name: str, recipe_of: Recipes, model_folder: Folders) -> None:
    """Exchange every token of one document: the log-probabilities of the others are bitwise the same."""
    recipe = recipe_of("sft", model_folder(name))
    segments = rendered(recipe, DEMONSTRATIONS)
    stage = Sft(recipe, setup(recipe, segments))
    assert stage.module.segments
    vocabulary = stage.module.transformer.config.vocab_size

    def other(ids: Any) -> list[int]:
        return [(7 * i + 5) % vocabulary for i in ids]

    for k in range(len(segments)):
        changed = list(segments)
        changed[k] = Segment(other(segments[k].prompt_ids), [other(c) for c in segments[k].completion_ids])
        with torch.no_grad():
            before, after = (stage.module(collate(s)) for s in (segments, changed))
        mine = collate(segments).rows == k
        assert torch.equal(before[~mine], after[~mine])
        assert not torch.isclose(before[mine], after[mine]).any()


@needs_trl
@pytest.mark.parametrize("completion_only", [True, False])
def test_trls_trainer(completion_only: bool, recipe_of: Recipes, model_folder: Folders, tmp_path: Path) -> None:
    from datasets import Dataset

    module = trl("trl.trainer.sft_trainer")
    folder = model_folder("llama")
    recipe = recipe_of("sft", folder, sft={"loss_on": "completion" if completion_only else "all"})
    segments = rendered(recipe, DEMONSTRATIONS)
    trainer = module.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        args=arguments(module.SFTConfig, tmp_path, completion_only_loss=completion_only),
        train_dataset=Dataset.from_list(DEMONSTRATIONS),
        processing_class=load_tokenizer(folder),
    )
    for row, segment in zip(trainer.train_dataset, segments, strict=True):
        ids = [*segment.prompt_ids, *segment.completion_ids[0]]
        assert row["input_ids"] == ids
        skipped = len(segment.prompt_ids) if completion_only else 0
        assert row["labels"] == [-100] * skipped + ids[skipped:]
    inputs = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    stage = Sft(recipe, setup(recipe, segments))
    batch = collate(segments, score_prompt=not completion_only)
    with torch.no_grad():
        output = trainer.model(**inputs, fused_lm_head=True, use_cache=False)
        expected = output.log_probs[inputs["labels"][:, 1:] != -100]
        assert worst(stage.module(batch), expected) <= 1e-5
    ours = stage.forward_loss(stage.module, batch, torch.tensor(float(batch.num_targets))).loss
    theirs = trainer.compute_loss(trainer.model, inputs)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    assert worst_gradient(gradients(stage.module.transformer), gradients(trainer.model)) <= 1e-5
