"""From a score per completion to an advantage without a value model: the other samples are the baseline."""

from __future__ import annotations

from torch import Tensor


def leave_one_out(scores: Tensor, groups: Tensor) -> Tensor:
    """A_i = r_i - mean of the group's other scores, [M] (RLOO, Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, eq. 8).

    scores: [M]. groups: the prompt of each completion, from 0 on, [M]; each has two completions at least.
    """
    count, total = _sums(scores.new_ones(scores.shape), groups), _sums(scores, groups)
    others = (total[groups] - scores) / (count[groups] - 1)
    return scores - others


def group_relative(scores: Tensor, groups: Tensor, *, scale: bool, eps: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean) / (std + eps) over the scores of the group, [M] (GRPO, Shao et al. 2024, https://arxiv.org/abs/2402.03300).

    Without `scale`, A_i = r_i - mean (Dr. GRPO, Liu et al. 2025, https://arxiv.org/abs/2503.20783). std is unbiased. A group whose
    scores are all equal teaches nothing: its advantages are 0. scores, groups: as in `leave_one_out`.
    """
    count = _sums(scores.new_ones(scores.shape), groups)
    centred = scores - (_sums(scores, groups) / count)[groups]
    if not scale:
        return centred
    std = (_sums(centred**2, groups) / (count - 1)).sqrt()
    return centred / (std[groups] + eps)


def rewards_to_go(rewards: Tensor, rows: Tensor) -> Tensor:
    """G_t = r_t + r_{t+1} + ... to the end of the completion, [N] (REINFORCE++, Hu 2025, https://arxiv.org/abs/2501.03262, with gamma 1).

    rewards: [N], one completion after another. rows: the completion of each token, not falling, [N].
    """
    totals = _sums(rewards, rows)
    before = rewards.cumsum(0) - rewards  # of all tokens up to this one
    first = totals.cumsum(0) - totals  # of all completions up to this one
    return totals[rows] - (before - first[rows])


def _sums(values: Tensor, groups: Tensor) -> Tensor:
    """The sum of each group, [G]."""
    return values.new_zeros(int(groups.max()) + 1).index_add(0, groups, values)
