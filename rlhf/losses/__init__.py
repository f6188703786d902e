"""The objectives as pure functions: keyword-only tensors in, a frozen `LossOutput` out. Torch is the only import.

Every function takes its normaliser explicitly (a global count of tokens or pairs). A microbatch on one rank returns its
share: summed over microbatches and ranks, losses and metrics are the global means, whatever the accumulation or the
world size.
"""

from rlhf.losses.advantages import gae, token_rewards
from rlhf.losses.dpo import dpo_loss
from rlhf.losses.kl import AdaptiveKl, FixedKl, KlController, kl_estimate
from rlhf.losses.masked import LossOutput, masked_mean, masked_moments, whiten
from rlhf.losses.ppo import missing_eos_scores, policy_loss, value_loss
from rlhf.losses.reward import RankedPairs, ranked_pairs, reward_loss
from rlhf.losses.sft import sft_loss

__all__ = [
    "AdaptiveKl",
    "FixedKl",
    "KlController",
    "LossOutput",
    "RankedPairs",
    "dpo_loss",
    "gae",
    "kl_estimate",
    "masked_mean",
    "masked_moments",
    "missing_eos_scores",
    "policy_loss",
    "ranked_pairs",
    "reward_loss",
    "sft_loss",
    "token_rewards",
    "value_loss",
    "whiten",
]
