"""TRL's own loss code on the same numbers: its trainers' methods, run on a stand-in for the trainer and the model.

TRL has no pure loss functions, so this drives private methods of one minor version and skips on any other.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.losses import policy_loss, preference_loss, reward_loss, sft_loss
from tests.losses.support import Numbers, assert_close, tensor

try:
    TRL = importlib.metadata.version("trl")
except importlib.metadata.PackageNotFoundError:
    TRL = ""
pytestmark = pytest.mark.skipif(not TRL.startswith("1.16."), reason="written against the private methods of trl 1.16")


def _import(module: str) -> Any:
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return importlib.import_module(module)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"{module}: {error}")


def _trainer(**fields: object) -> SimpleNamespace:
    """What TRL's loss methods read from `self`, on one process."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        num_processes=1,
    )
    return SimpleNamespace(
        accelerator=accelerator,
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **fields,
    )


def _metric(trainer: SimpleNamespace, name: str) -> float:
    return trainer._metrics["eval"][name][-1]


@pytest.mark.parametrize("seed", range(3))
def test_dpo(seed: int) -> None:
    trl = _import("trl.trainer.dpo_trainer")
    draw, pairs, length = Numbers(seed, None), 4, 7
    completion_mask = torch.tensor(draw.rng.random((2 * pairs, length + 1)) < 0.6)
    per_token = -torch.tensor(np.abs(draw(2 * pairs, length))) * completion_mask[:, 1:]
    ref = [tensor(draw(pairs, scale=2, offset=-4)) for _ in range(2)]
    trainer = _trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=0.3,
        label_smoothing=0.0,
        use_weighting=False,
    )
    chosen, rejected = per_token.sum(1).requires_grad_().chunk(2)
    zeros = torch.zeros(2 * pairs, length)
    outputs = SimpleNamespace(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0)
    inputs = {
        "input_ids": torch.zeros(2 * pairs, length + 1, dtype=torch.long),
        "attention_mask": torch.ones(2 * pairs, length + 1),
        "completion_mask": completion_mask,
        "ref_chosen_logps": ref[0],
        "ref_rejected_logps": ref[1],
    }
    theirs = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    lengths = dict.fromkeys(("chosen_lengths", "rejected_lengths"), torch.ones(pairs))
    ours = preference_loss(
        losses={"sigmoid": 1.0},
        settings={"beta": 0.3, "label_smoothing": 0.0},
        num_pairs=pairs,
        chosen_logprobs=chosen,
        rejected_logprobs=rejected,
        reference=(ref[0], ref[1]),
        **lengths,
    )
    assert_close(ours.loss, theirs.item())
    names = {
        "accuracy": "rewards/accuracies",
        "margin": "rewards/margins",
        "reward/chosen": "rewards/chosen",
        "reward/rejected": "rewards/rejected",
        "logprobs/chosen": "logps/chosen",
        "logprobs/rejected": "logps/rejected",
    }
    for mine, name in names.items():
        assert_close(ours.metrics[mine], _metric(trainer, name))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_dpo_smoothing(smoothing: float) -> None:
    """TRL's DPO trainer has no cDPO; its CPO trainer has, and CPO is DPO against a reference that is constant."""
    trl = _import("trl.experimental.cpo.cpo_trainer")
    draw = Numbers(11, None)
    chosen, rejected = tensor(draw(5, scale=3)), tensor(draw(5, scale=3))
    trainer = _trainer(alpha=0.0, loss_type="sigmoid", beta=0.3, label_smoothing=smoothing)
    losses, _, _ = trl.CPOTrainer.cpo_loss(trainer, chosen, rejected)
    constant = torch.full_like(chosen, -50.0)
    lengths = dict.fromkeys(("chosen_lengths", "rejected_lengths"), torch.ones(5))
    ours = preference_loss(
        losses={"sigmoid": 1.0},
        settings={"beta": 0.3, "label_smoothing": smoothing},
        num_pairs=5,
        chosen_logprobs=chosen - 50.0,
        rejected_logprobs=rejected - 50.0,
        reference=(constant, constant),
        **lengths,
    )
    assert_close(ours.loss, losses.mean().item())


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("center", [None, 0.01])
def test_reward(margin: bool, center: float | None) -> None:
    trl = _import("trl.trainer.reward_trainer")
    draw, pairs = Numbers(3, None), 6
    chosen, rejected, margins = tensor(draw(pairs)), tensor(draw(pairs)), tensor(np.abs(draw(pairs)))
    trainer = _trainer(args=SimpleNamespace(center_rewards_coefficient=center))
    outputs = SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
    inputs = {"attention_mask": torch.ones(2 * pairs, 3)} | ({"margin": margins} if margin else {})

    def model(**_: object) -> SimpleNamespace:
        return outputs

    theirs = trl.RewardTrainer.compute_loss(trainer, model, inputs)
    ours = reward_loss(
        chosen_scores=chosen,
        rejected_scores=rejected,
        num_pairs=pairs,
        margins=margins if margin else None,
        center_coefficient=center or 0.0,
    )
    assert_close(ours.loss, theirs.item())
    assert ours.metrics["accuracy"].item() == pytest.approx(_metric(trainer, "accuracy"), abs=1e-7)  # float32 there
    assert_close(ours.metrics["margin"], _metric(trainer, "margin"))


@pytest.mark.parametrize("seed", range(3))
def test_policy_loss(seed: int) -> None:
    """TRL has no PPO any more; GRPO's clipped objective, normalised by tokens ("bnpo"), is the same surrogate."""
    trl = _import("trl.trainer.grpo_trainer")
    draw, shape = Numbers(seed, None), (4, 6)
    mask = np.arange(shape[1])[None, :] < draw.rng.integers(1, shape[1] + 1, shape[0])[:, None]
    logprobs, old, advantages = (tensor(draw(*shape, scale=s)) for s in (0.5, 0.3, 1.0))
    logprobs.requires_grad_()
    trainer = _trainer(
        args=SimpleNamespace(delta=None),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(shape), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        loss_type="bnpo",
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    ids = torch.zeros(shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": tensor(mask).long(),
        "advantages": advantages,
        "old_per_token_logps": old,
    }
    theirs = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    ours = policy_loss(
        logprobs=logprobs[tensor(mask)],
        old_logprobs=old[tensor(mask)],
        advantages=advantages[tensor(mask)],
        cliprange=0.2,
        num_tokens=int(mask.sum()),
    )
    assert_close(ours.loss, theirs.item())
    clipped = _metric(trainer, "clip_ratio/region_mean")
    assert ours.metrics["policy/clip_fraction"].item() == pytest.approx(clipped, abs=1e-6)  # float32 there
    mine, other = (torch.autograd.grad(loss, logprobs)[0] for loss in (ours.loss, theirs))
    assert_close(mine, other.numpy())


def test_sft() -> None:
    """TRL's selective_log_softmax under our normaliser, against cross-entropy on labels masked with -100."""
    trl = _import("trl.trainer.utils")
    draw = Numbers(4, None)
    logits, tokens = tensor(draw(3, 5, 9, scale=3)), torch.tensor(draw.rng.integers(0, 9, (3, 5)))
    mask = torch.tensor(draw.rng.random((3, 5)) < 0.5)
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.masked_fill(~mask, -100).flatten())
    logprobs = trl.selective_log_softmax(logits, tokens)
    assert_close(sft_loss(logprobs=logprobs[mask], num_tokens=int(mask.sum())).loss, theirs.item())
