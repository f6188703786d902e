"""The recipes of the methods that sample their own completions: PPO, RLOO, GRPO, REINFORCE++.

They share rollouts, rewards and the KL to the reference. They differ by what makes an advantage of a score.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.recipe.rollouts import AnyRollouts, problem_with_quantization
from rlhf.recipe.sections import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SamplingSection,
    ScorerSection,
    Section,
)
from rlhf.recipe.training import TrainRecipe


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


class OnlineSection(Section):
    """What the methods share. An iteration rolls out `rollout_batch_size` prompts, `sampling.n` completions each.

    The KL to the reference is a part of the reward of each token (`kl_in: reward`) or of the loss (`loss`), by one of Schulman's
    estimators: k1 is unbiased, k2 and k3 are never negative. `cliprange_high` is the upper clip range, `cliprange` if it is left out.
    `rollouts` is the engine of vLLM that samples; without it the module that trains does.
    Beside a reward model, `missing_eos` is a penalty of 1 (a standard deviation of its scores) if it is left out; null is none.
    """

    rollout_batch_size: PositiveInt = 64
    num_ppo_epochs: PositiveInt = 4
    num_mini_batches: PositiveInt = 1
    sampling: SamplingSection = SamplingSection()
    rewards: list[ScorerSection] = Field(min_length=1)
    reference: str = "initial"
    kl_coef: NonNegativeFloat = 0.05
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    adaptive_kl: AdaptiveKlSection | None = None
    cliprange: PositiveFloat = 0.2
    cliprange_high: PositiveFloat | None = None
    missing_eos: MissingEosSection | None = None
    rollouts: AnyRollouts | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_penalty_beside_a_reward_model(cls, section: Any) -> Any:
        if not isinstance(section, dict) or "missing_eos" in section or not isinstance(section.get("rewards"), list):
            return section
        given = [reward for reward in section["rewards"] if isinstance(reward, dict)]
        return section | {"missing_eos": {}} if any(reward.get("model") for reward in given) else section

    @model_validator(mode="after")
    def _rollouts_are_the_policys_own(self) -> OnlineSection:
        if self.sampling.top_k != 0 or self.sampling.top_p != 1.0:
            raise ValueError("sampling: must keep top_k: 0 and top_p: 1.0; truncation biases the probability ratios")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature: must be positive; greedy rollouts do not explore")
        if (self.rollout_batch_size * self.sampling.n) % self.num_mini_batches:
            raise ValueError("num_mini_batches: must divide rollout_batch_size * sampling.n")
        return self

    @model_validator(mode="after")
    def _the_estimator_has_a_gradient(self) -> OnlineSection:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator: the gradient of k1 is zero on average, so in the loss it would hold the policy to nothing; "
                "write k2 or k3, or kl_in: reward"
            )
        return self


class PpoSection(OnlineSection):
    """PPO for language models, with a value model. The keys of the rollouts are those of every method that samples.

    `value: own` is a value model that starts as `value_model`, else as the first reward model that reads the policy's tokens;
    with `lora` it is an adapter on the policy's base, as reward models are whose adapters lie on that base. `value: shared` is a
    head on the policy's own hidden states.
    """

    value: Literal["own", "shared"] = "own"
    value_model: str | None = None
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    cliprange_value: PositiveFloat = 0.2
    vf_coef: NonNegativeFloat = 0.1
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    center_rewards: bool = True

    @model_validator(mode="after")
    def _a_shared_value_has_no_model(self) -> PpoSection:
        if self.value == "shared" and self.value_model is not None:
            raise ValueError(
                "value_model: does nothing with value: shared, which is a head on the policy; leave one of them out"
            )
        return self


class GroupSection(OnlineSection):
    """Methods that compare the completions of one prompt with each other need two of each at least."""

    num_ppo_epochs: PositiveInt = 1
    sampling: SamplingSection = SamplingSection(n=4)

    @model_validator(mode="after")
    def _there_is_something_to_compare(self) -> GroupSection:
        if self.sampling.n < 2:
            raise ValueError("sampling.n: must be 2 at least: a completion is compared with the others of its prompt")
        return self


class RlooSection(GroupSection):
    """REINFORCE leave-one-out: a completion's advantage is its reward less the mean of the prompt's others."""


class GrpoSection(GroupSection):
    """Group relative policy optimisation: rewards less the group's mean, divided by its deviation.

    `scale_rewards: false` does not divide (Dr. GRPO: dividing gives prompts of little spread more weight).
    """

    kl_coef: NonNegativeFloat = 0.04
    kl_in: Literal["reward", "loss"] = "loss"
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    scale_rewards: bool = True


class ReinforcePpSection(OnlineSection):
    """REINFORCE++: the reward still to come, less the mean over the whole iteration, divided by its deviation."""

    num_ppo_epochs: PositiveInt = 1


class OnlineRecipe(TrainRecipe):
    """What these methods share. The section is named after the method."""

    row_kinds = frozenset({"prompt"})

    @property
    def online(self) -> OnlineSection:
        """The method's own section."""
        section: OnlineSection = getattr(self, self.method)
        return section

    @property
    def longest_prompt(self) -> int:
        return self.data.max_length - self.online.sampling.max_new_tokens

    def other_models(self) -> dict[str, str]:
        named = {f"{self.method}.reference": self.online.reference}
        named |= {
            f"{self.method}.rewards.{i}.model": reward.model
            for i, reward in enumerate(self.online.rewards)
            if reward.model is not None
        }
        return {key: name for key, name in named.items() if name != "initial"}

    def callables(self) -> dict[str, str]:
        named = {f"{self.method}.rewards.{i}.callable": reward.callable for i, reward in enumerate(self.online.rewards)}
        return {key: name for key, name in named.items() if name is not None}

    @property
    def prompts_per_microbatch(self) -> int:
        """Prompts, with all of their samples, of one forward pass."""
        return max(1, self.training.per_device_train_batch_size // self.online.sampling.n)

    def problem_with(self, processes: int) -> tuple[str, str] | None:
        prompts, minibatches = self.online.rollout_batch_size, self.online.num_mini_batches
        if prompts % processes:
            reason = f"{prompts} prompts cannot be shared evenly by {processes} processes"
            return f"{self.method}.rollout_batch_size", reason
        microbatches = -(-prompts // processes // self.prompts_per_microbatch)
        if microbatches < minibatches:
            each = f" on each of {processes} processes" if processes > 1 else ""
            reason = f"{minibatches} minibatches of only {microbatches} microbatches{each}"
            return f"{self.method}.num_mini_batches", f"{reason}; lower training.per_device_train_batch_size"
        return None

    @model_validator(mode="after")
    def _no_setting_that_does_nothing(self) -> OnlineRecipe:
        if self.training.gradient_accumulation_steps != 1 or self.training.max_tokens_per_batch is not None:
            name = self.method
            raise ValueError(
                f"training.gradient_accumulation_steps and training.max_tokens_per_batch do nothing in {name.upper()}: a minibatch "
                f"is {name}.rollout_batch_size x {name}.sampling.n / {name}.num_mini_batches samples, run "
                "training.per_device_train_batch_size at a time"
            )
        return self

    @model_validator(mode="after")
    def _an_engine_is_kept_in_step_by_adapter(self) -> OnlineRecipe:
        rollouts = self.online.rollouts
        if rollouts is not None and self.lora is None:
            raise ValueError(
                f"{self.method}.rollouts: vLLM is kept in step with the policy by its LoRA adapter, and full fine-tuning has none; "
                "add a lora: section, or leave rollouts out: the policy then samples in this process"
            )
        if rollouts is not None and (problem := problem_with_quantization(rollouts, self.quantization)):
            raise ValueError(f"{self.method}.rollouts.engine: {problem}")
        return self

    @model_validator(mode="after")
    def _no_noise_in_the_ratios(self) -> OnlineRecipe:
        if self.lora is not None and self.lora.lora_dropout:
            raise ValueError(
                f"lora.lora_dropout must be 0 in {self.method.upper()}: dropout is noise in the probability ratios"
            )
        if self.online.sampling.max_new_tokens >= self.data.max_length:
            raise ValueError(
                f"data.max_length holds prompt and completion: it must exceed {self.method}.sampling.max_new_tokens"
            )
        return self


class PpoRecipe(OnlineRecipe):
    stage = "rlhf.train.ppo:Ppo"

    method: Literal["ppo"]
    ppo: PpoSection

    def other_models(self) -> dict[str, str]:
        given = self.ppo.value_model
        return super().other_models() | ({} if given is None else {"ppo.value_model": given})


class RlooRecipe(OnlineRecipe):
    stage = "rlhf.train.critic_free:Rloo"

    method: Literal["rloo"]
    rloo: RlooSection


class GrpoRecipe(OnlineRecipe):
    stage = "rlhf.train.critic_free:Grpo"

    method: Literal["grpo"]
    grpo: GrpoSection


class ReinforcePpRecipe(OnlineRecipe):
    stage = "rlhf.train.critic_free:ReinforcePp"

    method: Literal["reinforce_pp"]
    reinforce_pp: ReinforcePpSection
