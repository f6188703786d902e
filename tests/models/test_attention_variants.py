"""Each variant of attention gives what one SDPA call a segment gives, and runs where it should. Without a GPU: a plain kernel stands in."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention

from rlhf.models.attention import block_mask, per_segment, segment_attention, varlen
from rlhf.models.attention.layout import Layout, Tokens, tokens_of
from rlhf.tokens.segments import Span, collate
from tests.models.attention_cases import by_segment, inputs_for, layouts, plain_flex, plain_varlen, results, spans_of
from tests.models.test_attention import CONFIGS, policy, segments

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEADS = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda h: (h[0] * h[1], h[1]))
WINDOWS = st.none() | st.integers(1, 16)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of a GPU, on the CPU."""
    monkeypatch.setattr(varlen, "varlen_attn", plain_varlen)
    monkeypatch.setattr(block_mask, "compiled", lambda: plain_flex)


@pytest.fixture(params=["varlen", "block_mask"])
def variant(request: pytest.FixtureRequest, stand_ins: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A variant that takes everything."""
    module = {"varlen": varlen, "block_mask": block_mask}[request.param]
    monkeypatch.setattr(module, "takes", lambda *about: True)
    return str(request.param)


@settings(max_examples=100)
@given(layouts(), HEADS, WINDOWS)
def test_one_varlen_call_equals_a_call_a_segment(
    spans: tuple[Span, ...], heads: tuple[int, int], window: int | None
) -> None:
    inputs = inputs_for(spans, *heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", plain_varlen)
        found = results(varlen.attend, inputs, spans, window=window, scaling=0.3)
        patch.setattr(varlen, "GROUPED_HEADS", False)  # torch 2.11
        older = results(varlen.attend, inputs, spans, window=window, scaling=0.3)
    expected = results(by_segment, inputs, spans, window=window, scaling=0.3)
    for f, o, e in zip(found, older, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(o, e, rtol=1e-4, atol=2e-6)


@settings(max_examples=30)
@given(layouts(longest=70), HEADS, st.none() | st.integers(1, 90))
def test_one_block_mask_equals_a_call_a_segment(
    spans: tuple[Span, ...], heads: tuple[int, int], window: int | None
) -> None:
    inputs = inputs_for(spans, *heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_mask, "compiled", lambda: plain_flex)
        found = results(block_mask.attend, inputs, spans, window=window, scaling=0.3)
    expected = results(by_segment, inputs, spans, window=window, scaling=0.3)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=5e-6)


@settings(max_examples=60)
@given(layouts(longest=150), WINDOWS)
def test_listed_blocks_hold_all_that_is_visible_and_no_other_segment_alone(
    spans: tuple[Span, ...], window: int | None
) -> None:
    layout = Layout(spans, CPU)
    total = sum(span.length for span in spans)
    count = -(-total // block_mask.BLOCK)
    listed = block_mask.block_mask_of(layout, window).to_dense()[0, 0].bool()
    assert listed.shape == (count, count)
    index = torch.arange(total)
    visible = nn.functional.pad(
        layout.once(tokens_of).visible(index[:, None], index, window), 2 * (0, count * block_mask.BLOCK - total)
    )
    seen = visible.view(count, block_mask.BLOCK, count, block_mask.BLOCK).any(3).any(1)
    assert not (seen & ~listed).any()
    assert not listed.triu(1).any()
    starts = {span.start // block_mask.BLOCK for span in spans}
    for row in listed:  # one run of blocks from a segment's start
        assert int(row.nonzero()[0]) in starts and int(row.sum()) == int(row.nonzero()[-1] - row.nonzero()[0]) + 1


def test_who_may_look_at_whom_by_hand() -> None:
    """Prompt of two, branches of two and one, then a second segment."""
    tokens: Tokens = Layout(spans_of([(2, 2, 1), (1, 1)]), CPU).once(tokens_of)
    index = torch.arange(7)
    assert tokens.position.tolist() == [0, 1, 2, 3, 2, 0, 1]
    everything = tokens.visible(index[:, None], index, None).int().tolist()
    assert everything == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    near = tokens.visible(index[:, None], index, 2).int().tolist()
    assert near[3] == [0, 0, 1, 1, 0, 0, 0] and near[4] == [0, 1, 0, 0, 1, 0, 0]


def test_sequences_by_hand() -> None:
    made = Layout(spans_of([(2, 2, 1), (1, 1)]), CPU).once(varlen.sequences_of)
    assert made.query_offsets.tolist() == [0, 4, 5, 7]
    assert made.key_offsets.tolist() == [0, 4, 7, 9]
    assert made.keys is not None and made.keys.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6]
    assert (made.most_queries, made.most_keys) == (4, 4)


def test_nothing_is_gathered_where_no_prompt_is_shared() -> None:
    assert Layout(spans_of([(2, 2), (3, 0), (1, 5)]), CPU).once(varlen.sequences_of).keys is None


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_models_give_the_same_through_each_variant(
    name: str, n: int, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GQA, rotary embeddings, sliding windows in some layers: whole models, with gradient checkpointing, made once a batch."""
    batch, made = collate(segments(n)), []
    derive = {"varlen": (varlen, "sequences_of"), "block_mask": (block_mask, "block_mask_of")}[variant]
    own = getattr(*derive)
    monkeypatch.setattr(*derive, lambda *a: made.append(a) or own(*a))
    found = _logprobs_and_gradients(name, batch, checkpointing=True)
    windows = {a[1:] for a in made}
    assert made and len(made) == len(windows)
    monkeypatch.undo()
    expected = _logprobs_and_gradients(name, batch)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=2e-5)
    assert found[1].keys() == expected[1].keys()
    for key, gradient in expected[1].items():
        difference = (found[1][key] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert difference < 1e-3, f"{key}: {difference:.1e}"


def _logprobs_and_gradients(name: str, batch: Any, checkpointing: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    model = policy(CONFIGS[name], "segments").train()
    if checkpointing:
        model.transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    logprobs = model(batch)
    logprobs.sin().sum().backward()
    return logprobs.detach(), {k: p.grad for k, p in model.transformer.named_parameters() if p.grad is not None}


def test_kernels_get_the_dtype_of_autocast(stand_ins: None) -> None:
    """Rotary embeddings leave queries and keys in float32 under autocast, and values in bfloat16: flash takes one dtype."""
    spans = spans_of([(3, 2, 4)])
    q, k, v = inputs_for(spans, 4, 2)
    layout = Layout(spans, CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for attend in (varlen.attend, block_mask.attend):
            out = attend(q, k, v.bfloat16(), layout, window=None, scaling=None)
            exact = by_segment(q, k, v.bfloat16(), layout, window=None, scaling=None)
            assert out.dtype == exact.dtype == torch.bfloat16
            torch.testing.assert_close(out, exact, rtol=2e-2, atol=2e-2)


def test_what_completions_ask_of_a_prompt_is_summed_in_float32() -> None:
    """In bfloat16 a sum of ones stops at 256."""
    x = torch.ones(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    varlen._gather(x, torch.zeros(300, dtype=torch.long)).sum().backward()
    assert x.grad is not None and x.grad.item() == 300


def test_dropout_goes_through_sdpa(variant: str) -> None:
    spans = spans_of([(3, 2, 4), (2, 2)])
    q, k, v = inputs_for(spans, 4, 2)
    layout = Layout(spans, CPU)
    torch.manual_seed(1)
    found, _ = segment_attention(nn.Module(), q, k, v, None, dropout=0.5, segments=layout)
    torch.manual_seed(1)
    expected = per_segment.attend(q, k, v, layout, window=None, scaling=None, dropout=0.5)
    assert torch.equal(found, expected)
    assert not torch.equal(found, by_segment(q, k, v, layout, window=None, scaling=None))


@pytest.mark.parametrize(
    ("device", "dtype", "sizes", "capability", "takes"),
    [
        (CUDA, torch.bfloat16, (64, 64, 64), (8, 0), True),
        (CUDA, torch.float16, (256, 256, 256), (9, 0), True),
        (CUDA, torch.bfloat16, (192, 192, 192), (8, 9), True),
        (CUDA, torch.float32, (64, 64, 64), (9, 0), False),
        (CUDA, torch.bfloat16, (224, 224, 224), (9, 0), False),
        (CUDA, torch.bfloat16, (512, 512, 512), (9, 0), False),
        (CUDA, torch.bfloat16, (60, 60, 60), (9, 0), False),
        (CUDA, torch.bfloat16, (192, 192, 128), (9, 0), False),
        (CUDA, torch.bfloat16, (64, 64, 64), (7, 5), False),
        (CPU, torch.bfloat16, (64, 64, 64), (8, 0), False),
    ],
)
def test_what_the_flash_kernel_is_given(
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    capability: tuple[int, int],
    takes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert varlen.takes(device, dtype, *((2, size) for size in sizes)) is takes
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert not varlen.takes(device, dtype, *((2, size) for size in sizes))


def test_flex_attention_is_compiled_once_for_all_lengths_and_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above torch's limit of compilations it would run uncompiled, with scores of [T, T]. Without a kernel: traced only."""
    torch._dynamo.reset()
    counter = CompileCounter()
    traced = torch.compile(flex_attention, dynamic=True, backend=counter)
    monkeypatch.setattr(block_mask, "compiled", lambda: traced)
    compiled = []
    for shapes, window in (([(200, 150)], 20), ([(9, 300, 5), (1, 1)], None), ([(80, 70, 60)], 31)):
        spans = spans_of(shapes)
        inputs = [x.detach() for x in inputs_for(spans, 4, 2)]
        found = block_mask.attend(*inputs, Layout(spans, CPU), window=window, scaling=None)
        torch.testing.assert_close(
            found, by_segment(*inputs, Layout(spans, CPU), window=window, scaling=None), rtol=1e-4, atol=5e-6
        )
        compiled.append(counter.frame_count)
    assert compiled[0] > 0 and len(set(compiled)) == 1


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (plain_flex, None),
        (lambda q, k, v, **how: 2 * plain_flex(q, k, v, **how), "differs from SDPA"),
        (lambda q, k, v, **how: plain_flex(q, k, v, **how) * torch.nan, "differs from SDPA by nan"),
        (lambda *a, **how: (_ for _ in ()).throw(RuntimeError("no compiler here\nmore")), "no compiler here"),
    ],
)
def test_flex_attention_is_tried_before_it_is_used(
    kernel: Any, said: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(block_mask, "compiled", lambda: kernel)
    block_mask.agrees.cache_clear()
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        assert block_mask.agrees(CPU, torch.float32, (4, 16), (2, 16), (2, 16)) is (said is None)
    block_mask.agrees.cache_clear()
    assert said is None or said in caplog.text
    assert torch.equal(torch.get_rng_state(), before)  # the run's random numbers are not touched
    assert not block_mask.takes(CPU, torch.float32, (4, 16), (2, 16), (2, 16))  # no backward pass there
