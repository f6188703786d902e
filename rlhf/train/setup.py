"""What a stage starts from: the recipe's model, tokenizer and rows, loaded once, the same way for every method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from rlhf.embedded import resolve
from rlhf.generation.engine import Engine
from rlhf.generation.in_process import InProcessEngine
from rlhf.generation.reward_scorer import check_reward_model, load_reward_model
from rlhf.models.lineage import adapter_lineage, quantization_beside
from rlhf.models.load import Source, load_policy, load_role, load_scalar_model, same_base, source_of
from rlhf.models.policy import Policy
from rlhf.models.probe import check_probe
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.online import OnlineRecipe
from rlhf.recipe.sections import Precision
from rlhf.recipe.training import TrainRecipe
from rlhf.runs.identity import of_model
from rlhf.tokens.segments import Segment
from rlhf.tokens.tokenizer import find_model
from rlhf.train.reference_cache import Referenced, ReferenceModel
from rlhf.train.rollout_engine import open_engine


@dataclass(frozen=True)
class Setup:
    """The parts of one run. `train` and `held_out` are tokenised rows: segments, or for PPO prompts."""

    recipe: TrainRecipe
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Any]
    held_out: Sequence[Any]
    given: Sequence[Segment] = ()  # rows that a method which samples also trains on
    opened: ExitStack = field(default_factory=ExitStack)  # closes what the stage has opened, in `train`

    def policy(self) -> Policy:
        """The model that trains."""
        return load_policy(self.recipe.model, lora=self.recipe.lora, trains=True, **self._options)

    def other_policy(self, name_or_path: str) -> Policy | None:
        """A reference from elsewhere, frozen; None for `initial`, the policy as it starts."""
        if name_or_path == "initial":
            return None
        section = self.recipe.model.model_copy(update={"name_or_path": name_or_path})
        return load_policy(section, **self._options | self._quantization_of(name_or_path))

    def referenced(self, policy: Policy, name_or_path: str) -> Setup:
        """The same, its rows with the log-probabilities of a reference: the policy as it starts, or another model, which is then let go."""
        model = self.recipe.model
        other = self.other_policy(name_or_path)
        name = model.name_or_path if other is None else name_or_path
        quantization = self._options["quantization"] if other is None else self._quantization_of(name)["quantization"]
        content = {
            "model": of_model(resolve(name)),
            "loading": model.model_dump(mode="json", exclude={"name_or_path"}),
            "quantization": None if quantization is None else quantization.model_dump(mode="json"),
            "bf16": self.recipe.training.bf16,
        }
        reference = ReferenceModel(other or policy, name, content, self.recipe.training.per_device_eval_batch_size)
        train, held_out = (Referenced(rows, reference, self.accelerator) for rows in (self.train, self.held_out))
        return replace(self, train=train, held_out=held_out)

    def scalar_model(self) -> ScalarModel:
        """The reward model that trains."""
        return load_scalar_model(self.recipe.model, lora=self.recipe.lora, trains=True, **self._options)

    def value_model(self, policy: Policy, name_or_path: str | None) -> ScalarModel:
        """A value model that trains, from `model.name_or_path` or from elsewhere; on the policy's base where it can lie there."""
        section, lora = self.recipe.model, self.recipe.lora
        source = self._on_base_of(policy, name_or_path or section.name_or_path)
        if lora is not None and source is not None:
            return load_role(policy, source, "value", lora, trains=True, batching=section.batching)
        if name_or_path is None:
            return load_scalar_model(section, lora=lora, trains=True, **self._options)
        if lora is not None and adapter_lineage(Path(find_model(name_or_path))) is not None:
            # what `lora:` states is said of `model:`; adapters from elsewhere keep their own rank and layers
            lora = lora.model_copy(update={"r": None, "lora_alpha": None, "target_modules": None})
        section = section.model_copy(update={"name_or_path": name_or_path})
        return load_scalar_model(section, lora=lora, trains=True, **self._options | self._quantization_of(name_or_path))

    def reward_model(self, policy: Policy, name_or_path: str) -> ScalarModel:
        """A reward model that only scores: an adapter on the policy's base where it can lie there, else a model of its own."""
        source = self._on_base_of(policy, name_or_path)
        if source is None or source.parent is None:
            options = self._options
            dtype: Precision | None = "bfloat16" if options["bf16"] else None
            return load_reward_model(
                name_or_path, device=options["device"], dtype=dtype, quantization=self.recipe.quantization
            )
        check_reward_model(name_or_path)
        assert self.recipe.lora is not None
        role = f"reward-{sum('reward' in name for name in policy.model.peft_config)}"  # type: ignore[union-attr]
        return load_role(policy, source, role, self.recipe.lora, trains=False, batching=self.recipe.model.batching)

    def _on_base_of(self, policy: Policy, name_or_path: str) -> Source | None:
        """Where the model is, if it is adapters on the policy's own base or that base itself; None for others."""
        if not policy.has_adapters:
            return None
        own = source_of(self.recipe.model.name_or_path, self.recipe.quantization)
        other = source_of(name_or_path, quantization_beside(name_or_path, own.quantization))
        return other if same_base(own, other) else None

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
        rollouts = self.recipe.online.rollouts if isinstance(self.recipe, OnlineRecipe) else None
        if rollouts is None or not isinstance(self.recipe, OnlineRecipe):
            return InProcessEngine(policy, self.tokenizer)
        engine = open_engine(self.recipe, rollouts, policy, self.tokenizer, self.accelerator)
        self.opened.callback(engine.close)
        return engine

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
