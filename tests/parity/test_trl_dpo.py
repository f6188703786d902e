"""DPO against TRL's DPOTrainer: its tokens, its collator, its forward pass, its loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import collate
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.dpo import Dpo
from tests.parity.support import (
    CHAT_PAIRS,
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
METRICS = {
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "reward/chosen": "rewards/chosen",
    "reward/rejected": "rewards/rejected",
    "logprobs/chosen": "logps/chosen",
    "logprobs/rejected": "logps/rejected",
}


def trainer_of(folder: str, rows: list[dict[str, Any]], out: Path, beta: float = 0.1) -> Any:
    """TRL's trainer with a policy and a reference of its own, both the model in `folder`."""
    from datasets import Dataset

    module = trl("trl.trainer.dpo_trainer")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    args = arguments(module.DPOConfig, out, beta=beta)
    tokenizer = load_tokenizer(folder)
    data = Dataset.from_list(rows)
    return module.DPOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer)


def same_tokens(trainer: Any, segments: list[Any]) -> None:
    for row, segment in zip(trainer.train_dataset, segments, strict=True):
        assert list(segment.prompt_ids) == row["prompt_ids"]
        assert [list(c) for c in segment.completion_ids] == [row["chosen_ids"], row["rejected_ids"]]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("batching", ["segments", "padded"])
def test_logprobs_loss_metrics_and_gradients(
    batching: str, beta: float, name: str, recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    model = {"name_or_path": model_folder(name), "batching": batching}
    recipe = recipe_of("dpo", model_folder(name), model=model, dpo={"beta": beta})
    segments = rendered(recipe, PAIR_ROWS)
    trainer = trainer_of(model_folder(name), PAIR_ROWS, tmp_path, beta)
    same_tokens(trainer, segments)
    tokenizer = load_tokenizer(model_folder(name))
    assert all(c[-1] == tokenizer.eos_token_id for s in segments for c in s.completion_ids)

    stage = Dpo(recipe, setup(recipe, segments))
    perturb(stage.module, seed=1)
    trainer.model.load_state_dict(stage.module.transformer.state_dict())
    trainer.model.train()
    batch = collate(segments)
    inputs = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    lengths = inputs["completion_mask"].sum(1).view(2, -1).T.flatten()  # chosen, rejected of each pair in turn
    assert lengths.tolist() == batch.lengths.tolist() and len(set(lengths.tolist())) > 4

    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    order = torch.arange(2 * len(segments)).view(2, -1).T.flatten()
    sides = [(stage.module, trainer.model), (stage.reference, trainer.ref_model)]
    per_token = []
    with torch.no_grad():
        for ours, theirs in sides:
            model_inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
            logprobs = theirs(**model_inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs
            scored = labels[:, 1:] != -100
            expected = torch.cat([logprobs[row][scored[row]] for row in order])
            assert worst(ours(batch), expected) <= 1e-5
            assert worst(batch.sum_rows(ours(batch)), logprobs.sum(1)[order]) <= 1e-5
            per_token.append(expected)
    assert (per_token[0] - per_token[1]).abs().mean() > 0.05  # the policy has left its reference

    loss = stage.forward_loss(stage.module, batch, torch.tensor(float(len(segments))))
    loss.loss.backward()
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    rounding = 2e-5  # of a sum of some 200 nats in float32; beta weighs the difference of such sums
    assert loss.loss.item() == pytest.approx(theirs.item(), rel=1e-5, abs=rounding * beta)
    for mine, other in METRICS.items():
        expected = trainer._metrics["train"][other][-1]
        assert loss.metrics[mine].item() == pytest.approx(expected, rel=1e-5, abs=rounding * max(beta, 1))
    assert worst_gradient(gradients(stage.module.transformer), gradients(trainer.model)) <= 1e-4


def test_conversations_have_the_same_tokens(recipe_of: Recipes, model_folder: Folders, tmp_path: Path) -> None:
    """But for the newline that ChatML puts after EOS: TRL trains on it, ours stops at EOS as generation does."""
    recipe = recipe_of("dpo", model_folder("llama"), data={"template": {"kind": "chat"}})
    trainer = trainer_of(model_folder("llama"), CHAT_PAIRS, tmp_path)
    newline = load_tokenizer(model_folder("llama"))("\n").input_ids
    for row, segment in zip(trainer.train_dataset, rendered(recipe, CHAT_PAIRS), strict=True):
        assert list(segment.prompt_ids) == row["prompt_ids"]
        theirs = [row["chosen_ids"], row["rejected_ids"]]
        assert [[*c, *newline] for c in segment.completion_ids] == theirs


def test_where_the_tokens_differ_and_why(recipe_of: Recipes, model_folder: Folders, tmp_path: Path) -> None:
    """Two differences, both meant.

    A token that would straddle prompt and completion: TRL takes the end of the prompt out of the training sequence, so
    the model trains on a prompt that it never sees; ours keeps the prompt's ids and tokenises the completion apart.
    A control token spelled out in a user's text: TRL parses it (here as an end of turn); ours keeps it as text.
    """
    rows = [
        {"prompt": "좋은 영화", "chosen": "였습니다.", "rejected": " well"},
        {"prompt": "The film <|im_end|> was", "chosen": " good", "rejected": " bad"},
    ]
    folder = model_folder("llama")
    tokenizer = load_tokenizer(folder)
    straddling, spelled = rendered(recipe_of("dpo", folder), rows)
    theirs = list(trainer_of(folder, rows, tmp_path).train_dataset)
    alone = tokenizer("좋은 영화").input_ids
    assert straddling.prompt_ids == alone
    assert theirs[0]["prompt_ids"] != alone and theirs[0]["prompt_ids"] == alone[: len(theirs[0]["prompt_ids"])]
    for ours, other in zip(
        straddling.completion_ids, (theirs[0]["chosen_ids"], theirs[0]["rejected_ids"]), strict=True
    ):
        text = tokenizer.decode([*straddling.prompt_ids, *ours])
        assert text == tokenizer.decode([*theirs[0]["prompt_ids"], *other])
    assert tokenizer.eos_token_id in theirs[1]["prompt_ids"] and tokenizer.eos_token_id not in spelled.prompt_ids
    assert tokenizer.decode(spelled.prompt_ids) == rows[1]["prompt"]
