"""`final/`: what a stage leaves to the next, with the tokenizer and where it came from.

A LoRA run leaves its adapters, in float32, and the name of the base that they belong on (`lineage.json`). Nothing is merged:
a delta added to weights that the next stage quantises again, or rounds to bf16, is lost in the rounding. A full fine-tune
leaves the whole model. A reward model's head is `head.safetensors`; a whole one is transformers' classifier too
(`rlhf.models.classifier`). Everything is safetensors and JSON.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.embedded import hub_name
from rlhf.errors import CheckpointError
from rlhf.models.adapters import save_adapters
from rlhf.models.classifier import save_classifier
from rlhf.models.lineage import HEAD, Lineage
from rlhf.models.scores import ScoreScale, read_scale

if TYPE_CHECKING:
    from rlhf.models.batching import SegmentModule
    from rlhf.models.scalar import ScalarModel


def save_final(
    module: SegmentModule, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: torch.dtype, lineage: Lineage
) -> None:
    """Write `folder`: adapters where the module has them, else the whole model with its weights in `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    if module.has_adapters:
        save_adapters(module.model, folder, base=hub_name(lineage.base.name_or_path))
        save_head(module, folder)
        tokenizer.save_pretrained(folder)
    else:
        save_standalone(module, tokenizer, folder, dtype)
    lineage.write(folder)


def save_standalone(
    module: SegmentModule, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype
) -> None:
    """A whole model with its tokenizer, for any tool: a policy's network, or a reward model as a classifier.

    Where transformers has no classifier for the body, the body alone; `head.safetensors` is there in either case.
    """
    state = merged_state(module.transformer, dtype)
    if not hasattr(module, "head") or not save_classifier(module, state, tokenizer, folder, dtype):  # type: ignore[arg-type]
        save_whole(module.transformer, state, folder, dtype)
        tokenizer.save_pretrained(folder)
    save_head(module, folder)


def save_head(module: SegmentModule, folder: Path) -> None:
    """The scalar head of a reward model and the scale of its scores; nothing for a policy."""
    head, scale = getattr(module, "head", None), getattr(module, "scale", None)
    if isinstance(scale, ScoreScale):
        scale.write(folder)
    if isinstance(head, nn.Linear):
        save_file({"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}, folder / HEAD)


def load_head(model: ScalarModel, folder: Path) -> None:
    """The scalar head saved beside a body; a folder without one leaves the fresh head."""
    path = folder / HEAD
    if not path.is_file():
        return
    state = load_file(path)
    if state["weight"].shape != model.head.weight.shape:
        raise CheckpointError(
            f"{path}: a head of width {state['weight'].shape[1]} on a body of {model.head.in_features}"
        )
    model.head.load_state_dict(state)
    model.scale = read_scale(folder)


def save_whole(network: PreTrainedModel, state: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """The network with the weights of `merged_state` as a model that loads anywhere."""
    quantizer, quantization = (
        getattr(network, "hf_quantizer", None),
        getattr(network.config, "quantization_config", None),
    )
    stored_dtype = network.config.dtype
    try:  # transformers refuses to write a model that says it is quantised; what is written here is not
        if quantizer is not None:
            network.hf_quantizer = None  # type: ignore[assignment]
            del network.config.quantization_config
        PreTrainedModel.save_pretrained(network, folder, state_dict=state)
        network.config.dtype = dtype  # it wrote the dtype of the network, not that of the weights it was given
        network.config.save_pretrained(folder)
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
        weight = _dense(base.weight, getattr(base, "compute_dtype", None)).float()
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


def _dense(weight: Tensor, compute_dtype: torch.dtype | None = None) -> Tensor:
    """The weight itself, or what a 4-bit weight stands for in the arithmetic of its layer."""
    if not hasattr(weight, "quant_state"):
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(weight.quant_state)
    state.dtype = compute_dtype or state.dtype
    return dequantize_4bit(weight.data, state)
