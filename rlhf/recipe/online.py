"""The recipes of the methods that sample their own completions: PPO, RLOO, GRPO, REINFORCE++, online DPO.

They share rollouts, rewards and the reference. They differ by what they make of the scores: advantages, or pairs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rlhf.recipe.online_sections import (
    GrpoSection,
    OnlineDpoSection,
    OnlineSection,
    PolicyGradientSection,
    PpoSection,
    PtxSection,
    ReinforcePpSection,
    RlooSection,
)
from rlhf.recipe.rollouts import problem_with_quantization
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.sections import SourceSection
from rlhf.recipe.training import TrainRecipe


class OnlineRecipe(TrainRecipe):
    """What these methods share. The section is named after the method."""

    row_kinds = frozenset({"prompt"})

    @property
    def online(self) -> OnlineSection:
        """The method's own section."""
        section: OnlineSection = getattr(self, self.method)
        return section

    @property
    def scorers(self) -> list[ScorerSection]:
        return self.online.rewards

    @property
    def ptx(self) -> PtxSection | None:
        """The section of the rows that are trained on beside the samples."""
        return self.online.ptx if isinstance(self.online, PolicyGradientSection) else None

    @property
    def given(self) -> list[SourceSection]:
        return [] if self.ptx is None else self.ptx.train

    @property
    def longest_prompt(self) -> int:
        return self.data.max_length - self.online.sampling.max_new_tokens

    def other_models(self) -> dict[str, str]:
        named = {f"{self.method}.reference": self.online.reference}
        named |= {
            f"{self.method}.rewards.{i}.{'.'.join(map(str, key))}": model
            for i, reward in enumerate(self.online.rewards)
            for key, model in reward.model_keys.items()
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
        if self.ptx is not None and self.ptx.rows % processes:
            return f"{self.method}.ptx.rows", f"{self.ptx.rows} rows cannot be shared evenly by {processes} processes"
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

    @model_validator(mode="after")
    def _a_warm_up_leaves_the_policy_as_it_is(self) -> PpoRecipe:
        if self.ppo.value_warmup_steps and self.training.weight_decay:
            raise ValueError(
                "training.weight_decay would pull at the policy in the ppo.value_warmup_steps iterations that train the value model "
                "alone; leave one of them out"
            )
        return self

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


class OnlineDpoRecipe(OnlineRecipe):
    stage = "rlhf.train.online_dpo:OnlineDpo"

    method: Literal["online_dpo"]
    online_dpo: OnlineDpoSection
