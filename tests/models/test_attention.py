"""Segments, packed or with a shared prompt, give what a plain padded forward gives, for every architecture we name."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.models.load import disable_dropout
from rlhf.models.policy import Policy
from rlhf.models.scalar import ScalarModel
from rlhf.tokens.segments import Segment, collate

VOCABULARY = 120
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.3,  # large enough that attention matters
}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, **SLIDING),
    "mistral": MistralConfig(**SIZES, sliding_window=5),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3,
    ),
    "gpt_neox": GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
}  # fmt: skip


def segments(n: int) -> list[Segment]:
    """Three prompts of unlike length, n completions each, one of a single token."""
    generator = torch.Generator().manual_seed(n)

    def ids(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [Segment(ids(p), [ids(1 + (3 * p + 5 * b) % 11) for b in range(n)]) for p in (1, 7, 12)]


def policy(config: PretrainedConfig, batching: str) -> Policy:
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    disable_dropout(network)
    return Policy(network, pad_token_id=2, batching=batching)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_segments_equal_padded_logprobs_and_gradients(name: str, n: int) -> None:
    batch = collate(segments(n))
    ours, theirs = policy(CONFIGS[name], "auto"), policy(CONFIGS[name], "padded")
    assert ours.segments and not theirs.segments
    results = []
    for model in (ours, theirs):
        logprobs = model(batch, temperature=0.7)
        logprobs.sin().sum().backward()  # a loss that weighs every token differently
        gradients = {k: p.grad for k, p in model.transformer.named_parameters() if p.grad is not None}
        results.append((logprobs.detach(), gradients))
    (a, grads_a), (b, grads_b) = results
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
    assert grads_a.keys() == grads_b.keys()
    for key, gradient in grads_b.items():
        difference = (grads_a[key] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert difference < 1e-3, f"{key}: {difference:.1e}"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_equals_its_segments_one_by_one(name: str) -> None:
    """Packing lets no document see another."""
    model = policy(CONFIGS[name], "segments")
    rows = segments(2)
    with torch.no_grad():
        together = model(collate(rows))
        alone = torch.cat([model(collate([row])) for row in rows])
        branches = torch.cat([model(collate([Segment(r.prompt_ids, [c])])) for r in rows for c in r.completion_ids])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(together, branches, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_scalar_models_equal_padded(name: str) -> None:
    torch.manual_seed(0)
    body = AutoModel.from_config(CONFIGS[name])
    disable_dropout(body)
    model = ScalarModel(body, pad_token_id=2)
    torch.nn.init.normal_(model.head.weight)
    batch = collate(segments(4))
    assert model.segments
    with torch.no_grad():
        scores, values = model(batch), model(batch, per_token=True)
        model.segments = False
        torch.testing.assert_close(scores, model(batch), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values, model(batch, per_token=True), rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_take_segments_says_so_and_is_still_right(caplog: pytest.LogCaptureFixture) -> None:
    """Gemma 2 soft-caps its attention and its logits: SDPA refuses, and one linear head would be wrong."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5))
    model = Policy(network, pad_token_id=2)
    assert not model.segments
    assert "Gemma2ForCausalLM takes padded batches" in caplog.text
    row = segments(1)[1]
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids[0]]])
    with torch.no_grad():
        expected = network(ids).logits.log_softmax(-1)[0, len(row.prompt_ids) - 1 : -1]
        expected = expected.gather(1, torch.tensor(row.completion_ids[0])[:, None]).squeeze(1)
        torch.testing.assert_close(model(collate([row])), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batching", ["auto", "segments"])
def test_attention_sinks_are_not_left_out(batching: str, caplog: pytest.LogCaptureFixture) -> None:
    """gpt-oss: SDPA takes no sinks and drops them without a word, with segments and without."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(
        GptOssConfig(**SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1)
    ).eval()
    ids = torch.tensor([list(range(5, 25))])
    with torch.no_grad():
        before = network(ids).logits
        model = Policy(network, pad_token_id=2, batching=batching)
        if batching == "segments":
            with pytest.raises(NotImplementedError, match="sinks"):
                model(collate(segments(1)))
            return
        torch.testing.assert_close(network(ids).logits, before)
    assert not model.segments
    assert "GptOssForCausalLM takes padded batches: its attention has sinks" in caplog.text


def test_segments_are_held_against_the_models_own_attention(caplog: pytest.LogCaptureFixture) -> None:
    """What the registered attention leaves out, it leaves out of padded batches too: the model's own must be the oracle."""

    def own(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        return sdpa_attention_forward(module, query, key, 2 * value, mask, **kwargs)

    AttentionInterface.register("doubled", own)
    AttentionMaskInterface.register("doubled", sdpa_mask)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(CONFIGS["llama"], attn_implementation="doubled")
    assert not Policy(network, pad_token_id=2).segments
    assert "segments change its results" in caplog.text
    assert network.config._attn_implementation == "doubled"


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss"])
def test_padded_batches_give_the_head_their_scored_positions_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And lose nothing by it: the reference is the model's own forward pass over all positions."""
    monkeypatch.setattr("rlhf.models.policy.FEW_BYTES", 0)
    others = {
        "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=64, final_logit_softcapping=2.0),
        "gpt_oss": GptOssConfig(**SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
    }
    model = policy((CONFIGS | others)[name], "padded")
    batch, rows = collate(segments(2)), []
    head, expected = model.transformer.get_output_embeddings(), []
    for segment in segments(2):
        for ids in segment.completion_ids:
            row = torch.tensor([[*segment.prompt_ids, *ids]])
            logprobs = model.transformer(row).logits.log_softmax(-1)[0, :-1]
            expected.append(logprobs.gather(1, row[0, 1:, None])[len(segment.prompt_ids) - 1 :, 0])
    handle = head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    found = model(batch)
    handle.remove()
    assert rows == [batch.num_targets] == [found.numel()]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert not head._forward_pre_hooks  # sampling reads every position again


def test_a_network_that_does_not_name_its_head_gives_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model = collate(segments(2)), policy(CONFIGS["llama"], "padded")
    expected = model(batch)  # of a small batch: the head reads every position
    monkeypatch.setattr("rlhf.models.policy.FEW_BYTES", 0)
    monkeypatch.setattr(model.transformer, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(model(batch), expected, rtol=1e-5, atol=1e-5)


def test_a_logit_scale_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """A model that runs on segments but does more than a linear head is caught by the comparison alone."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    plain = network.lm_head.forward
    network.lm_head.forward = lambda hidden: plain(hidden) * 0.5
    assert not Policy(network, pad_token_id=2).segments
    assert "segments change its results" in caplog.text


def test_gradient_checkpointing_changes_nothing() -> None:
    batch = collate(segments(2))
    gradients = []
    for checkpointing in (False, True):
        model = policy(CONFIGS["llama"], "segments").train()
        if checkpointing:
            model.transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(batch).sum().backward()
        gradients.append(model.transformer.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
