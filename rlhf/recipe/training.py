"""The recipes of the training methods. A recipe knows its own method: nothing else in the program lists methods by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.sections import (
    CheckpointSection,
    DataSection,
    LoggingSection,
    LoraSection,
    ModelSection,
    NonNegativeFloat,
    PositiveFloat,
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


class DpoSection(Section):
    """Direct preference optimisation. `reference: initial` is the policy as it started; else a model to load.

    `loss_type` is the loss of a pair's reward margin: `sigmoid` (DPO), `hinge` (SLiC) or `ipo`. `cache_reference` computes the
    reference's log-probabilities once, `training.per_device_eval_batch_size` rows at a time, and keeps them on disk: for more than one
    epoch, for several runs on the same rows, and for a full fine-tune, which then holds no second model.
    """

    beta: PositiveFloat = 0.1
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    reference: str = "initial"
    cache_reference: bool = False

    @model_validator(mode="after")
    def _smoothing_is_of_the_sigmoid(self) -> DpoSection:
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(f"label_smoothing: does nothing with loss_type: {self.loss_type}; leave it out")
        return self


class DpoRecipe(TrainRecipe):
    stage = "rlhf.train.dpo:Dpo"
    row_kinds = frozenset({"preference"})

    method: Literal["dpo"]
    dpo: DpoSection = DpoSection()

    def other_models(self) -> dict[str, str]:
        return {} if self.dpo.reference == "initial" else {"dpo.reference": self.dpo.reference}
