"""The recipes of the training methods. A recipe knows its own method: nothing else in the program lists methods by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rlhf.recipe.sections import (
    CheckpointSection,
    DataSection,
    Fraction,
    LoggingSection,
    LoraSection,
    ModelSection,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    QuantizationSection,
    Recipe,
    SamplingSection,
    ScorerSection,
    Section,
    TrainingSection,
)


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
    def longest_prompt(self) -> int | None:
        """The most tokens of a prompt, for a method that samples its completions; None where rows hold them."""
        return None

    def other_models(self) -> dict[str, str]:
        """The models that the run loads beside `model`, by the key that names each: references, reward models."""
        return {}

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

    `loss_type` is the loss of a pair's reward margin: `sigmoid` (DPO), `hinge` (SLiC) or `ipo`.
    """

    beta: PositiveFloat = 0.1
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    reference: str = "initial"

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


class AdaptiveKlSection(Section):
    """Ziegler et al. 2019: the coefficient follows the measured KL towards `target` over `horizon` episodes.

    Left out, the horizon is a twentieth of the run's episodes: the coefficient can then change by a factor of 50 or so.
    """

    target: PositiveFloat = 6.0
    horizon: PositiveInt | None = None


class MissingEosSection(Section):
    """What a completion without a stop token scores: its score less `value` (`penalty`, which is not negative), or a fixed
    `value` instead (`replace`).
    """

    mode: Literal["replace", "penalty"] = "penalty"
    value: float = 1.0

    @model_validator(mode="after")
    def _a_penalty_is_subtracted(self) -> MissingEosSection:
        if self.mode == "penalty" and self.value < 0:
            raise ValueError(
                f"value: a penalty is subtracted from the score, so {self.value:g} would reward a completion that does not end; "
                f"write {-self.value:g}"
            )
        return self


class PpoSection(Section):
    """PPO for language models. An iteration rolls out `rollout_batch_size` prompts, `sampling.n` completions each.

    `value: own` is a value model that starts as `value_model`, else as the first reward model that reads the policy's tokens;
    with `lora` it is an adapter on the policy's base, as reward models are whose adapters lie on that base. `value: shared` is a
    head on the policy's own hidden states. Beside a reward model, `missing_eos` is a penalty of 1 (a standard deviation of its scores) if it is left out; null is none.
    """

    rollout_batch_size: PositiveInt = 64
    num_ppo_epochs: PositiveInt = 4
    num_mini_batches: PositiveInt = 1
    sampling: SamplingSection = SamplingSection()
    rewards: list[ScorerSection] = Field(min_length=1)
    value: Literal["own", "shared"] = "own"
    value_model: str | None = None
    reference: str = "initial"
    kl_coef: NonNegativeFloat = 0.05
    adaptive_kl: AdaptiveKlSection | None = None
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    cliprange: PositiveFloat = 0.2
    cliprange_value: PositiveFloat = 0.2
    vf_coef: NonNegativeFloat = 0.1
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    center_rewards: bool = True
    missing_eos: MissingEosSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_penalty_beside_a_reward_model(cls, section: Any) -> Any:
        rewards = section.get("rewards") if isinstance(section, dict) else None
        given = [reward for reward in rewards if isinstance(reward, dict)] if isinstance(rewards, list) else []
        if "missing_eos" not in section and any(reward.get("model") for reward in given):
            return section | {"missing_eos": {}}
        return section

    @model_validator(mode="after")
    def _rollouts_are_the_policys_own(self) -> PpoSection:
        if self.sampling.top_k != 0 or self.sampling.top_p != 1.0:
            raise ValueError("sampling: must keep top_k: 0 and top_p: 1.0; truncation biases the probability ratios")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature: must be positive; greedy rollouts do not explore")
        if (self.rollout_batch_size * self.sampling.n) % self.num_mini_batches:
            raise ValueError("num_mini_batches: must divide rollout_batch_size * sampling.n")
        return self

    @model_validator(mode="after")
    def _a_shared_value_has_no_model(self) -> PpoSection:
        if self.value == "shared" and self.value_model is not None:
            raise ValueError(
                "value_model: does nothing with value: shared, which is a head on the policy; leave one of them out"
            )
        return self


class PpoRecipe(TrainRecipe):
    stage = "rlhf.train.ppo:Ppo"
    row_kinds = frozenset({"prompt"})

    method: Literal["ppo"]
    ppo: PpoSection

    @property
    def longest_prompt(self) -> int:
        return self.data.max_length - self.ppo.sampling.max_new_tokens

    def other_models(self) -> dict[str, str]:
        named = {"ppo.reference": self.ppo.reference, "ppo.value_model": self.ppo.value_model}
        named |= {f"ppo.rewards.{i}.model": reward.model for i, reward in enumerate(self.ppo.rewards)}
        return {key: name for key, name in named.items() if name not in (None, "initial")}

    def callables(self) -> dict[str, str]:
        named = {f"ppo.rewards.{i}.callable": reward.callable for i, reward in enumerate(self.ppo.rewards)}
        return {key: name for key, name in named.items() if name is not None}

    @property
    def prompts_per_microbatch(self) -> int:
        """Prompts, with all of their samples, of one forward pass."""
        return max(1, self.training.per_device_train_batch_size // self.ppo.sampling.n)

    def problem_with(self, processes: int) -> tuple[str, str] | None:
        prompts, minibatches = self.ppo.rollout_batch_size, self.ppo.num_mini_batches
        if prompts % processes:
            return "ppo.rollout_batch_size", f"{prompts} prompts cannot be shared evenly by {processes} processes"
        microbatches = -(-prompts // processes // self.prompts_per_microbatch)
        if microbatches < minibatches:
            each = f" on each of {processes} processes" if processes > 1 else ""
            reason = f"{minibatches} minibatches of only {microbatches} microbatches{each}"
            return "ppo.num_mini_batches", f"{reason}; lower training.per_device_train_batch_size"
        return None

    @model_validator(mode="after")
    def _no_setting_that_does_nothing(self) -> PpoRecipe:
        if self.training.gradient_accumulation_steps != 1 or self.training.max_tokens_per_batch is not None:
            raise ValueError(
                "training.gradient_accumulation_steps and training.max_tokens_per_batch do nothing in PPO: a minibatch is "
                "ppo.rollout_batch_size x ppo.sampling.n / ppo.num_mini_batches samples, run "
                "training.per_device_train_batch_size at a time"
            )
        return self

    @model_validator(mode="after")
    def _no_noise_in_the_ratios(self) -> PpoRecipe:
        if self.lora is not None and self.lora.lora_dropout:
            raise ValueError("lora.lora_dropout must be 0 in PPO: dropout is noise in the probability ratios")
        if self.ppo.sampling.max_new_tokens >= self.data.max_length:
            raise ValueError("data.max_length holds prompt and completion: it must exceed ppo.sampling.max_new_tokens")
        return self
