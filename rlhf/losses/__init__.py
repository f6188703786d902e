"""The objectives as pure functions: keyword-only tensors in, a frozen `LossOutput` out. Torch is the only import.

Every function takes its normaliser explicitly (a global count of tokens or pairs). A microbatch on one rank returns its
share: summed over microbatches and ranks, losses and metrics are the global means, whatever the accumulation or the
world size.
"""

from rlhf.losses.advantages import gae, token_rewards
from rlhf.losses.baselines import group_relative, leave_one_out, rewards_to_go
from rlhf.losses.kl import AdaptiveKl, FixedKl, KlController, kl_estimate, kl_loss
from rlhf.losses.output import LossOutput
from rlhf.losses.ppo import missing_eos_scores, policy_loss, truncated_weights, value_loss
from rlhf.losses.preference import preference_loss
from rlhf.losses.reward import RankedPairs, ranked_pairs, reward_loss, rule_accuracy
from rlhf.losses.sft import sft_loss
from rlhf.losses.whitening import moments, whiten

__all__ = [
    "AdaptiveKl",
    "FixedKl",
    "KlController",
    "LossOutput",
    "RankedPairs",
    "gae",
    "group_relative",
    "kl_estimate",
    "kl_loss",
    "leave_one_out",
    "missing_eos_scores",
    "moments",
    "policy_loss",
    "preference_loss",
    "ranked_pairs",
    "reward_loss",
    "rewards_to_go",
    "rule_accuracy",
    "sft_loss",
    "token_rewards",
    "truncated_weights",
    "value_loss",
    "whiten",
]
