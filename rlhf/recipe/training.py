"""The recipes of the training methods. A recipe knows its own method: nothing else in the program lists methods by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import model_validator

from rlhf.recipe.preference import WHOLE_STEP, PreferenceSection
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.sections import (
    CheckpointSection,
    DataSection,
    LoggingSection,
    LoraSection,
    ModelSection,
    NonNegativeFloat,
    QuantizationSection,
    Recipe,
    Section,
    SourceSection,
    TrainingSection,
)

FindingName = Literal[
    "first_ratio",
    "negative_kl",
    "kl_blow_up",
    "ends_less",
    "rises_with_length",
    "no_spread",
    "value_explains_nothing",
    "entropy_collapse",
    "engine_gap",
    "chosen_falls",
    "stuck_at_log_2",
    "overfits",
    "no_better_than_length",
]


class DoctorSection(Section):
    """The training doctor says what goes wrong in a run. It stops the run at the findings that `halt` names (docs/doctor.md)."""

    halt: list[FindingName] = []


class TrainRecipe(Recipe):
    """What the training methods share. A method's own recipe says what the rest of the program asks of a method:
    its stage, the kinds of row it takes, what else it loads, and how long a prompt may be.
    """

    entry_point = "rlhf.train.run:train"
    command = ("train",)
    stage: ClassVar[str]  # `module:class` of its Stage (rlhf.train.loop)
    row_kinds: ClassVar[frozenset[str]]  # the kinds of row that it trains on (rlhf.data.rows)

    method: str
    model: ModelSection
    quantization: QuantizationSection | None = None
    lora: LoraSection | None = None
    data: DataSection
    training: TrainingSection = TrainingSection()
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    doctor: DoctorSection = DoctorSection()

    @model_validator(mode="after")
    def _quantized_bases_are_frozen(self) -> TrainRecipe:
        if self.quantization is not None and self.quantization.load_in_4bit and self.lora is None:
            raise ValueError("quantization: a 4-bit model is frozen and trains only adapters; add a lora: section")
        return self

    @model_validator(mode="after")
    def _adapters_are_float32(self) -> TrainRecipe:
        if self.lora is not None and self.checkpoint.final_dtype is not None:
            raise ValueError("checkpoint.final_dtype: is of full fine-tunes; adapters are always stored in float32")
        return self

    @property
    def trains_prompt(self) -> bool:
        """Whether the prompt's tokens are trained too."""
        return False

    @property
    def given(self) -> Sequence[SourceSection]:
        """Demonstrations that a method which samples its completions also trains on."""
        return ()

    @property
    def longest_prompt(self) -> int | None:
        """The most tokens of a prompt, for a method that samples its completions; None where rows hold them."""
        return None

    def other_models(self) -> dict[str, str]:
        """The models that the run loads beside `model`, by the key that names each: references, reward models."""
        return {}

    @property
    def scorers(self) -> Sequence[ScorerSection]:
        """What gives rewards to the completions that the method samples itself."""
        return ()

    def callables(self) -> dict[str, str]:
        """The Python functions that the run calls, by the key that names each."""
        return {}

    def problem_with(self, processes: int) -> tuple[str, str] | None:
        """The key, and why its value does not let so many processes share the run; None where they can."""
        return None


class SftSection(Section):
    """Supervised fine-tuning. `loss_on: all` also trains the prompt's tokens."""

    loss_on: Literal["completion", "all"] = "completion"


class SftRecipe(TrainRecipe):
    stage = "rlhf.train.sft:Sft"
    row_kinds = frozenset({"demonstration"})

    method: Literal["sft"]
    sft: SftSection = SftSection()

    @model_validator(mode="after")
    def _all_is_not_some(self) -> SftRecipe:
        if self.sft.loss_on == "all" and self.data.template.train_on != "last":
            raise ValueError(
                "data.template.train_on: chooses turns, and sft.loss_on: all trains every token; take one of them out"
            )
        return self

    @property
    def trains_prompt(self) -> bool:
        return self.sft.loss_on == "all"


class RewardSection(Section):
    """The reward model's objective (Bradley-Terry). `center_coefficient` weighs (r_chosen + r_rejected)^2."""

    use_margin: bool = False
    center_coefficient: NonNegativeFloat = 0.0


class RewardRecipe(TrainRecipe):
    stage = "rlhf.train.reward:Reward"
    row_kinds = frozenset({"preference", "ranking"})

    method: Literal["reward"]
    reward: RewardSection = RewardSection()


class DpoSection(PreferenceSection):
    """Direct preference optimisation and its family. `reference: initial` is the policy as it started; else a model to load.

    `loss_type` names one loss of a pair (docs/objectives.md), `losses` several with their weights. Without either it is
    `sigmoid`, DPO. `simpo`, `cpo`, `orpo` and `sft` need no reference; where no other loss is named, none is loaded.
    `cache_reference` computes the reference's log-probabilities once, `training.per_device_eval_batch_size` rows at a time, and keeps
    them on disk: for more than one epoch, for several runs on the same rows, and for a full fine-tune, which then holds no second model.
    """

    reference: str = "initial"
    cache_reference: bool = False

    @model_validator(mode="after")
    def _a_reference_is_compared_with(self) -> DpoSection:
        if self.reference != "initial" and not self.needs_reference:
            raise ValueError(f"reference: does nothing with {self.written}, which needs none; leave it out")
        if self.cache_reference and not self.needs_reference:
            raise ValueError(f"cache_reference: does nothing with {self.written}, which needs none; leave it out")
        return self


class DpoRecipe(TrainRecipe):
    stage = "rlhf.train.dpo:Dpo"
    row_kinds = frozenset({"preference"})

    method: Literal["dpo"]
    dpo: DpoSection = DpoSection()

    @property
    def _sorts(self) -> str | None:
        """The loss that compares the pairs of a step with each other, if there is one."""
        return next((name for name in self.dpo.weights if name in WHOLE_STEP), None)

    @model_validator(mode="after")
    def _a_sorted_step_is_one_microbatch(self) -> DpoRecipe:
        if self._sorts is None:
            return self
        if self.training.gradient_accumulation_steps > 1:
            raise ValueError(
                f"training.gradient_accumulation_steps: must be 1 with {self._sorts}, which sorts all pairs of a step; raise "
                "training.per_device_train_batch_size instead"
            )
        if self.training.per_device_train_batch_size == 1:
            raise ValueError("training.per_device_train_batch_size: one pair a step leaves nothing to sort; raise it")
        return self

    def problem_with(self, processes: int) -> tuple[str, str] | None:
        if self._sorts is None or processes == 1:
            return None
        key = "dpo.loss_type" if self.dpo.losses is None else "dpo.losses"
        return key, f"{self._sorts} sorts all pairs of a step, and {processes} processes hold a part each; start one"

    def other_models(self) -> dict[str, str]:
        return {} if self.dpo.reference == "initial" else {"dpo.reference": self.dpo.reference}
