"""From a recipe's model, quantization and lora sections to modules ready to train.

Only safetensors weights are read. Dropout of the pretrained model is switched off everywhere: the ratios of PPO and the
reference terms of DPO compare log-probabilities, and noise in them is bias. `lora_dropout` is the user's own choice.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from rlhf.embedded import resolve
from rlhf.errors import RecipeError, SetupError, first_line
from rlhf.models.policy import Policy
from rlhf.models.save import load_head
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.sections import LoraSection, ModelSection, QuantizationSection
from rlhf.tokens.tokenizer import find_model

transformers_logging.disable_progress_bar()
# peft imports bitsandbytes wherever it is installed, which then warns of an optional kernel that nobody asked for
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def load_policy(
    model: ModelSection,
    *,
    quantization: QuantizationSection | None = None,
    lora: LoraSection | None = None,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    device: torch.device | str = "cpu",
) -> Policy:
    """A causal language model as a `Policy`; with `lora`, its adapters train and its base is frozen."""
    network = _pretrained(AutoModelForCausalLM, model, quantization, device)
    pad = _pad_token_id(network)
    wrapped = _trainable(network, lora, gradient_checkpointing=gradient_checkpointing, bf16=bf16, task="CAUSAL_LM")
    return Policy(wrapped, pad_token_id=pad, batching=model.batching, bf16=bf16)


def load_scalar_model(
    model: ModelSection,
    *,
    quantization: QuantizationSection | None = None,
    lora: LoraSection | None = None,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    device: torch.device | str = "cpu",
) -> ScalarModel:
    """A body with a scalar head: the head of a saved reward model where the folder has one, else a fresh one."""
    network = _pretrained(AutoModel, model, quantization, device)
    pad = _pad_token_id(network)
    task = "FEATURE_EXTRACTION"
    wrapped = _trainable(network, lora, gradient_checkpointing=gradient_checkpointing, bf16=bf16, task=task)
    scalar = ScalarModel(wrapped, pad_token_id=pad, batching=model.batching, bf16=bf16)
    load_head(scalar, Path(resolve(model.name_or_path)))
    return scalar


def is_reward_model(name_or_path: str) -> bool:
    """Whether the folder was written by the reward stage (a body with its head)."""
    return (Path(resolve(name_or_path)) / "head.safetensors").is_file()


def _pretrained(
    auto: Any, section: ModelSection, quantization: QuantizationSection | None, device: torch.device | str
) -> PreTrainedModel:
    path = find_model(section.name_or_path)
    options: dict[str, Any] = {"dtype": getattr(torch, section.dtype), "use_safetensors": True}
    if quantization is not None and quantization.load_in_4bit:
        options |= {"quantization_config": _bitsandbytes_config(quantization), "device_map": {"": torch.device(device)}}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a body without its language-model head is what AutoModel is asked for
    try:
        network: PreTrainedModel = auto.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.name_or_path: cannot load {path!r}: {first_line(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    network.config.use_cache = True
    if "device_map" not in options:
        return network.to(device)  # type: ignore[arg-type,no-any-return]
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


def _trainable(
    network: PreTrainedModel, lora: LoraSection | None, *, gradient_checkpointing: bool, bf16: bool, task: str
) -> nn.Module:
    """The network with its adapters, which alone train; the network itself without `lora`."""
    disable_dropout(network)
    with warnings.catch_warnings():
        # renamed in transformers 5.23; peft asks for the old name too
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # GPT-2's Conv1D: peft corrects it
        if gradient_checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is None:
            return network
        adapted = _with_adapters(network, lora, task)
    for layer in adapted.modules():
        if hasattr(layer, "cast_input_dtype_enabled"):  # autocast would only cast back: two copies of every activation
            layer.cast_input_dtype_enabled = not bf16  # type: ignore[assignment]
    return adapted


def _with_adapters(network: PreTrainedModel, lora: LoraSection, task: str) -> nn.Module:
    """Adapters in float32, whatever the base's precision."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        task_type=task,
    )
    try:
        adapted = get_peft_model(network, config)
    except ValueError as error:
        raise RecipeError(f"lora.target_modules: {first_line(error)}") from error
    if hasattr(network.get_output_embeddings(), "base_layer"):
        raise RecipeError("lora.target_modules: adapters on the output head are not supported; name other layers")
    return adapted


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
