"""TRL's own code of each loss of DPO's family on the same float64 numbers; where it means another thing, what that is.

The trainers' methods run on a stand-in for the trainer and the model, as in test_trl.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.losses.preference_cases import SETTINGS, loss_of
from tests.losses.support import Numbers, tensor
from tests.losses.test_trl import _import, _trainer, pytestmark  # noqa: F401

PAIRS, LENGTH = 5, 9


class Given:
    """Token log-probabilities of five pairs, and the reference's sums."""

    def __init__(self, *, lengths: tuple[int, int] | None = None) -> None:
        draw = Numbers(3, None)
        self.mask = torch.tensor(draw.rng.random((2 * PAIRS, LENGTH + 1)) < 0.6)
        self.mask[:, 0] = False  # a prompt
        self.mask[:, 1] = True
        if lengths is not None:
            self.mask = torch.arange(LENGTH + 1)[None] <= torch.tensor(lengths).repeat_interleave(PAIRS)[:, None]
            self.mask[:, 0] = False
        self.tokens = (-torch.tensor(np.abs(draw(2 * PAIRS, LENGTH)))).requires_grad_()
        self.ref = [tensor(draw(PAIRS, scale=2, offset=-4)) for _ in range(2)]

    @property
    def six(self) -> list[Tensor]:
        sums = (self.tokens * self.mask[:, 1:]).sum(1).chunk(2)
        return [*sums, *self.ref, *self.mask.sum(1).double().chunk(2)]

    def theirs(self, weights: Mapping[str, float], settings: Mapping[str, float]) -> Tensor:
        """TRL's loss of DPOTrainer."""
        trl = _import("trl.trainer.dpo_trainer")
        tau = settings.get("discopop_tau")
        trainer = _trainer(
            ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", use_weighting=False,
            loss_types=list(weights), loss_weights=list(weights.values()), args=SimpleNamespace(discopop_tau=tau),
            beta=settings.get("beta", 1.0), label_smoothing=settings.get("label_smoothing", 0.0),
        )  # fmt: skip
        zeros = torch.zeros(2 * PAIRS, LENGTH)
        per_token = self.tokens * self.mask[:, 1:]
        outputs = SimpleNamespace(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0)
        inputs = {
            "input_ids": torch.zeros(2 * PAIRS, LENGTH + 1, dtype=torch.long),
            "attention_mask": torch.ones(2 * PAIRS, LENGTH + 1),
            "completion_mask": self.mask,
            "ref_chosen_logps": self.ref[0],
            "ref_rejected_logps": self.ref[1],
        }
        return trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)  # type: ignore[no-any-return]

    def assert_same(self, ours: Tensor, theirs: Tensor) -> None:
        """Values, and gradients with respect to every token."""
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        mine, other = (torch.autograd.grad(loss, self.tokens, retain_graph=True)[0] for loss in (ours, theirs))
        # TRL takes logarithms of label_smoothing in float32
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-8)
        assert float(mine.abs().max()) > 1e-4


SAME = ("robust", "sigmoid_norm", "hinge", "sppo_hard", "exo_pair", "nca_pair", "bco_pair", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop")  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_it_is_trls(name: str) -> None:
    batch = Given()
    batch.assert_same(loss_of({name: 1.0}, batch.six, SETTINGS[name]).loss, batch.theirs({name: 1.0}, SETTINGS[name]))


def test_sigmoid_is_trls_which_does_not_smooth_it() -> None:
    batch = Given()
    batch.assert_same(
        loss_of({"sigmoid": 1.0}, batch.six, {"beta": 0.3}).loss, batch.theirs({"sigmoid": 1.0}, SETTINGS["sigmoid"])
    )


def test_ipo_is_trls_where_every_completion_has_one_token() -> None:
    """TRL divides each log-ratio by its completion's length; the paper does not."""
    batch = Given(lengths=(1, 1))
    batch.assert_same(
        loss_of({"ipo": 1.0}, batch.six, SETTINGS["ipo"]).loss, batch.theirs({"ipo": 1.0}, SETTINGS["ipo"])
    )
    longer = Given()
    ours, theirs = loss_of({"ipo": 1.0}, longer.six, SETTINGS["ipo"]).loss, longer.theirs({"ipo": 1.0}, SETTINGS["ipo"])
    assert abs(ours.item() - theirs.item()) > 0.1 * theirs.item()


def test_sft_is_trls_where_the_chosen_are_equally_long() -> None:
    """Else TRL weighs a pair by the length of its chosen completion, and the accumulation changes its loss."""
    batch = Given(lengths=(6, 4))
    batch.assert_same(loss_of({"sft": 1.0}, batch.six, {}).loss, batch.theirs({"sft": 1.0}, {}))
    ragged = Given()
    assert abs(loss_of({"sft": 1.0}, ragged.six, {}).loss.item() - ragged.theirs({"sft": 1.0}, {}).item()) > 1e-3


def test_a_mix_is_trls() -> None:
    batch, weights = Given(lengths=(6, 4)), {"sigmoid": 1.0, "bco_pair": 0.5, "sft": 0.2}
    batch.assert_same(loss_of(weights, batch.six, {"beta": 0.3}).loss, batch.theirs(weights, {"beta": 0.3}))


@pytest.mark.parametrize("name", ["simpo", "cpo"])
def test_simpo_and_cpo_are_trls(name: str) -> None:
    trl = _import("trl.experimental.cpo.cpo_trainer")
    batch, beta = Given(), SETTINGS[name]["beta"]
    loss_type = "simpo" if name == "simpo" else "sigmoid"
    trainer = _trainer(alpha=0.0, loss_type=loss_type, beta=beta, simpo_gamma=0.7, label_smoothing=0.0)
    chosen, rejected, _, _, *lengths = batch.six
    if name == "simpo":  # TRL's trainer averages over tokens before
        chosen, rejected = chosen / lengths[0], rejected / lengths[1]
    losses, _, _ = trl.CPOTrainer.cpo_loss(trainer, chosen, rejected)
    batch.assert_same(loss_of({name: 1.0}, batch.six, SETTINGS[name], reference=False).loss, losses.mean())


def test_orpo_is_trls() -> None:
    """Its odds-ratio term, which TRL adds with a minus and computes in float32."""
    trl = _import("trl.experimental.orpo.orpo_trainer")
    batch = Given()
    chosen, rejected, _, _, *lengths = batch.six
    means: Any = (chosen / lengths[0], rejected / lengths[1])
    losses, *_ = trl.ORPOTrainer.odds_ratio_loss(_trainer(beta=1.0), *means)
    ours, theirs = loss_of({"orpo": 1.0}, batch.six, {}, reference=False).loss, -losses.mean()
    batch.assert_same(ours, theirs)
