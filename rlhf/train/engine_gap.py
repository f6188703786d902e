"""How far an engine's log-probabilities are from those of the module that trains: the proof that the engine is in step.

Between steps 3 and 4 of `online`'s iteration, for engines that are not that module itself. Rounding makes a small gap. A policy
without its newest adapter, on another base or at another temperature makes a large one, and no other number would show it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf.errors import RlhfError
from rlhf.losses import truncated_weights
from rlhf.recipe.rollouts import AnyRollouts
from rlhf.train.ranks import Ranks
from rlhf.train.rollout import Rollout


def engine_gap(rollouts: Sequence[Rollout], section: AnyRollouts, key: str, ranks: Ranks) -> dict[str, float]:
    """The mean and the largest difference of a token, in nats, over all ranks; with importance sampling, how many tokens its cap holds.

    Raises RlhfError, on every rank, where the mean is over the recipe's `max_gap`. key: the recipe's key of the section.
    """
    old = torch.cat([r.old_logprobs for r in rollouts])
    theirs = torch.cat([r.engine_logprobs for r in rollouts if r.engine_logprobs is not None])
    difference = (old - theirs).abs()
    measured = {"engine_gap": ranks.mean(difference), "engine_gap_max": ranks.max(difference)}
    if not measured["engine_gap"] <= section.max_gap:  # nan is over it too
        raise RlhfError(
            f"{key}.max_gap: the engine's log-probabilities are {measured['engine_gap']:.3g} nats a token from those of the policy "
            f"that trains, and at most {section.max_gap:g} are allowed. The engine samples from another policy: it has not taken the "
            "adapter, its base or its precision is another, or it tells log-probabilities before the temperature (a server needs "
            "--logprobs-mode processed_logprobs). If none of these is so, its rounding is coarse: set importance_sampling, and "
            "raise max_gap"
        )
    if section.importance_sampling is not None:
        cap = section.importance_sampling.cap
        measured["engine_capped"] = ranks.mean((truncated_weights(old, theirs, cap=cap) >= cap).float())
    return measured
