"""The loss that is trained: a weighted sum of losses of the family, normalised over the whole optimizer step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from torch import Tensor

from rlhf.losses.output import LossOutput, share_of_mean
from rlhf.losses.preference.measures import measures
from rlhf.losses.preference.table import LOSSES


def preference_loss(
    *,
    losses: Mapping[str, float],
    settings: Mapping[str, float],
    num_pairs: int | Tensor,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    reference: tuple[Tensor, Tensor] | None = None,
) -> LossOutput:
    """L = sum_k weight_k 1/P sum_i l_k(i): `losses` are weights by name, `settings` what they need beside tensors (beta ...).

    Log-probabilities are summed over each completion's tokens, lengths count them, [P]. `reference`: the reference's
    log-probabilities of chosen and rejected; None where no loss needs one. num_pairs: pairs in the whole optimizer step.
    Logged: `measures` of the pairs and, of a mix, each part before its weight as `loss/NAME`.
    """
    pairs = {"chosen_logprobs": chosen_logprobs, "rejected_logprobs": rejected_logprobs}
    given = pairs | {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    if reference is not None:
        given |= {"ref_chosen_logprobs": reference[0], "ref_rejected_logprobs": reference[1]}
        given |= {
            f"{side}_logratios": given[f"{side}_logprobs"] - given[f"ref_{side}_logprobs"]
            for side in ("chosen", "rejected")
        }
    parts = {name: share_of_mean(_called(LOSSES[name], given, settings), num_pairs) for name in losses}
    loss = sum(weight * parts[name] for name, weight in losses.items())
    assert isinstance(loss, Tensor)
    own = {f"loss/{name}": part.detach() for name, part in parts.items()} if len(parts) > 1 else {}
    return LossOutput(loss, {"loss": loss.detach()} | own | measures(given, settings["beta"], num_pairs))


def _called(function: Callable[..., Tensor], tensors: Mapping[str, Tensor], settings: Mapping[str, float]) -> Tensor:
    """A loss takes by name what it needs."""
    given = {**tensors, **settings}
    return function(**{name: given[name] for name in inspect.signature(function).parameters if name in given})
