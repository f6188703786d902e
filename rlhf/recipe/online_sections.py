"""The sections of the methods that sample their own completions: what they share, and what each adds.

Every method rolls out, scores and compares with a reference. Those with a policy gradient also have a KL penalty and a clip range.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.recipe.preference import WHOLE_STEP, PreferenceSection
from rlhf.recipe.rollouts import AnyRollouts
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.sections import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SamplingSection,
    Section,
    Sources,
)


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

    `rollouts` is the engine of vLLM that samples; without it the module that trains does.
    Beside a reward model, `missing_eos` is a penalty of 1 (a standard deviation of its scores) if it is left out; null is none.
    """

    rollout_batch_size: PositiveInt = 64
    num_ppo_epochs: PositiveInt = 4
    num_mini_batches: PositiveInt = 1
    sampling: SamplingSection = SamplingSection()
    rewards: list[ScorerSection] = Field(min_length=1)
    reference: str = "initial"
    missing_eos: MissingEosSection | None = None
    rollouts: AnyRollouts | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_penalty_beside_a_reward_model(cls, section: Any) -> Any:
        if not isinstance(section, dict) or "missing_eos" in section or not isinstance(section.get("rewards"), list):
            return section
        given = [reward for reward in section["rewards"] if isinstance(reward, dict)]
        has_model = any(reward.get("model") or reward.get("models") for reward in given)
        return section | {"missing_eos": {}} if has_model else section

    @model_validator(mode="after")
    def _rollouts_are_the_policys_own(self) -> OnlineSection:
        if self.sampling.top_k != 0 or self.sampling.top_p != 1.0:
            raise ValueError("sampling: must keep top_k: 0 and top_p: 1.0; truncation biases the probability ratios")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature: must be positive; greedy rollouts do not explore")
        if (self.rollout_batch_size * self.sampling.n) % self.num_mini_batches:
            raise ValueError("num_mini_batches: must divide rollout_batch_size * sampling.n")
        return self


class PtxSection(Section):
    """PPO-ptx (Ouyang et al. 2022): each optimizer step adds `coef` times the loss of the next `rows` rows of `train`, over all
    processes, so that the policy keeps what it knew. They are read as the recipe's prompts are: `data.template`, `max_length` and
    `on_overflow`. `loss_on: all` also trains the prompt's tokens.
    """

    train: Sources = Field(min_length=1)
    rows: PositiveInt = 32
    coef: PositiveFloat = 1.0
    loss_on: Literal["completion", "all"] = "completion"

    def microbatches(self, most: int, processes: int) -> tuple[int, int]:
        """The rows of a microbatch, at most `most`, and how many microbatches of an optimizer step each process has."""
        share = self.rows // processes
        size = max(n for n in range(1, min(most, share) + 1) if share % n == 0)
        return size, share // size


class PolicyGradientSection(OnlineSection):
    """What the methods with a policy gradient share. The KL to the reference is a part of the reward of each token (`kl_in: reward`)
    or of the loss (`loss`), by one of Schulman's estimators: k1 is unbiased, k2 and k3 are never negative. `cliprange_high` is the
    upper clip range, `cliprange` if it is left out. With `target_kl`, an iteration makes no further update once its policy is that
    far from the one that sampled (nats a token). `entropy_coef` pays each token -log pi, which is the entropy on average. `ptx` adds the
    loss of given rows.
    """

    kl_coef: NonNegativeFloat = 0.05
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    adaptive_kl: AdaptiveKlSection | None = None
    cliprange: PositiveFloat = 0.2
    cliprange_high: PositiveFloat | None = None
    target_kl: PositiveFloat | None = None
    entropy_coef: NonNegativeFloat = 0.0
    ptx: PtxSection | None = None

    @model_validator(mode="after")
    def _the_estimator_has_a_gradient(self) -> PolicyGradientSection:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator: the gradient of k1 is zero on average, so in the loss it would hold the policy to nothing; "
                "write k2 or k3, or kl_in: reward"
            )
        return self


class PpoSection(PolicyGradientSection):
    """PPO for language models, with a value model. The keys of the rollouts are those of every method that samples.

    `value: own` is a value model that starts as `value_model`, else as the first reward model that reads the policy's tokens;
    with `lora` it is an adapter on the policy's base, as reward models are whose adapters lie on that base. `value: shared` is a
    head on the policy's own hidden states. In the first `value_warmup_steps` iterations the value model trains alone. `lam` is
    of the policy's advantages, and `lam_value` of the value model's targets: the same if it is left out.
    """

    value: Literal["own", "shared"] = "own"
    value_model: str | None = None
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    lam_value: Fraction | None = None
    cliprange_value: PositiveFloat = 0.2
    vf_coef: NonNegativeFloat = 0.1
    value_warmup_steps: NonNegativeInt = 0
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    center_rewards: bool = True

    @model_validator(mode="after")
    def _a_shared_value_has_no_warm_up(self) -> PpoSection:
        if self.value == "shared" and self.value_warmup_steps:
            raise ValueError(
                "value_warmup_steps: with value: shared the value loss trains the policy too, so the value cannot train alone; leave "
                "one of them out"
            )
        return self

    @model_validator(mode="after")
    def _a_shared_value_has_no_model(self) -> PpoSection:
        if self.value == "shared" and self.value_model is not None:
            raise ValueError(
                "value_model: does nothing with value: shared, which is a head on the policy; leave one of them out"
            )
        return self


class GroupSection(PolicyGradientSection):
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


class ReinforcePpSection(PolicyGradientSection):
    """REINFORCE++: the reward still to come, less the mean over the whole iteration, divided by its deviation."""

    num_ppo_epochs: PositiveInt = 1


class OnlineDpoSection(OnlineSection, PreferenceSection):
    """DPO on pairs of the policy's own samples: the best and the worst of each prompt. The losses and their settings are those of
    `dpo`, without the ones that do without a reference and those that sort a whole step.
    """

    num_ppo_epochs: PositiveInt = 1
    sampling: SamplingSection = SamplingSection(n=2)

    @model_validator(mode="after")
    def _there_is_something_to_compare(self) -> OnlineDpoSection:
        if self.sampling.n < 2:
            raise ValueError("sampling.n: must be 2 at least: the best and the worst of them become a pair")
        if self.rollouts is not None and self.rollouts.importance_sampling is not None:
            raise ValueError(
                "rollouts.importance_sampling: weighs the loss of a policy gradient, and does nothing here; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _the_losses_suit_samples(self) -> OnlineDpoSection:
        if not self.needs_reference:
            raise ValueError(
                f"{self.written} needs no reference, and this method measures its samples against one; use method: dpo"
            )
        if sorts := [name for name in self.weights if name in WHOLE_STEP]:
            raise ValueError(
                f"{self.written}: {sorts[0]} sorts all pairs of a step, and here a step has several microbatches"
            )
        return self
