"""The kernels themselves, on a CUDA device: `python -m pytest -m gpu tests/models/test_attention_gpu.py`."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.models.attention import block_mask, per_segment, segment_attention, varlen
from rlhf.models.attention.layout import Layout
from rlhf.models.load import disable_dropout
from rlhf.models.policy import Policy
from rlhf.tokens.segments import collate
from tests.models.attention_cases import by_segment, inputs_for, results, spans_of
from tests.models.test_attention import CONFIGS, segments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LAYOUTS = {
    "alone": [(5, 3), (300, 129), (1, 1)],
    "pairs": [(130, 60, 200), (1, 1, 1), (500, 3, 700)],
    "groups": [(97, *range(1, 9)), (260, 128, 129, 1, 64)],
    "prefill": [(7, 0), (300, 0)],
}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 128), (2, 1, 256), (4, 2, 8)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_flash_call_equals_a_call_a_segment(
    layout: str, heads: int, kv_heads: int, size: int, window: int | None
) -> None:
    spans = spans_of(LAYOUTS[layout])
    inputs = inputs_for(spans, heads, kv_heads, size, "cuda", torch.bfloat16)
    assert varlen.takes(inputs[0].device, torch.bfloat16, (heads, size), (kv_heads, size), (kv_heads, size))
    found = results(varlen.attend, inputs, spans, window=window, scaling=size**-0.5)
    exact_inputs = [x.detach().float().requires_grad_() for x in inputs]
    expected = results(by_segment, exact_inputs, spans, window=window, scaling=size**-0.5)
    for name, f, e in zip(("output", "query", "key", "value"), found, expected, strict=True):
        if e.norm() > 0:  # with a window of one token the weights are ones, and nothing moves them
            assert relative(f, e) < 2e-2, name


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("size", [64, 80])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_flex_attention_in_float32_equals_a_call_a_segment(layout: str, size: int, window: int | None) -> None:
    spans = spans_of(LAYOUTS[layout])
    inputs = inputs_for(spans, 6, 2, size, "cuda")
    if not block_mask.takes(inputs[0].device, torch.float32, (6, size), (2, size), (2, size)):
        pytest.skip("FlexAttention does not compile here: the log says why")
    found = results(block_mask.attend, inputs, spans, window=window, scaling=None)
    expected = results(by_segment, inputs, spans, window=window, scaling=None)
    assert max(relative(f, e) for f, e in zip(found, expected, strict=True)) < 1e-4


def test_the_host_never_waits_for_the_device() -> None:
    spans = spans_of(LAYOUTS["groups"])
    inputs = inputs_for(spans, 9, 3, 64, "cuda", torch.bfloat16)
    module = torch.nn.Module()

    def run() -> None:
        layout = Layout(spans, inputs[0].device)
        for _ in range(2):  # layers
            out, _ = segment_attention(module, *inputs, None, segments=layout, sliding_window=50)
            out.sum().backward()

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CONFIGS)
def test_models_under_autocast_take_the_flash_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(CONFIGS[name]).cuda()
    disable_dropout(network)
    batch = collate(segments(3)).to("cuda")
    with torch.no_grad():
        exact = Policy(network, pad_token_id=2, batching="padded")(batch)
        monkeypatch.setattr(per_segment, "attend", None)
        model = Policy(network, pad_token_id=2, batching="segments", bf16=True)
        assert relative(model(batch).float(), exact) < 3e-2
