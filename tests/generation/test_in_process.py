"""Sampling: the same as `generate` where that is defined, and exact in its probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from rlhf.generation.choosing import choose_tokens
from rlhf.generation.in_process import InProcessEngine
from rlhf.models.policy import Policy
from rlhf.recipe.sections import SamplingSection
from tests.tiny import tiny_tokenizer

PROMPTS = ["The film was", "I", "It is a good day to see the sea and"]


@pytest.fixture(scope="module")
def engine() -> Iterator[InProcessEngine]:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    yield InProcessEngine(Policy(LlamaForCausalLM(config), pad_token_id=0), tokenizer)


def ids(engine: InProcessEngine) -> list[list[int]]:
    return [engine.tokenizer(p).input_ids for p in PROMPTS]


def test_greedy_equals_generate(engine: InProcessEngine) -> None:
    ours = engine.generate(ids(engine), SamplingSection(temperature=0, max_new_tokens=20), seed=0)
    for prompt, [completion] in zip(ids(engine), ours, strict=True):
        greedy = GenerationConfig(
            max_new_tokens=20, do_sample=False, eos_token_id=list(engine.stop_ids), pad_token_id=0
        )
        theirs = engine.policy.transformer.generate(torch.tensor([prompt]), generation_config=greedy)[0, len(prompt) :]
        assert completion.ids == theirs.tolist()


def test_the_same_seed_gives_the_same_samples_whatever_the_batch(engine: InProcessEngine) -> None:
    sampling = SamplingSection(n=3, max_new_tokens=12)
    wide = engine.generate(ids(engine), sampling, seed=7)
    narrow = engine.generate(ids(engine), sampling.model_copy(update={"batch_size": 3}), seed=7)
    assert [[c.ids for c in g] for g in wide] == [[c.ids for c in g] for g in narrow]
    assert wide != engine.generate(ids(engine), sampling, seed=8)
    assert len({tuple(c.ids) for c in wide[0]}) > 1


def test_rows_stop_at_a_stop_token_and_say_so(engine: InProcessEngine) -> None:
    sampling = SamplingSection(n=64, max_new_tokens=40)
    rows = [c for group in engine.generate(ids(engine), sampling, seed=0) for c in group]
    for row in rows:
        assert row.ended == (row.ids[-1] in engine.stop_ids)
        assert not engine.stop_ids & set(row.ids[:-1])
        assert row.ended or len(row.ids) == 40
    assert {row.ended for row in rows} == {True, False}


def test_a_stop_string_ends_the_text_before_it(engine: InProcessEngine) -> None:
    free = SamplingSection(n=8, max_new_tokens=30)
    texts = [c.text for c in engine.generate(ids(engine)[:1], free, seed=3)[0]]
    stop = next(t[5:7] for t in texts if len(t) > 12)
    stopped = engine.generate(ids(engine)[:1], free.model_copy(update={"stop": [stop]}), seed=3)[0]
    assert any(stop in text for text in texts)
    for before, after in zip(texts, stopped, strict=True):
        assert after.text == before.split(stop)[0]
        assert after.ended or stop not in before


def test_a_models_own_generation_config_does_not_leak_in(engine: InProcessEngine) -> None:
    sampling = SamplingSection(temperature=0, max_new_tokens=20)
    plain = engine.generate(ids(engine), sampling, seed=0)
    before = engine.policy.transformer.generation_config
    engine.policy.transformer.generation_config = GenerationConfig(
        repetition_penalty=5.0, no_repeat_ngram_size=1, min_p=0.5, eos_token_id=before.eos_token_id
    )
    try:
        assert engine.generate(ids(engine), sampling, seed=0) == plain
    finally:
        engine.policy.transformer.generation_config = before


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingSection(temperature=1.0), [0.5, 0.25, 0.15, 0.1]),
        (SamplingSection(temperature=0.5), [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        (SamplingSection(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (SamplingSection(top_p=0.75), [2 / 3, 1 / 3, 0, 0]),
        (SamplingSection(top_p=0.76), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        (SamplingSection(temperature=0), [1, 0, 0, 0]),
    ],
)
def test_tokens_come_with_their_probabilities(sampling: SamplingSection, expected: list[float]) -> None:
    """Evenly spaced noise inverts the distribution function: each token's share of it is its probability."""
    draws = 20_000
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(draws, 4)
    noise = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    counts = Counter(choose_tokens(logits, sampling, noise).tolist())
    for token, probability in enumerate(expected):
        assert counts[token] / draws == pytest.approx(probability, abs=2e-4)
