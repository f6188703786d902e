"""Conversations of many turns in SFT and DPO: the loss is the one that plain transformers gives with labels masked by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf.recipe.loader import dump
from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.data.support import lines
from tests.tiny import tiny_tokenizer
from tests.train.conftest import metrics_of
from tests.two_processes import in_two

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
LORA = pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])


def said(text: str, weight: int | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | ({} if weight is None else {"weight": weight})


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


TALK = [user("hello"), said("I am well", 1), user("a film?"), said("no", 0), user("thank you"), said("good", 1)]
OTHER = [*TALK[:3], said("the one that you like"), user("thank you"), said("here")]
BATCH = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2}


def ids_and_labels(messages: list[dict[str, Any]], trained: list[int]) -> tuple[list[int], list[int]]:
    """By hand: ChatML's pieces one after the other; an answer and its end train if its place is named."""
    tokenizer = tiny_tokenizer()
    ids: list[int] = []
    labels: list[int] = []
    for place, message in enumerate(messages):
        last = place == len(messages) - 1
        parts = [(f"<|im_start|>{message['role']}\n", False), (message["content"] + "<|im_end|>", place in trained)]
        for text, trains in [*parts, *([] if last else [("\n", False)])]:
            new = tokenizer(text, add_special_tokens=False).input_ids
            ids += new
            labels += new if trains else [-100] * len(new)
    return ids, labels


def log_probabilities(model: Any, messages: list[dict[str, Any]], trained: list[int]) -> torch.Tensor:
    ids, labels = (torch.tensor([part]) for part in ids_and_labels(messages, trained))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    return -F.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100, reduction="none")[
        labels[0, 1:] != -100
    ]


@LORA
@pytest.mark.parametrize("batching", ["segments", "padded"])
@pytest.mark.parametrize(("train_on", "trained"), [("last", [5]), ("all", [1, 3, 5]), ("marked", [1, 5])])
def test_sft_has_the_loss_of_labels_masked_by_hand(
    train_on: str,
    trained: list[int],
    batching: str,
    lora: Any,
    recipe_of: Recipes,
    model_folder: Folders,
    tmp_path: Path,
) -> None:
    folder = model_folder("llama")
    path = lines(tmp_path / "talks.jsonl", [{"messages": TALK}, {"messages": TALK[:2]}])
    data = {"train": path, "template": {"train_on": train_on}, "max_length": 256}
    recipe = recipe_of(
        "sft", folder, lora=lora, data=data, training=BATCH, model={"name_or_path": folder, "batching": batching}
    )
    train(recipe)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    both = torch.cat([log_probabilities(model, TALK, trained), log_probabilities(model, TALK[:2], [1])])
    losses = [line["loss"] for line in metrics_of(recipe)]
    assert losses[0] == pytest.approx(-both.mean().item(), abs=1e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("quantization", [None, NF4], ids=["full", "nf4"])
def test_turns_in_two_processes_and_resumed(
    quantization: Any, recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    """Two processes and one have the same losses; a run that goes on ends where the unbroken one does, to the bit."""
    path = lines(
        tmp_path / "talks.jsonl",
        [{"messages": TALK}, {"messages": OTHER}, {"messages": TALK[:4]}, {"messages": TALK[:2]}],
    )
    options: dict[str, Any] = {
        "data": {"train": path, "template": {"train_on": "all"}, "max_length": 256},
        "checkpoint": {"save_steps": 2},
        "training": {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2},
    } | ({} if quantization is None else {"lora": {"r": 4}, "quantization": quantization})
    half = {"training": options["training"] | {"per_device_train_batch_size": 1}}
    whole, part = (recipe_of("sft", model_folder("llama"), out=out, **options) for out in ("whole", "part"))
    two = recipe_of("sft", model_folder("llama"), out="two", **options | half)
    train(whole)
    train(part.model_copy(update={"training": part.training.model_copy(update={"max_steps": 2})}))
    train(part)
    ours, theirs = ([line["loss"] for line in metrics_of(run)] for run in (part, whole))
    assert ours == theirs
    written = tmp_path / "two.yaml"
    written.write_text(dump(two))  # type: ignore[arg-type]
    in_two("rlhf", "train", str(written))
    assert [line["loss"] for line in metrics_of(two)] == pytest.approx(
        theirs, abs=1e-5 if quantization is None else 2e-3
    )
    assert theirs[-1] < theirs[0]


@LORA
@pytest.mark.parametrize(("train_on", "trained"), [("last", [5]), ("all", [3, 5])])
def test_dpo_counts_the_turns_after_the_shared_ones(
    train_on: str, trained: list[int], lora: Any, recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    folder = model_folder("llama")
    path = lines(tmp_path / "pairs.jsonl", [{"chosen": OTHER, "rejected": TALK}])
    data = {"train": path, "template": {"train_on": train_on}, "max_length": 256}
    options = BATCH | {"per_device_train_batch_size": 1, "max_steps": 2}
    recipe = recipe_of("dpo", folder, lora=lora, data=data, training=options)
    train(recipe)
    final, reference = f"{recipe.output_dir}/final", AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder if lora else final, dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, final) if lora else base
    margins = [
        log_probabilities(policy, side, trained).sum() - log_probabilities(reference, side, trained).sum()
        for side in (OTHER, TALK)
    ]
    again = recipe_of("dpo", folder, out="again", lora=lora, data=data, training=options | {"max_steps": 3})
    train(again)
    margin = 0.1 * (margins[0] - margins[1]).item()
    assert metrics_of(again)[2]["margin"] == pytest.approx(margin, abs=2e-5)
    assert margin > 0
