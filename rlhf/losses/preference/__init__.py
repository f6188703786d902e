"""DPO's family: losses of preference pairs, a file each, and the mix of them that a recipe trains with (`mix`).

Each function gives the loss of each pair, [P]. It takes by keyword what it needs, and nothing else:

    chosen_logratios, rejected_logratios            log pi(y|x) - log pi_ref(y|x), summed over the completion's tokens
    chosen_logprobs, rejected_logprobs              log pi(y|x), summed
    ref_chosen_logprobs, ref_rejected_logprobs      log pi_ref(y|x), summed
    chosen_lengths, rejected_lengths                tokens of the completion, |y|

all [P]; and settings: beta and, in some, one of their own. In formulas, w is the chosen completion and l the rejected one,
r = log pi - log pi_ref, s = log sigmoid, and h = beta (r_w - r_l) is the pair's margin.
"""

from rlhf.losses.preference.mix import preference_loss
from rlhf.losses.preference.table import LOSSES

__all__ = ["LOSSES", "preference_loss"]
