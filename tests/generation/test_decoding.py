"""Continuous batches: whatever comes and goes around it, a row says what it says alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from rlhf.errors import RecipeError
from rlhf.generation import decoding
from rlhf.generation.decoding import Decoder, TokenPrompt
from rlhf.generation.in_process import InProcessEngine
from rlhf.models.policy import Policy
from rlhf.recipe.sections import SamplingSection
from tests.tiny import tiny_tokenizer

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "initializer_range": 0.5, "tie_word_embeddings": False,
}  # fmt: skip
WINDOW = {**SMALL, "sliding_window": 8}
FAMILIES = {
    "llama": SMALL,
    "mistral": WINDOW,
    "gemma2": WINDOW,  # soft-capped: padded prompts
    "gemma3_text": WINDOW,
    "gemma4_text": {  # the last two layers look at the keys of the first two; of two widths
        **WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(tiny_tokenizer()), "global_head_dim": 16,
    },
    "gpt_oss": {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},  # sinks: padded prompts, by its own attention
    "deepseek_v3": {  # keys and values of different widths
        **SMALL, "num_key_value_heads": 4, "head_dim": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8, "v_head_dim": 6, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 16,
    },
    "opt": {
        "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.5,
        "word_embed_proj_dim": 32,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.5},
    "lfm2": {**SMALL, "layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3},
    "qwen3_5_text": {
        **SMALL, "layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
}  # fmt: skip
TEXTS = [
    "The film was",
    "I",
    "It is a good day to see the sea and",
    "a b c d e f g h i j k l m n o p q",
    "x",
    "we meet",
    "so",
]
PROMPTS = [tiny_tokenizer()(text).input_ids for text in TEXTS]


def model_of(family: str) -> PreTrainedModel:
    tokenizer = tiny_tokenizer()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family], **ids)).eval()


def engine_of(family: str) -> InProcessEngine:
    return InProcessEngine(Policy(model_of(family), pad_token_id=0), tiny_tokenizer())


@pytest.fixture(scope="module")
def llama() -> InProcessEngine:
    return engine_of("llama")


def decoder(engine: InProcessEngine, sampling: SamplingSection) -> Decoder:
    return Decoder(engine.policy.eval(), sampling, seed=0, ended=lambda rows: engine._ended(rows, []))


def prompts() -> Iterator[TokenPrompt]:
    return (TokenPrompt(i, i, ids) for i, ids in enumerate(PROMPTS))


@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_says_what_generate_says_alone(family: str, batch_size: int) -> None:
    """Seven prompts through a few places, in an order that makes columns be cut and added: for each family, with windows and without."""
    engine = engine_of(family)
    sampling = SamplingSection(temperature=0, max_new_tokens=20, batch_size=batch_size)
    greedy = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=list(engine.stop_ids), pad_token_id=0)
    said = dict(decoder(engine, sampling).run(prompts()))
    alone = model_of(family)  # by the model's own attention
    for tag, ids in enumerate(PROMPTS):
        theirs = alone.generate(torch.tensor([ids]), generation_config=greedy)[0, len(ids) :]
        assert said[tag] == [theirs.tolist()]
    assert len({token for [ids] in said.values() for token in ids}) > 20  # more than one token over and over


def test_the_families_take_the_ways_they_are_here_for() -> None:
    """Else the test above would pass on one way only."""
    ways = {family: (e.policy.segments, decoder(e, SamplingSection())._continuous) for family, e in
            ((family, engine_of(family)) for family in FAMILIES)}  # fmt: skip
    assert ways == {
        "llama": (True, True), "mistral": (True, True), "gemma2": (False, True), "gemma3_text": (True, True),
        "gemma4_text": (True, True), "gpt_oss": (False, True), "deepseek_v3": (True, True), "opt": (True, True),
        "gpt2": (True, True), "lfm2": (False, False), "qwen3_5_text": (False, False),
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma2", "lfm2"])
def test_samples_do_not_hang_on_their_neighbours(family: str) -> None:
    engine = engine_of(family)
    wide = SamplingSection(n=3, max_new_tokens=15, batch_size=64)
    said = dict(decoder(engine, wide).run(prompts()))
    for batch_size in (1, 7):
        narrow = wide.model_copy(update={"batch_size": batch_size})
        assert dict(decoder(engine, narrow).run(reversed(list(prompts())))) == said
    assert len({tuple(ids) for group in said.values() for ids in group}) > 2 * len(PROMPTS)  # no samples of one draw


def test_prompts_in_several_passes_give_the_same(llama: InProcessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingSection(temperature=0, max_new_tokens=10)
    whole = dict(decoder(llama, sampling).run(prompts()))
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 4)
    passes = []
    prefill = Decoder._prefill
    monkeypatch.setattr(Decoder, "_prefill", lambda self, group: passes.append(len(group)) or prefill(self, group))
    assert dict(decoder(llama, sampling).run(prompts())) == whole
    assert sum(passes) == len(PROMPTS) and len(passes) > 3


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_pass_of_prompts_stays_under_its_budget(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed counts: in padded batches the padding too."""
    engine = engine_of(family)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 40)
    passes: list[int] = []
    engine.policy.transformer.register_forward_pre_hook(
        lambda _, args, inputs: passes.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    lengths = (30, 1, 1, 1, 1, 1, 50)
    some = (TokenPrompt(i, i, [20 + i] * length) for i, length in enumerate(lengths))
    list(decoder(engine, SamplingSection(temperature=0, max_new_tokens=1)).run(some))
    assert sorted(passes) == ([35, 50] if family == "llama" else [5, 30, 50])


def test_a_batch_is_let_go_before_the_next_is_computed() -> None:
    """Of a model whose rows cannot leave: else two batches' states would be held at once."""
    engine = engine_of("lfm2")
    caches: list[weakref.ref[Cache]] = []
    alive: list[int] = []

    def watch(_: PreTrainedModel, args: Any, inputs: dict[str, Any]) -> None:
        if all(cache() is not inputs["past_key_values"] for cache in caches):
            caches.append(weakref.ref(inputs["past_key_values"]))
        alive.append(sum(cache() is not None for cache in caches))

    engine.policy.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    list(decoder(engine, SamplingSection(max_new_tokens=3, batch_size=2)).run(prompts()))
    assert len(caches) == 4 and set(alive) == {1}


def test_a_prompt_comes_out_when_its_last_sample_ended_and_the_next_takes_its_place(llama: InProcessEngine) -> None:
    """Ends are set by hand: a row ends after as many tokens as its prompt's tag says."""
    read: list[int] = []
    lengths = {0: 9, 1: 2, 2: 2, 3: 2}

    def waiting() -> Iterator[TokenPrompt]:
        for tag in lengths:
            read.append(tag)
            yield TokenPrompt(tag, tag, [tag + 20])

    at_work = Decoder(
        llama.policy, SamplingSection(max_new_tokens=12, batch_size=2), seed=0,
        ended=lambda rows: [len(row.ids) == lengths[row.prompt.tag] for row in at_work._running],
    )  # fmt: skip
    run = at_work.run(waiting())
    tag, [ids] = next(run)
    assert (tag, len(ids), read) == (1, 2, [0, 1])
    assert [next(run)[0] for _ in range(2)] == [2, 3]
    assert read == [0, 1, 2, 3]
    assert [(tag, len(ids)) for tag, [ids] in run] == [(0, 9)]


def test_no_row_says_more_than_it_may(llama: InProcessEngine) -> None:
    said = dict(decoder(llama, SamplingSection(n=2, max_new_tokens=3, batch_size=4)).run(prompts()))
    assert {len(ids) for group in said.values() for ids in group if ids[-1] not in llama.stop_ids} == {3}


def test_between_results_the_policy_is_in_the_mode_it_was_in(llama: InProcessEngine) -> None:
    """Two streams at once and a policy in training: one must not leave the other, or its owner, in the wrong mode."""
    sampling = SamplingSection(n=2, max_new_tokens=8, batch_size=2)
    alone = dict(llama.samples(prompts(), sampling, seed=0))
    model = llama.policy.transformer
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    llama.policy.train()
    try:
        first, second = llama.samples(prompts(), sampling, seed=0), llama.samples(prompts(), sampling, seed=0)
        said = [next(first), next(second)]
        assert model.training
        first.close()
        said += second
        assert model.training
    finally:
        llama.policy.eval()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.0
    assert dict(said) == alone


def test_a_policy_in_training_is_sampled_from_in_evaluation_mode_and_given_back(llama: InProcessEngine) -> None:
    modes: list[bool] = []
    handle = llama.policy.transformer.register_forward_hook(lambda module, *_: modes.append(module.training))
    llama.policy.train()
    try:
        llama.generate(PROMPTS, SamplingSection(max_new_tokens=4, batch_size=2), seed=0)
        assert llama.policy.transformer.training
    finally:
        handle.remove()
        llama.policy.eval()
    assert modes and not any(modes)


def test_float32_weights_are_cast_to_bf16_once_a_call(llama: InProcessEngine) -> None:
    """Not at every token, which would take longer than the token."""
    weight = llama.policy.transformer.model.layers[0].mlp.up_proj.weight
    casts = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten._to_copy.default and args[0] is weight:
                casts.append(kwargs)
            return func(*args, **(kwargs or {}))

    engine = InProcessEngine(Policy(llama.policy.model, pad_token_id=0, bf16=True), tiny_tokenizer())
    with Watch():
        engine.generate(PROMPTS, SamplingSection(max_new_tokens=6, batch_size=2), seed=0)
    assert len(casts) == 1


def test_prompts_beyond_the_positions_of_the_model_are_refused() -> None:
    """GPT-2 has a table of positions: the last of it is used, and none after it."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=400, bos_token_id=0, eos_token_id=0, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    )
    engine = InProcessEngine(Policy(model, pad_token_id=0), tiny_tokenizer())
    sampling = SamplingSection(max_new_tokens=5)
    assert [len(group) for group in engine.generate([[7] * 27, [7]], sampling, seed=0)] == [1, 1]
    with pytest.raises(RecipeError, match=r"sampling.max_new_tokens: .* 28 tokens; with 5 .* 32 positions"):
        engine.generate([[7] * 28, [7]], sampling, seed=0)


def test_a_model_that_keeps_its_state_elsewhere_is_refused() -> None:
    """Mamba's forward takes `cache_params` and ignores `past_key_values`: it would forget its prompt without a word."""
    model = MambaForCausalLM(MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=8))
    with pytest.raises(RecipeError, match=r"MambaForCausalLM .* past_key_values"):
        InProcessEngine(Policy(model, pad_token_id=0, batching="padded"), tiny_tokenizer())
