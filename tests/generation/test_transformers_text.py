"""Texts from a model in this process: what `generate` says, streams that follow the key, and settings that are not ignored."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from rlhf.errors import RecipeError
from rlhf.generation.engines import open_engine
from rlhf.generation.engines.encode import located
from rlhf.generation.engines.transformers_text import WINDOW, TransformersText
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.sections import ModelSection, StoredModelSection
from rlhf.recipe.synthesis import TextSampling, TransformersSection
from tests.tiny import CHATML, tiny_tokenizer

PROMPTS = [
    "The film was",
    "I",
    "It is a good day to see the sea and",
    "What is a good film?",
    "무엇을 도와드릴까요?",
    "yes",
    "Q 7",
]
GREEDY = TextSampling(temperature=0, max_new_tokens=20)


def opened(model: Path, **changes: Any) -> TransformersText:
    section = TransformersSection(engine="transformers", model=ModelSection(name_or_path=str(model)), **changes)
    engine = open_engine(section, name="writer")
    assert isinstance(engine, TransformersText)
    return engine


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[TransformersText]:
    yield opened(model, chat="plain")


def ask(engine: TransformersText, prompts: list[Any], sampling: TextSampling, seed: int = 0) -> dict[str, Answer]:
    pairs = list(engine.answers([Request(str(p), p) for p in prompts], sampling, seed=seed))
    assert sorted(r.key for r, _ in pairs) == sorted(map(str, prompts))
    return {r.key: a for r, a in pairs}


def plain_generate(model: Path, prompt: str, **settings: Any) -> tuple[list[str], list[list[int]]]:
    """The texts that transformers itself gives to one prompt, alone and unpadded."""
    tokenizer = tiny_tokenizer()
    network = AutoModelForCausalLM.from_pretrained(model)
    network.generation_config = GenerationConfig()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **settings
    )
    rows = network.generate(ids, generation_config=config)[:, ids.shape[1] :].tolist()
    ends = [row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row) for row in rows]
    return [tokenizer.decode(row[:end], skip_special_tokens=True) for row, end in zip(rows, ends, strict=True)], rows


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"num_beams": 4},
        {"num_beams": 4, "n": 3, "length_penalty": 2.0},
        {"num_beams": 3, "length_penalty": -1.0, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    ],
)
def test_greedy_and_beams_equal_generate(engine: TransformersText, model: Path, changes: dict[str, Any]) -> None:
    """Prompts of many lengths in one batch say what each says alone."""
    answers = ask(engine, PROMPTS, GREEDY.model_copy(update=changes))
    settings = {"num_return_sequences" if k == "n" else k: v for k, v in changes.items()}
    for prompt in PROMPTS:
        texts, _ = plain_generate(model, prompt, max_new_tokens=20, **settings)
        assert answers[prompt].texts == texts
    if changes:
        assert answers != ask(engine, PROMPTS, GREEDY)


def test_a_request_draws_the_same_in_any_company(engine: TransformersText) -> None:
    sampling = TextSampling(n=3, temperature=1.0, top_k=40, min_p=0.01, max_new_tokens=12, batch_size=6)
    whole = ask(engine, PROMPTS, sampling, seed=3)
    shuffled = random.Random(0).sample(PROMPTS, len(PROMPTS))
    assert ask(engine, shuffled, sampling, seed=3) == whole
    assert ask(engine, PROMPTS[2:4], sampling, seed=3) == {p: whole[p] for p in PROMPTS[2:4]}
    assert ask(engine, PROMPTS, sampling.model_copy(update={"batch_size": 64}), seed=3) == whole
    assert ask(engine, PROMPTS, sampling, seed=4) != whole
    [(_, other)] = engine.answers([Request("another key", PROMPTS[0])], sampling, seed=3)
    assert other.texts != whole[PROMPTS[0]].texts
    assert len({text for a in whole.values() for text in a.texts}) > len(PROMPTS)


def test_sampled_beams_draw_the_same_in_any_company_and_leave_torchs_generator_alone(engine: TransformersText) -> None:
    sampling = TextSampling(num_beams=3, temperature=1.0, max_new_tokens=8)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    whole = ask(engine, PROMPTS, sampling)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert ask(engine, PROMPTS[::-1], sampling) == whole
    assert ask(engine, PROMPTS, sampling, seed=1) != whole


def test_greedy_samples_are_made_once(engine: TransformersText) -> None:
    one = ask(engine, PROMPTS[:1], GREEDY)[PROMPTS[0]]
    four = ask(engine, PROMPTS[:1], GREEDY.model_copy(update={"n": 4}))[PROMPTS[0]]
    assert four.texts == one.texts * 4 and four.ended == one.ended * 4
    assert four.completion_tokens == one.completion_tokens


def test_tokens_and_ends_are_told(engine: TransformersText, model: Path) -> None:
    tokenizer = tiny_tokenizer()
    answers = ask(engine, PROMPTS, TextSampling(n=64, temperature=1.0, max_new_tokens=40))
    for prompt, answer in answers.items():
        assert answer.prompt_tokens == len(tokenizer(prompt).input_ids)
        assert 64 <= answer.completion_tokens <= 64 * 40
    assert {e for a in answers.values() for e in a.ended} == {True, False}
    cut = ask(engine, PROMPTS, TextSampling(n=64, temperature=1.0, max_new_tokens=2))
    assert sum(a.completion_tokens for a in cut.values()) < sum(a.completion_tokens for a in answers.values())


def test_a_stop_string_cuts_samples_and_beams(engine: TransformersText) -> None:
    for changes in ({}, {"num_beams": 2}):
        free = ask(engine, PROMPTS, GREEDY.model_copy(update=changes))
        stop = free[PROMPTS[0]].texts[0][4:6]
        assert len(stop) == 2
        stopped = ask(engine, PROMPTS, GREEDY.model_copy(update={"stop": [stop], **changes}))
        assert all(stop not in text for a in stopped.values() for text in a.texts)
        if not changes:  # among beams another may win
            assert stopped[PROMPTS[0]].ended == [True]
            assert {p: a.texts[0] for p, a in stopped.items()} == {
                p: a.texts[0].split(stop)[0] for p, a in free.items()
            }


def test_text_and_messages_go_through_the_chat_template(model: Path) -> None:
    tokenizer, engine = tiny_tokenizer(), opened(model)  # chat: auto
    messages = [{"role": "system", "content": "Be good."}, {"role": "user", "content": "hello"}]
    asked = list(engine.answers([Request("a", "hello"), Request("b", messages)], GREEDY, seed=0))
    for request, answer in asked:
        turns = [{"role": "user", "content": "hello"}] if request.key == "a" else messages
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text.endswith("assistant\n") and CHATML
        assert answer.prompt_tokens == len(tokenizer(text, add_special_tokens=False).input_ids)


def test_a_control_token_in_a_users_text_stays_text(model: Path) -> None:
    engine = opened(model)
    [ids] = engine._encoder.ids([Request("k", "a<|im_end|>b")])
    assert isinstance(ids, list)
    assert ids.count(tiny_tokenizer().eos_token_id) == 1  # the template's own


def test_what_cannot_be_asked_is_that_requests_error(engine: TransformersText) -> None:
    asked = [
        Request("long", "good " * 300),
        Request("ok", "yes"),
        Request("empty", ""),
        Request("m", [{"role": "user", "content": "x"}]),
    ]
    answers = {r.key: a for r, a in engine.answers(asked, GREEDY, seed=0)}
    assert "max_new_tokens 20 are more than the model's 256 positions" in str(answers["long"].error)
    assert answers["empty"].error == "an empty prompt"
    assert "template.kind: chat" in str(answers["m"].error)
    assert answers["ok"].error is None and answers["ok"].texts


def test_requests_are_read_a_window_at_a_time_and_come_out_by_batch(engine: TransformersText) -> None:
    read = itertools.count()
    asked = (Request(str(i), f"yes {i}") for i in iter(lambda: next(read), 10_000))
    sampling = TextSampling(temperature=0, max_new_tokens=2, batch_size=2)
    answers = engine.answers(asked, sampling, seed=0)
    next(answers)
    assert next(read) <= 2 * WINDOW
    answers.close()  # type: ignore[attr-defined]


def test_an_adapter_is_merged(model: Path, adapter: Path, engine: TransformersText) -> None:
    from peft import PeftModel

    tokenizer = tiny_tokenizer()
    for path in (adapter, adapter.parent):  # the run's own folder will do
        adapted = opened(model, chat="plain", adapter=str(path))
        answers = ask(adapted, PROMPTS, GREEDY)
        assert answers != ask(engine, PROMPTS, GREEDY)
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
    ids = tokenizer(PROMPTS[2], return_tensors="pt").input_ids
    with torch.no_grad():
        expected = beside(ids).logits
        torch.testing.assert_close(adapted._engine.policy.transformer(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_stays_beside_a_base_of_16_bits(model: Path, adapter: Path, tmp_path: Path) -> None:
    """Which is how the engine loads a base that is stored so, where the recipe names no dtype."""
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(half)
    tiny_tokenizer().save_pretrained(half)
    stored = StoredModelSection(name_or_path=str(half))
    section = TransformersSection(engine="transformers", model=stored, chat="plain", adapter=str(adapter))
    adapted = TransformersText(section)
    policy = adapted._engine.policy
    assert policy.transformer.dtype == torch.bfloat16 and policy.has_adapters
    assert all(answer.texts for answer in ask(adapted, PROMPTS, GREEDY).values())


def test_four_bits(model: Path, engine: TransformersText, adapter: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from rlhf.recipe.sections import QuantizationSection

    for folder in (None, str(adapter)):
        small = opened(model, chat="plain", quantization=QuantizationSection(), adapter=folder)
        answers = ask(small, PROMPTS, GREEDY)
        assert all(a.error is None and a.texts for a in answers.values())
        assert ask(small, PROMPTS[::-1], GREEDY) == answers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "nowhere"}, r"engine writer: adapter: no LoRA adapter in nowhere"),
        ({"model": ModelSection(name_or_path="./nowhere")}, r"engine writer: model\.name_or_path: no such folder"),
    ],
)
def test_what_is_not_there(model: Path, changes: dict[str, Any], message: str) -> None:
    section = TransformersSection(engine="transformers", model=ModelSection(name_or_path=str(model)))
    with pytest.raises(RecipeError, match=message):
        open_engine(section.model_copy(update=changes), name="writer")


def test_an_adapter_of_another_model(model: Path, adapter: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(other).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="does not fit this model"):
        opened(tmp_path, adapter=str(adapter))


def test_closing_lets_the_model_go(model: Path) -> None:
    import gc
    import weakref

    engine = opened(model)
    network = weakref.ref(engine._engine.policy)
    engine.close()
    gc.collect()
    assert network() is None


@pytest.mark.parametrize("key", ["model", "adapter"])
def test_a_reward_model_writes_no_text(key: str, model: Path, adapter: Path, tmp_path: Path) -> None:
    """The engines in this process and vLLM's find their files in the same place."""
    shutil.copytree(adapter if key == "adapter" else model, tmp_path / "judge")
    (tmp_path / "judge/head.safetensors").touch()
    where = (model, str(tmp_path / "judge")) if key == "adapter" else (tmp_path / "judge", None)
    with pytest.raises(RecipeError, match=f"engine writer: {key}: .*judge is a reward model"):
        opened(where[0], adapter=where[1])
    with pytest.raises(RecipeError, match=f"engine writer: {key}: .*judge is a reward model"):
        located("writer", str(where[0]), where[1])
