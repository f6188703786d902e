"""`final/`: a whole model that loads anywhere, with the tokenizer, the adapters apart, and where it came from.

A LoRA run's weights are merged in float32 onto the very base they were trained on (for a 4-bit base, its dequantised
weights: the function that was trained) and written in the base's precision; the adapters lie beside in `adapter/`. A
reward model's head is `head.safetensors`, so no merge can lose it. Everything is safetensors and JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.errors import CheckpointError
from rlhf.recipe.sections import TemplateSection

if TYPE_CHECKING:
    from rlhf.models.batching import SegmentModule
    from rlhf.models.scalar import ScalarModel


def save_final(
    module: SegmentModule,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype,
    lineage: dict[str, Any],
) -> None:
    """Write `folder`. `dtype` is the precision of the stored weights; `lineage` says what the model was made from."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_transformer(module, folder, dtype)
    if module.has_adapters:
        module.model.save_pretrained(folder / "adapter", safe_serialization=True)  # type: ignore[operator]
    head = getattr(module, "head", None)
    if isinstance(head, nn.Linear):
        save_file({"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}, folder / "head.safetensors")
    tokenizer.save_pretrained(folder)
    (folder / "lineage.json").write_text(json.dumps(lineage, indent=2) + "\n")


def load_head(model: ScalarModel, folder: Path) -> None:
    """The scalar head saved beside a body; a folder without one leaves the fresh head."""
    path = folder / "head.safetensors"
    if not path.is_file():
        return
    state = load_file(path)
    if state["weight"].shape != model.head.weight.shape:
        raise CheckpointError(
            f"{path}: a head of width {state['weight'].shape[1]} on a body of {model.head.in_features}"
        )
    model.head.load_state_dict(state)


def saved_template(folder: Path) -> TemplateSection | None:
    """The template that a `final/` was trained with; None for a model from elsewhere."""
    lineage = folder / "lineage.json"
    if not lineage.is_file():
        return None
    return TemplateSection.model_validate(json.loads(lineage.read_text(encoding="utf-8"))["template"])


def _save_transformer(module: SegmentModule, folder: Path, dtype: torch.dtype) -> None:
    network = module.transformer
    state = merged_state(network, dtype)
    quantizer, quantization = (
        getattr(network, "hf_quantizer", None),
        getattr(network.config, "quantization_config", None),
    )
    stored_dtype = network.config.dtype
    try:  # transformers refuses to write a model that says it is quantised; what is written here is not
        if quantizer is not None:
            network.hf_quantizer = None  # type: ignore[assignment]
            del network.config.quantization_config
        network.config.dtype = dtype
        PreTrainedModel.save_pretrained(network, folder, state_dict=state)
    finally:
        network.config.dtype = stored_dtype
        if quantizer is not None:
            network.hf_quantizer, network.config.quantization_config = quantizer, quantization


@torch.no_grad()
def merged_state(network: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The network's weights under their own names, adapters added in: W + scaling * B A, in float32.

    Each goes to the CPU in `dtype` at once, so the device never holds more than one merged matrix.
    """
    state: dict[str, Tensor] = {}
    layers = {name: m for name, m in network.named_modules() if hasattr(m, "base_layer")}
    for name, layer in layers.items():
        base: Any = layer.base_layer
        weight = _dense(base.weight).float()
        for adapter in layer.active_adapters:
            weight = weight + layer.get_delta_weight(adapter).float()
        state[f"{name}.weight"] = weight.to("cpu", dtype)
        if base.bias is not None:
            state[f"{name}.bias"] = base.bias.detach().to("cpu", dtype)
    inside = tuple(f"{name}." for name in layers)
    stored: dict[int, Tensor] = {}  # by identity: tied weights stay tied
    for name, value in [*network.named_parameters(remove_duplicate=False), *_kept_buffers(network)]:
        if inside and name.startswith(inside):
            continue
        if id(value) not in stored:
            dense = _dense(value)
            stored[id(value)] = dense.to("cpu", dtype) if dense.is_floating_point() else dense.cpu()
        state[name] = stored[id(value)]
    return state


def _kept_buffers(network: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """Buffers that belong to the weights (rotary tables and the like do not)."""
    kept = network.state_dict().keys()
    return [(name, value) for name, value in network.named_buffers() if name in kept]


def _dense(weight: Tensor) -> Tensor:
    """The weight itself, or what a 4-bit weight stands for."""
    if not hasattr(weight, "quant_state"):
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)
