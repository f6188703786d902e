"""The keys of DPO's family of losses, shared by `dpo` and `online_dpo`: which losses, and their settings.

A key that does nothing with the chosen losses is refused. What each loss reads is said here too, because recipes are checked
without torch; a test holds it to the functions of `rlhf.losses.preference`.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from rlhf.recipe.sections import NonNegativeFloat, PositiveFloat, Section

LossName = Literal[
    "sigmoid", "robust", "sigmoid_norm", "hinge", "ipo", "sppo_hard", "exo_pair", "nca_pair", "bco_pair", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "dpop", "simpo", "cpo", "orpo", "sft",
]  # fmt: skip
NO_REFERENCE = ("simpo", "cpo", "orpo", "sft")
WHOLE_STEP = ("aot", "aot_unpaired")  # losses that compare the pairs of a step with each other
READ_BY = {  # a setting, and the losses that read it
    "beta": tuple(name for name in get_args(LossName) if name not in ("orpo", "sft")),
    "label_smoothing": ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"),
    "discopop_tau": ("discopop",),
    "dpop_lambda": ("dpop",),
    "simpo_gamma": ("simpo",),
}


class PreferenceSection(Section):
    """Which loss of pairs is trained: `loss_type`, one of them, or `losses`, several by name with their weights.

    Without either it is `sigmoid`, DPO. docs/objectives.md says which loss is what, and which settings it reads.
    """

    beta: PositiveFloat = 0.1
    loss_type: LossName | None = None
    losses: dict[LossName, PositiveFloat] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    discopop_tau: PositiveFloat = 0.05
    dpop_lambda: PositiveFloat = 50.0
    simpo_gamma: NonNegativeFloat = 0.5

    @property
    def weights(self) -> dict[str, float]:
        """The losses by name, with their weights."""
        return {self.loss_type or "sigmoid": 1.0} if self.losses is None else dict(self.losses.items())

    @property
    def settings(self) -> dict[str, float]:
        """What the losses need beside tensors, by name."""
        return {key: getattr(self, key) for key in READ_BY}

    @property
    def needs_reference(self) -> bool:
        return any(name not in NO_REFERENCE for name in self.weights)

    @property
    def written(self) -> str:
        """The choice, as a message names it."""
        names = ", ".join(self.weights)
        return f"loss_type: {names}" if self.losses is None else f"losses: {{{names}}}"

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> PreferenceSection:
        if self.losses is not None and self.loss_type is not None:
            raise ValueError("losses: loss_type names one loss and losses a mix of them; leave one of the two out")
        if self.losses == {}:
            raise ValueError("losses: name at least one loss with its weight, as in {sigmoid: 1.0, sft: 0.2}")
        return self

    @model_validator(mode="after")
    def _the_losses_are_whole(self) -> PreferenceSection:
        names = set(self.weights)
        if names == {"sft"}:
            raise ValueError(
                f"{self._key}: sft compares nothing; add a loss of pairs (losses: {{sigmoid: 1.0, sft: 0.2}}), or train the "
                "chosen completions with method: sft"
            )
        for name in sorted(names & {"cpo", "orpo"}):
            if "sft" not in names:
                example = "{sft: 1.0, cpo: 1.0}" if name == "cpo" else "{sft: 1.0, orpo: 0.1}"
                raise ValueError(
                    f"{self._key}: {name} is only a part of its paper's loss, beside sft; write losses: {example}"
                )
        if "exo_pair" in names and not self.label_smoothing:
            raise ValueError(
                "label_smoothing: must be above 0 with exo_pair, which takes its logarithm; for example 0.001"
            )
        if "robust" in names and not self.label_smoothing:
            raise ValueError(
                "label_smoothing: must be above 0 with robust: the share of wrong labels; without any it is sigmoid"
            )
        return self

    @model_validator(mode="after")
    def _no_setting_that_does_nothing(self) -> PreferenceSection:
        for key, readers in READ_BY.items():
            default = type(self).model_fields[key].default
            if getattr(self, key) != default and not set(readers) & set(self.weights):
                raise ValueError(f"{key}: does nothing with {self.written}; leave it out")
        return self

    @property
    def _key(self) -> str:
        return "loss_type" if self.losses is None else "losses"
