"""LoRA adapters on a base: fresh, continued from a parent's, or stacked on a frozen parent's.

    no parent             "default" trains; the reference is the base alone
    parent, continue      "default" trains from a copy of the parent's; the reference is the base with "start", the parent's
    parent, fresh         "default" trains from zero on top of "start"; the reference is the base with "start"

Beside them, PPO's other models may lie on the same base, each as an adapter named after its role (`add_role`).

Nothing is merged into the base, whose weights may be quantised. Which adapters count is a flag of each layer, switched by
`active`; unlike peft's `set_adapter` and `disable_adapter` that leaves `requires_grad` alone and costs no search.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.errors import CheckpointError, RecipeError, first_line
from rlhf.models.lineage import ADAPTER
from rlhf.recipe.sections import LoraSection

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG = "adapter_config.json"
TRAINED, START, BOTH = "default", "start", "both"
FEATURES = "FEATURE_EXTRACTION"  # peft's word for a body without a language model's head


def put_adapters(network: PreTrainedModel, lora: LoraSection | None, parent: Path | None, *, task: str) -> Any:
    """The network under peft, with the adapters that the module's docstring lists, in float32.

    `lora` is None for a model that does not train: the parent's adapters alone, frozen. `parent` is a `final/`.
    Raises RecipeError for layers that are not there, and for a recipe that contradicts the parent's adapters.
    """
    if parent is None:
        assert lora is not None
        return _checked(_inject(network, _config_of(lora, task)), network)
    config = _config_in(parent, task)
    state = _state_for(network, load_file(parent / ADAPTER))
    if lora is None:
        adapted = _inject(network, config)
        _fill(adapted, state, TRAINED, parent)
        return adapted.requires_grad_(False)
    if lora.start == "continue":
        _check_agreement(network, lora, config, parent)
        config.lora_dropout = lora.lora_dropout
        adapted = _inject(network, config)
    else:
        adapted = _inject(network, _config_of(lora, task))
    adapted.add_adapter(START, _config_in(parent, task))
    _fill(adapted, state, START, parent)
    if lora.start == "continue":
        _fill(adapted, state, TRAINED, parent)
    for layer in lora_layers(adapted):
        layer._active_adapter = [TRAINED] if lora.start == "continue" else [START, TRAINED]
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad = f".{TRAINED}." in name
    return _checked(adapted, network)


def lora_layers(module: nn.Module) -> list[Any]:
    """Every layer that carries adapters."""
    return [layer for layer in module.modules() if _carries_adapters(layer)]


def _carries_adapters(layer: nn.Module) -> bool:
    """By what such a layer has: a base model without adapters must not wait for peft's import."""
    return hasattr(layer, "lora_A") and hasattr(layer, "base_layer")


@contextmanager
def active(layers: Sequence[Any], names: Sequence[str]) -> Iterator[None]:
    """Only these adapters count in the block; none for no names. Layers without an adapter of a name go without it."""
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter, layer._disable_adapters = list(names), not names
    try:
        yield
    finally:
        for layer, (adapters, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = adapters, disabled


def add_role(adapted: Any, role: str, lora: LoraSection, parent: Path | None, *, trains: bool, bf16: bool) -> None:
    """One more adapter on the base of `adapted`, called `role`: a parent's, else a fresh one in the shape of `lora`.

    Which adapters count, and which of the others train, stays as it is. Raises as `put_adapters` does.
    """
    network, own = adapted.get_base_model(), next(iter(lora_layers(adapted)))._active_adapter
    trained = {id(parameter) for parameter in adapted.parameters() if parameter.requires_grad}
    config = _config_of(lora, FEATURES) if parent is None else _config_in(parent, FEATURES)
    adapted.add_adapter(role, config)
    if parent is not None:
        _fill(adapted, _state_for(network, load_file(parent / ADAPTER)), role, parent)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad = id(parameter) in trained or (trains and f".{role}." in name)
    for layer in lora_layers(adapted):  # peft activates what it adds
        layer._active_adapter, layer.cast_input_dtype_enabled = list(own), not bf16
    _checked(adapted, network)


def recomputed(network: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For torch's checkpointing (`context_fn`): a block that is computed again in the backward pass uses the adapters of its
    forward pass, whichever count by then.
    """
    layers = lora_layers(network)
    first = next(iter(layers), None)
    names = [] if first is None or first._disable_adapters else list(first._active_adapter)
    return nullcontext(), active(layers, names)


def is_stacked(adapted: Any) -> bool:
    """Whether trained adapters lie on top of a parent's."""
    return any(len(layer.active_adapters) > 1 for layer in lora_layers(adapted))


@torch.no_grad()
def combine(adapted: Any) -> None:
    """Let one adapter take the place of stacked ones: [s1 B1, s2 B2] [A1; A2] = s1 B1 A1 + s2 B2 A2, its rank their sum.

    The same function, summed in another order. For the end of a run: what is saved is then what runs.
    """
    network = adapted.get_base_model()
    layers: dict[str, Any] = {name: layer for name, layer in network.named_modules() if _carries_adapters(layer)}
    rank = total_rank(adapted, (START, TRAINED))
    config = copy.copy(adapted.peft_config[TRAINED])
    config.r = config.lora_alpha = rank
    config.target_modules, config.lora_dropout = targets(network, set(layers)), 0.0
    adapted.add_adapter(BOTH, config)
    for layer in layers.values():
        down, up = summed(layer, (START, TRAINED), rank)
        layer.lora_A[BOTH].weight.copy_(down)
        layer.lora_B[BOTH].weight.copy_(up)
        layer._active_adapter = [BOTH]


def total_rank(adapted: Any, names: Sequence[str]) -> int:
    """The rank of one adapter that does what these do together."""
    return sum(adapted.peft_config[name].r for name in names)


def summed(layer: Any, names: Sequence[str], rank: int) -> tuple[Tensor, Tensor]:
    """A layer's adapters of these names as one of `rank` with a scaling of 1: A [rank, in] and B [out, rank]; zeros fill up."""
    used = [name for name in names if name in layer.lora_A]  # a layer may carry one of them only
    down = torch.cat([layer.lora_A[name].weight for name in used])
    up = torch.cat([layer.lora_B[name].weight * layer.scaling[name] for name in used], dim=1)
    missing = rank - down.shape[0]
    return nn.functional.pad(down, (0, 0, 0, missing)), nn.functional.pad(up, (0, missing))


def save_adapters(adapted: Any, folder: Path, *, base: str) -> None:
    """The active adapter in peft's own format and in float32; stacked ones are combined before."""
    network = adapted.get_base_model()
    layers: dict[str, Any] = {name: layer for name, layer in network.named_modules() if _carries_adapters(layer)}
    (active_name,) = {name for layer in layers.values() for name in layer.active_adapters}
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            weight = getattr(layer, part)[active_name].weight
            state[f"base_model.model.{name}.{part}.weight"] = weight.detach().float().cpu().contiguous()
    config = adapted.peft_config[active_name].to_dict()
    config["target_modules"] = targets(network, set(layers))
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    save_file(state, folder / ADAPTER, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(plain, indent=2, default=str) + "\n", encoding="utf-8")


def targets(network: PreTrainedModel, layers: set[str]) -> set[str]:
    """The adapted layers by the last part of their names, which says the same in a body and in a causal model; by their
    whole names where other layers end alike.
    """
    last = {name.rpartition(".")[2] for name in layers}
    inside = tuple(f"{name}." for name in layers)
    alike = {n for n, _ in network.named_modules() if n.rpartition(".")[2] in last and not n.startswith(inside)}
    prefix = f"{network.base_model_prefix}."
    return last if alike == layers else {name.removeprefix(prefix) for name in layers}


def _config_in(parent: Path, task: str) -> LoraConfig:
    """The shape of a parent's adapters, to be run without dropout."""
    from peft import LoraConfig

    config: LoraConfig = LoraConfig.from_pretrained(str(parent))
    config.task_type, config.inference_mode, config.lora_dropout = task, False, 0.0
    return config


def _config_of(lora: LoraSection, task: str) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r or 8,
        lora_alpha=lora.lora_alpha or 16,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules or "all-linear",
        task_type=task,
    )


def _inject(network: PreTrainedModel, config: LoraConfig) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():
        # renamed in transformers 5.23; peft asks for the old name too
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
        warnings.filterwarnings(
            "ignore", message=".*`base_model_name_or_path` was renamed"
        )  # a cache's folder has no name
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # GPT-2's Conv1D: peft corrects it
        try:
            return get_peft_model(network, config)
        except ValueError as error:
            raise RecipeError(f"lora.target_modules: {first_line(error)}") from error


def _checked(adapted: Any, network: PreTrainedModel) -> Any:
    if hasattr(network.get_output_embeddings(), "base_layer"):
        raise RecipeError("lora.target_modules: adapters on the output head are not supported; name other layers")
    return adapted


def _state_for(network: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Saved adapters under the names of this network: a body has no `model.` (or `transformer.`) before its layers, a
    causal model has.
    """
    inner = f"base_model.model.{network.base_model_prefix}."
    whole = hasattr(network, network.base_model_prefix)
    if all(name.startswith(inner) for name in state) == whole:
        return state
    if whole:
        return {inner + name.removeprefix("base_model.model."): value for name, value in state.items()}
    return {"base_model.model." + name.removeprefix(inner): value for name, value in state.items()}


def _fill(adapted: Any, state: dict[str, Tensor], name: str, parent: Path) -> None:
    """Put saved weights into adapter `name`. Raises CheckpointError where one of them has no place, or has no weight."""
    from peft import set_peft_model_state_dict

    result: Any = set_peft_model_state_dict(adapted, dict(state), adapter_name=name)
    places = sum(f".{name}." in key and "lora_" in key for key, _ in adapted.named_parameters())
    if result.unexpected_keys or places != len(state):
        odd = f", the first is {result.unexpected_keys[0]}" if result.unexpected_keys else ""
        raise CheckpointError(
            f"{parent}: {len(state)} adapter weights for {places} places in this base{odd}: they are of another model"
        )


def _check_agreement(network: PreTrainedModel, lora: LoraSection, config: LoraConfig, parent: Path) -> None:
    """A continued adapter keeps its shape: what the recipe states must agree with it."""
    for key in ("r", "lora_alpha", "target_modules"):
        asked, kept = getattr(lora, key), getattr(config, key)
        if asked is None:
            continue
        if key == "target_modules":
            same = _named(network, asked) == _named(network, kept)
            kept = sorted({name.rpartition(".")[2] for name in kept})
        else:
            same = asked == kept
        if not same:
            raise RecipeError(
                f"lora.{key}: {asked} here, but the adapters in {parent} that this stage goes on training have "
                f"{kept}. Leave the key out, or put new adapters on top of them with lora.start: fresh"
            )


def _named(network: PreTrainedModel, targets: str | Collection[str]) -> set[str]:
    """The layers that `lora.target_modules` names, as peft reads it: all linear layers but the head, a pattern of whole
    names, or the ends of names.
    """
    head = network.get_output_embeddings()
    names = {
        name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    }
    if targets == "all-linear":
        return names
    if isinstance(targets, str):
        return {name for name in names if re.fullmatch(targets, name)}
    return {name for name in names if any(name == end or name.endswith(f".{end}") for end in targets)}
