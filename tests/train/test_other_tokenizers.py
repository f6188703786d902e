"""Where the reward model and the policy do not share a tokenizer, and where text is cut at a stop string."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedTokenizerFast

from rlhf.errors import RecipeError
from rlhf.generation.engine import Completion
from rlhf.generation.in_process import InProcessEngine
from rlhf.generation.reward_scorer import Sample
from rlhf.generation.scorers import load_scorers
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.ranks import Ranks
from rlhf.train.run import train
from tests.tiny import SENTENCES, tiny_tokenizer
from tests.train.ppo_support import EOS, stage_of

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]


@pytest.fixture
def foreign_reward_model(recipe_of: Recipes, tmp_path: Path) -> str:
    """A reward model with a smaller vocabulary than the policy's."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(list(SENTENCES), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>", bos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=0, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    recipe = recipe_of("reward", str(tmp_path / "small"), out="foreign", training={"max_steps": 2})
    train(recipe)
    return f"{recipe.output_dir}/final"


def test_the_value_model_starts_from_a_model_that_reads_the_policys_tokens(
    recipe_of: Recipes, model_folder: Folders, foreign_reward_model: str
) -> None:
    recipe = recipe_of("ppo", model_folder("llama"), ppo={"rewards": [{"model": foreign_reward_model}]})
    stage = stage_of(recipe)
    assert stage.module.value_model.transformer.config.vocab_size == len(tiny_tokenizer())
    assert sum(len(update.microbatches) for update in stage.updates(0)) > 0
    with pytest.raises(RecipeError, match=r"ppo\.value_model: .* has another tokenizer than the policy"):
        stage_of(recipe_of("ppo", model_folder("llama"), ppo={"value_model": foreign_reward_model}))


def test_a_completion_without_text_is_scored_too(foreign_reward_model: str) -> None:
    [scorer] = load_scorers([ScorerSection(model=foreign_reward_model)], tiny_tokenizer())
    empty = Sample("you", [5, 6], Completion([2, 2], "", False))
    [score, other] = scorer.score([empty, Sample("you", [5, 6], Completion([9], " are", False))])
    assert score != other


def test_a_reward_model_sees_the_text_cut_at_a_stop_string(recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = recipe_of("reward", model_folder("llama"))
    train(recipe)
    tokenizer = tiny_tokenizer()
    [scorer] = load_scorers([ScorerSection(model=f"{recipe.output_dir}/final")], tokenizer)
    prompt, cut, whole = (tokenizer(t).input_ids for t in ("The film was", " good", " good\n\nHuman:"))

    def score(ids: list[int]) -> float:
        return scorer.score([Sample("The film was", prompt, Completion(ids, " good", True))])[0]

    assert score(whole) == pytest.approx(score([*cut, EOS]), abs=1e-6)


def test_a_stop_string_is_not_looked_for_in_the_names_of_special_tokens(
    recipe_of: Recipes, model_folder: Folders
) -> None:
    tokenizer = tiny_tokenizer()
    engine = InProcessEngine(stage_of(recipe_of("ppo", model_folder("llama"))).policy, tokenizer)
    assert engine._ended([[5, tokenizer.convert_tokens_to_ids("<|pad|>")]], ["pad"]) == [False]


@pytest.mark.parametrize("key", ["gradient_accumulation_steps", "max_tokens_per_batch"])
def test_settings_that_do_nothing_in_ppo_are_refused(key: str, recipe_of: Recipes) -> None:
    with pytest.raises(ValidationError, match=key):
        recipe_of("ppo", "x", training={key: 4})


def test_dropout_that_is_no_module_is_off_too(recipe_of: Recipes, tmp_path: Path) -> None:
    """OPT hands its probability to a functional dropout."""
    tokenizer = tiny_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    policy = stage_of(recipe_of("ppo", str(tmp_path / "opt"))).policy.train()
    batch = collate([Segment(range(10), [range(20, 30)])])
    assert torch.equal(policy(batch), policy(batch))


def test_fewer_held_out_prompts_than_processes(recipe_of: Recipes, model_folder: Folders, rows: dict[str, str]) -> None:
    stage = stage_of(recipe_of("ppo", model_folder("llama"), data={"eval": rows["ppo"]}))
    stage.held_out = stage.held_out[:1]

    def with_another_rank(values: torch.Tensor, how: str) -> torch.Tensor:
        return values + torch.ones_like(values)  # a rank that has one prompt, scored 1

    real: Any = stage.accelerator
    stage.accelerator = SimpleNamespace(process_index=1, num_processes=2, device=real.device, reduce=with_another_rank)
    stage.ranks = Ranks(stage.accelerator)
    assert stage.evaluate(stage.module)["score"] == 1.0
