"""The adapters that a policy runs with, as one LoRA adapter on disk, for an engine that takes one for each request (vLLM).

Between training and sampling by an engine, after each iteration. `adapters.save_adapters` writes `final/` and asks for the
policy to have one adapter; here it may have two (a frozen parent's under those that train), and stays as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlhf.models.adapters import CONFIG, lora_layers, summed, targets, total_rank
from rlhf.models.lineage import ADAPTER


def names_of(adapted: Any) -> list[str]:
    """The adapters that the policy runs with, the frozen parent's first."""
    return list(lora_layers(adapted)[0].active_adapters)


def rank_of(adapted: Any) -> int:
    """The rank of the one adapter that `write_adapter` writes."""
    return total_rank(adapted, names_of(adapted))


@torch.no_grad()
def adapter_state(adapted: Any) -> dict[str, Tensor]:
    """The policy's adapters as one, in float32 on the CPU, by peft's names: the same function, its rank the sum of theirs."""
    names, rank = names_of(adapted), rank_of(adapted)
    state: dict[str, Tensor] = {}
    for name, layer in _layers(adapted, names).items():
        for part, weight in zip(("lora_A", "lora_B"), summed(layer, names, rank), strict=True):
            state[f"base_model.model.{name}.{part}.weight"] = weight.float().cpu().contiguous()
    return state


def write_adapter(adapted: Any, state: dict[str, Tensor], folder: Path) -> None:
    """Write `state` of `adapter_state` as a folder that peft and vLLM load."""
    network, rank = adapted.get_base_model(), rank_of(adapted)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,  # the scaling is in B
        "target_modules": sorted(targets(network, set(_layers(adapted, names_of(adapted))))),
        "bias": "none",
    }
    folder.mkdir(parents=True)
    save_file(state, folder / ADAPTER, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _layers(adapted: Any, names: list[str]) -> dict[str, Any]:
    """The layers that carry one of these adapters; a value or reward model's own are left out."""
    carrying = {id(layer) for layer in lora_layers(adapted) if any(name in layer.lora_A for name in names)}
    return {name: layer for name, layer in adapted.get_base_model().named_modules() if id(layer) in carrying}
