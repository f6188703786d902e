"""What a stage starts from: the recipe's model, tokenizer and rows, loaded once, the same way for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from rlhf.generation.engine import Engine
from rlhf.generation.in_process import InProcessEngine
from rlhf.models.lineage import adapter_lineage, quantization_beside
from rlhf.models.load import load_policy, load_scalar_model
from rlhf.models.policy import Policy
from rlhf.models.probe import check_probe
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.tokenizer import find_model


@dataclass(frozen=True)
class Setup:
    """The parts of one run. `train` and `held_out` are tokenised rows: segments, or for PPO prompts."""

    recipe: TrainRecipe
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Any]
    held_out: Sequence[Any]

    def policy(self) -> Policy:
        """The model that trains."""
        return load_policy(self.recipe.model, lora=self.recipe.lora, trains=True, **self._options)

    def other_policy(self, name_or_path: str) -> Policy | None:
        """A reference from elsewhere, frozen; None for `initial`, the policy as it starts."""
        if name_or_path == "initial":
            return None
        section = self.recipe.model.model_copy(update={"name_or_path": name_or_path})
        return load_policy(section, **self._options | self._quantization_of(name_or_path))

    def scalar_model(self, name_or_path: str | None = None) -> ScalarModel:
        """A reward or value model that trains, from `model.name_or_path` or from elsewhere."""
        section, lora = self.recipe.model, self.recipe.lora
        if name_or_path is not None:
            section = section.model_copy(update={"name_or_path": name_or_path})
            if lora is not None and adapter_lineage(Path(find_model(name_or_path))) is not None:
                # what `lora:` states is said of `model:`; adapters from elsewhere keep their own rank and layers
                lora = lora.model_copy(update={"r": None, "lora_alpha": None, "target_modules": None})
        options = self._options if name_or_path is None else self._options | self._quantization_of(name_or_path)
        return load_scalar_model(section, lora=lora, trains=True, **options)

    def load_again(
        self, model: Policy | ScalarModel, folder: Path, *, rounded: bool = False
    ) -> tuple[Policy | ScalarModel, float]:
        """Load a `final/` as the next stage will; returns it, and how far it is from what was trained (`models.probe`).

        `rounded`: it was stored in another dtype than it was trained in. Raises CheckpointError where it is another function.
        """
        section = self.recipe.model.model_copy(update={"name_or_path": str(folder)})
        options = self._options | {"quantization": None}  # what adapters lie on is in their lineage
        load: Any = load_policy if isinstance(model, Policy) else load_scalar_model
        again = load(section, proven=False, **options)
        return again, check_probe(again, folder, rounded=rounded) or 0.0

    def engine(self, policy: Policy) -> Engine:
        """What samples completions from the policy while it trains."""
        return InProcessEngine(policy, self.tokenizer)

    def _quantization_of(self, name_or_path: str) -> dict[str, Any]:
        """`quantization:` is said of `model:`; adapters from elsewhere lie on their base as it was trained."""
        return {"quantization": quantization_beside(name_or_path, self.recipe.quantization)}

    @cached_property
    def _options(self) -> dict[str, Any]:
        return {
            "quantization": self.recipe.quantization,
            "bf16": self.recipe.training.bf16,
            "gradient_checkpointing": self.recipe.training.gradient_checkpointing,
            "device": self.accelerator.device,
        }
