"""What PPO samples: prompts, padding, temperature, stop tokens, seeds.

The numbered tests are the list of Huang et al. 2024 (the N implementation details of RLHF with PPO), spread over the
`test_ppo_*` files by subject. Beside them stand tests for the faults that TRL's last PPOTrainer (1.12) was measured to
have. The formulas themselves are tested in tests/losses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GenerationConfig

from rlhf.generation.in_process import InProcessEngine
from rlhf.models.load import disable_dropout
from rlhf.models.policy import Policy
from rlhf.recipe.sections import ModelSection, SamplingSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.tokenizer import load_tokenizer
from tests.tiny import tiny_tokenizer
from tests.train.conftest import config_of
from tests.train.ppo_support import (
    BATCHINGS,
    EOS,
    Recipes,
    assert_same_experience,
    both_kinds,
    by_completion,
    iteration,
    plain_logprobs,
    stage_of,
)


@BATCHINGS
def test_01_pad_is_not_eos_and_padding_is_masked_by_place(batching: str, ragged: Callable[..., TrainRecipe]) -> None:
    """pad == eos here. The EOS action is trained, and how much padding stands after it changes nothing."""
    wide, narrow, flat = (
        stage_of(ragged(model={"batching": b}, training={"per_device_train_batch_size": size}))
        for b, size in ((batching, 8), (batching, 1), ("segments", 8))
    )
    assert load_tokenizer(wide.policy.transformer.name_or_path).pad_token_id == EOS == wide.policy.pad_token_id
    assert wide.policy.segments == wide.module.value_model.segments == (batching == "segments")
    rollouts = iteration(wide)
    both_kinds(rollouts, wide)
    assert_same_experience(rollouts, iteration(narrow))
    assert_same_experience(rollouts, iteration(flat))
    [rollout] = rollouts
    batch = rollout.batch
    logprobs = wide.policy(batch, temperature=1.0).detach().requires_grad_()
    values = wide.module.value_model(batch, per_token=True).detach().requires_grad_()
    count = torch.tensor(float(batch.num_targets))
    wide.forward_loss(lambda *_, **__: (logprobs, values), rollout, count).loss.backward()
    ends = batch.targets == EOS
    assert ends.any() and not ends.all()
    assert (logprobs.grad[ends] != 0).all() and (values.grad[ends] != 0).all()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_02_left_padded_generation_equals_unpadded(name: str) -> None:
    """Prompts of unlike length in one batch, greedily, against a plain forward pass of each alone, token by token."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(2)
    config = config_of(name, tokenizer)
    config.initializer_range = 0.5  # so that where a token stands matters
    network = AutoModelForCausalLM.from_config(config)
    disable_dropout(network)
    policy = Policy(network, pad_token_id=0)
    prompts = [tokenizer(p).input_ids for p in ("you", "The film was good and the answer", "hello there,")]
    assert len({len(p) for p in prompts}) == 3
    sampling = SamplingSection(temperature=0, max_new_tokens=12)
    ours = InProcessEngine(policy, tokenizer).generate(prompts, sampling, seed=0)
    for prompt, [completion] in zip(prompts, ours, strict=True):
        row = list(prompt)
        while len(row) < len(prompt) + 12 and (len(row) == len(prompt) or row[-1] != EOS):
            with torch.no_grad():
                row.append(int(network(torch.tensor([row])).logits[0, -1].argmax()))
        assert completion.ids == row[len(prompt) :]


@BATCHINGS
def test_03_the_temperature_divides_the_logits_of_policy_old_and_reference_alike(
    batching: str, ragged: Callable[..., TrainRecipe]
) -> None:
    stage = stage_of(ragged(model={"batching": batching}, ppo={"sampling": {"temperature": 0.7}}))
    rollouts = iteration(stage)
    assert stage.measured["kl"] == 0.0
    for r in rollouts:
        assert torch.equal(r.old_logprobs, r.ref_logprobs)
        logprobs, _ = stage.module(r.batch, temperature=stage.section.sampling.temperature)
        assert torch.equal(logprobs, r.old_logprobs)
        output = stage.forward_loss(stage.module, r, torch.tensor(float(r.batch.num_targets)))
        assert output.metrics["policy/ratio"].item() == pytest.approx(1.0, abs=1e-6)
        assert output.metrics["policy/approx_kl"].item() == output.metrics["policy/clip_fraction"].item() == 0.0
    network = AutoModelForCausalLM.from_pretrained(stage.policy.transformer.name_or_path)
    for prompt, group in zip(stage.engine.prompts[0], stage.engine.groups[0], strict=True):
        for completion in group:
            numbers = by_completion(rollouts)[(*prompt, -1, *completion.ids)]
            expected = plain_logprobs(network, prompt, completion.ids, 0.7)
            torch.testing.assert_close(numbers["old_logprobs"], expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(expected, plain_logprobs(network, prompt, completion.ids, 1.0), atol=1e-2)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [({"top_k": 50}, "top_k: 0"), ({"top_p": 0.9}, "top_p: 1.0"), ({"temperature": 0.0}, "must be positive")],
)
def test_04_truncated_sampling_is_refused(
    sampling: dict[str, Any], message: str, ragged: Callable[..., TrainRecipe]
) -> None:
    with pytest.raises(ValidationError, match=message):
        ragged(ppo={"sampling": sampling})
    ragged(ppo={"sampling": {"top_k": 0, "top_p": 1.0, "temperature": 0.7}})


SEEN: list[tuple[str, str]] = []  # what `spy` was asked to score


def spy(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that remembers what it was asked."""
    SEEN.extend(zip(prompts, completions, strict=True))
    return [float(len(c)) for c in completions]


def test_05_the_scorer_sees_the_text_cut_at_the_stop_token(ragged: Callable[..., TrainRecipe]) -> None:
    SEEN.clear()
    stage = stage_of(ragged(ppo={"rewards": [{"callable": f"{__name__}:spy"}]}))
    rollouts = iteration(stage)
    completions = both_kinds(rollouts, stage)
    tokenizer = tiny_tokenizer()
    assert [text for _, text in SEEN] == [c.text for c in completions]
    for completion in completions:
        assert EOS not in completion.ids[:-1]
        assert completion.ended == (completion.ids[-1] == EOS)
        assert completion.text == tokenizer.decode([i for i in completion.ids if i != EOS], skip_special_tokens=True)
    assert "<|im_end|>" not in "".join(text for _, text in SEEN)
    prompts = [p.text for p in stage._prompts_of(0) for _ in range(2)]
    assert [prompt for prompt, _ in SEEN] == prompts


def test_16_every_rank_and_iteration_draws_with_a_seed_of_its_own(ragged: Callable[..., TrainRecipe]) -> None:
    stage = stage_of(ragged())
    for step in range(3):
        iteration(stage, step)
    assert stage.engine.seeds == [stage._sampling_seed(step) for step in range(3)]
    seeds, shares = set(), []
    for rank in range(4):
        stage.accelerator = SimpleNamespace(process_index=rank, num_processes=4)
        seeds |= {stage._sampling_seed(step) for step in range(5)}
        shares.append([p.text for p in stage._prompts_of(0)])
    assert len(seeds) == 20
    assert all(len(share) == 1 for share in shares) and len({share[0] for share in shares}) == 4  # no prompt twice
    other = stage_of(ragged(seed=1))
    assert other._sampling_seed(0) not in seeds


def test_18_eos_is_never_suppressed(ragged: Callable[..., TrainRecipe]) -> None:
    """A policy that wants to stop at once does, and that one action is trained."""
    stage = stage_of(
        ragged(logit=40.0, ppo={"sampling": {"max_new_tokens": 6}, "missing_eos": {"mode": "replace", "value": -9.0}})
    )
    rollouts = iteration(stage)
    assert all(c.ids == [EOS] and c.ended and c.text == "" for group in stage.engine.groups[0] for c in group)
    assert stage.measured["eos_rate"] == stage.measured["length"] == 1.0
    assert stage.measured["score"] == 0.0
    assert torch.cat([r.old_logprobs.flatten() for r in rollouts]).abs().max() < 1e-6
    stage.module.zero_grad()
    stage.module.value_model.head.bias.data += 1.0  # an error for the value model to learn from
    stage.forward_loss(stage.module, iteration(stage, 1)[0], torch.tensor(8.0)).loss.backward()
    assert stage.module.value_model.head.weight.grad.abs().sum() > 0


@BATCHINGS
def test_an_eos_inside_a_chat_prompt_stays_in_the_prompt(batching: str, ragged: Callable[..., TrainRecipe]) -> None:
    """Every ChatML turn ends with EOS, which is also the pad token."""
    recipe = ragged(model={"batching": batching})
    chat = recipe.data.model_copy(update={"template": recipe.data.template.model_copy(update={"kind": "chat"})})
    stage = stage_of(recipe.model_copy(update={"data": chat}))
    [rollout] = iteration(stage)
    both_kinds([rollout], stage)
    network = AutoModelForCausalLM.from_pretrained(stage.policy.transformer.name_or_path)
    tokenizer = tiny_tokenizer()
    for prompt, text in zip(stage.engine.prompts[0], [p.text for p in stage._prompts_of(0)], strict=True):
        turn = [{"role": "user", "content": text}]
        assert prompt == tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
        assert prompt.count(EOS) == 1
    found = by_completion([rollout])
    for prompt, group in zip(stage.engine.prompts[0], stage.engine.groups[0], strict=True):
        for completion in group:
            ours = found[(*prompt, -1, *completion.ids)]["old_logprobs"]
            torch.testing.assert_close(ours, plain_logprobs(network, prompt, completion.ids, 1.0), rtol=1e-4, atol=1e-5)


def test_the_models_own_generation_config_does_not_leak(
    ragged: Callable[..., TrainRecipe], recipe_of: Recipes, tmp_path: Path
) -> None:
    recipe = ragged()
    network = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path)
    network.generation_config = GenerationConfig(
        do_sample=True, repetition_penalty=3.0, min_p=0.2, no_repeat_ngram_size=1, top_k=2, top_p=0.3, temperature=0.1,
        max_new_tokens=1, suppress_tokens=[EOS], eos_token_id=EOS,
    )  # fmt: skip
    network.save_pretrained(tmp_path / "opinionated")
    tiny_tokenizer().save_pretrained(tmp_path / "opinionated")
    leaky = recipe.model_copy(update={"model": ModelSection(name_or_path=str(tmp_path / "opinionated"))})
    stages = [stage_of(r) for r in (recipe, leaky)]
    assert stages[1].policy.transformer.generation_config.repetition_penalty == 3.0
    rollouts = [iteration(stage) for stage in stages]
    assert stages[0].engine.groups == stages[1].engine.groups
    assert stages[0].measured == stages[1].measured
    assert_same_experience(*rollouts)
