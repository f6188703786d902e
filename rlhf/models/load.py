"""From a recipe's model, quantization and lora sections to modules ready to train.

Only safetensors weights are read. Dropout of the pretrained model is switched off everywhere: the ratios of PPO and the
reference terms of DPO compare log-probabilities, and noise in them is bias. `lora_dropout` is the user's own choice.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from rlhf.errors import RecipeError, SetupError, first_line
from rlhf.models.adapters import FEATURES, add_role, lora_layers, put_adapters, recomputed
from rlhf.models.lineage import adapter_lineage, problem_with_policy, quantization_of, trained_dtype
from rlhf.models.policy import Policy
from rlhf.models.precision import settled
from rlhf.models.probe import check_probe
from rlhf.models.save import load_head
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.sections import LoraSection, Precision, QuantizationSection, StoredModelSection
from rlhf.tokens.tokenizer import find_model

transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Source:
    """What a model's name stands for: a base, and the `final/` whose adapters belong on it, if any."""

    base: str
    parent: Path | None
    folder: Path  # what the name itself stands for: where a saved head and the probe lie
    quantization: QuantizationSection | None


def source_of(name_or_path: str, quantization: QuantizationSection | None) -> Source:
    """Where the weights are. A run's folder means its `final/`; a `final/` of adapters means its base with them on it.

    Raises RecipeError for what is not there, for a base that is not the one the adapters were trained on, and for another
    quantisation than theirs.
    """
    path = find_model(name_or_path)
    folder = Path(path)
    lineage = adapter_lineage(folder)
    if lineage is None:
        return Source(path, None, folder, quantization)
    lineage.check_base(folder)
    return Source(find_model(lineage.base.name_or_path), folder, folder, quantization_of(lineage, quantization, folder))


def load_policy(
    model: StoredModelSection,
    *,
    quantization: QuantizationSection | None = None,
    lora: LoraSection | None = None,
    trains: bool = False,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    device: torch.device | str = "cpu",
    proven: bool = True,
) -> Policy:
    """A causal language model as a `Policy`; with `lora`, its adapters train and its base is frozen.

    A section without a dtype means that of the training, or of the config (`trained_dtype`).

    `trains` without `lora` is full fine-tuning: adapters of a parent are then merged into the base, in float32.
    `proven`: a `final/` is held against its probe. Raises RecipeError for a reward model.
    """
    if problem := problem_with_policy(model.name_or_path):
        raise RecipeError(f"model.name_or_path: {problem}")
    source = source_of(model.name_or_path, quantization)
    network = _pretrained(AutoModelForCausalLM, source.base, _dtype(model, device), source.quantization, device)
    adapted = _adapted(network, source, "CAUSAL_LM", lora, trains, bf16, gradient_checkpointing)
    policy = Policy(adapted, pad_token_id=_pad_token_id(network), batching=model.batching, bf16=bf16)
    if proven:
        check_probe(policy, source.folder)
    return policy


def load_scalar_model(
    model: StoredModelSection,
    *,
    quantization: QuantizationSection | None = None,
    lora: LoraSection | None = None,
    trains: bool = False,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    device: torch.device | str = "cpu",
    proven: bool = True,
) -> ScalarModel:
    """A body with a scalar head: the head of a saved reward model where the folder has one, else a fresh one."""
    source = source_of(model.name_or_path, quantization)
    network = _pretrained(AutoModel, source.base, _dtype(model, device), source.quantization, device)
    adapted = _adapted(network, source, FEATURES, lora, trains, bf16, gradient_checkpointing)
    scalar = ScalarModel(adapted, pad_token_id=_pad_token_id(network), batching=model.batching, bf16=bf16)
    load_head(scalar, source.folder)
    if proven:
        check_probe(scalar, source.folder)
    return scalar


def load_role(
    policy: Policy, source: Source, role: str, lora: LoraSection, *, trains: bool, batching: str = "auto"
) -> ScalarModel:
    """A scalar model on the policy's own base, as one more adapter with a head: no second base in memory.

    source: what `source_of` says of the model that the role starts from; its base must be the policy's (`same_base`).
    """
    add_role(policy.model, role, lora, source.parent, trains=trains, bf16=policy.bf16)
    scalar = ScalarModel(
        policy.model, pad_token_id=policy.pad_token_id, batching=batching, bf16=policy.bf16, adapters=[role]
    )
    scalar.head.requires_grad_(trains)
    load_head(scalar, source.folder)
    check_probe(scalar, source.folder)
    return scalar


def same_base(one: Source, other: Source) -> bool:
    """Whether two models are adapters on one base, or one of them is that base itself."""
    return (one.base, one.quantization) == (other.base, other.quantization)


def _adapted(
    network: PreTrainedModel,
    source: Source,
    task: str,
    lora: LoraSection | None,
    trains: bool,
    bf16: bool,
    gradient_checkpointing: bool,
) -> nn.Module:
    """The network with whatever adapters belong on it, ready to run."""
    disable_dropout(network)
    if gradient_checkpointing:
        with warnings.catch_warnings():  # renamed in transformers 5.23
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
            options: dict[str, Any] = {"use_reentrant": False, "context_fn": partial(recomputed, network)}
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if lora is None and source.parent is None:
        return network
    adapted: nn.Module = put_adapters(network, lora, source.parent, task=task)
    if lora is None and trains:
        merged: nn.Module = adapted.merge_and_unload()  # type: ignore[operator]
        return merged.requires_grad_(True)
    for layer in lora_layers(adapted):
        layer.cast_input_dtype_enabled = not bf16  # autocast would only cast back: two copies of every activation
    return adapted


def _dtype(model: StoredModelSection, device: torch.device | str) -> Precision:
    return settled(model.dtype or trained_dtype(model.name_or_path), device)


def _pretrained(
    auto: Any, path: str, dtype: str, quantization: QuantizationSection | None, device: torch.device | str
) -> PreTrainedModel:
    device = torch.device(device)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    if device.type != "cpu":  # straight to the device: no process holds the whole model in the host's memory
        options["device_map"] = {"": device}
    if quantization is not None and quantization.load_in_4bit:
        options |= {"quantization_config": _bitsandbytes_config(quantization), "device_map": {"": device}}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a body without its language-model head is what AutoModel is asked for
    try:
        network: PreTrainedModel = auto.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.name_or_path: cannot load {path!r}: {first_line(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    network.config.use_cache = True
    for layer in network.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # in eval mode bitsandbytes would repack a CPU weight for good, in another precision and without a gradient
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return network


def _bitsandbytes_config(section: QuantizationSection) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise SetupError("quantization: needs bitsandbytes; install it with: pip install 'rlhf[quant]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=section.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, section.bnb_4bit_compute_dtype),
    )


def disable_dropout(network: nn.Module) -> None:
    """Every dropout of a pretrained model to zero, the attention's own included."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):  # handed to a functional dropout, or to attention
                setattr(module, name, 0.0)


def _pad_token_id(network: PreTrainedModel) -> int:
    """Any valid id: padding is masked by position, never recognised by its id."""
    config = network.config.get_text_config()
    return config.pad_token_id if config.pad_token_id is not None else 0
