"""PPO's optimizer steps: the clipped losses, Adam, minibatches, accumulation and gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.losses import LossOutput
from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.train.ppo_support import (
    BATCHINGS,
    iteration,
    stage_of,
)


def test_14_value_clipping_takes_half_the_larger_error(ragged: Callable[..., TrainRecipe]) -> None:
    stage = stage_of(ragged(ppo={"cliprange_value": 0.15, "cliprange": 0.1, "vf_coef": 0.7}))
    [r] = iteration(stage)
    generator = torch.Generator().manual_seed(0)
    logprobs, values = (
        old + 0.3 * torch.randn(len(old), generator=generator) for old in (r.old_logprobs, r.old_values)
    )
    n = r.batch.num_targets
    output: LossOutput = stage.forward_loss(lambda *_, **__: (logprobs, values), r, torch.tensor(float(n)))
    old, returns, advantages = r.old_values, r.returns, r.advantages
    clipped = torch.maximum(torch.minimum(values, old + 0.15), old - 0.15)
    value = 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).sum() / n
    ratio = (logprobs - r.old_logprobs).exp()
    policy = -torch.minimum(ratio * advantages, ratio.clamp(0.9, 1.1) * advantages).sum() / n
    torch.testing.assert_close(output.loss, policy + 0.7 * value)
    assert output.metrics["value/clip_fraction"] > 0 and output.metrics["policy/clip_fraction"] > 0


class Steps:
    """Every AdamW step of a run: its groups' settings and the norm of the gradient it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: list[dict[str, Any]] = []
        self.norms: list[float] = []
        plain = torch.optim.AdamW.step

        def step(optimizer: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
            self.settings.append({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
            gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            self.norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
            return plain(optimizer, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", step)


def test_15_adam_epsilon_and_an_annealed_rate(
    ragged: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    training = {"adam_epsilon": 1e-5, "lr_scheduler_type": "linear", "learning_rate": 4e-3, "max_steps": 4}
    train(ragged(training=training))
    assert {s["eps"] for s in steps.settings} == {1e-5}
    rates = [s["lr"] for s in steps.settings]
    assert rates == pytest.approx([4e-3] * 2 + [3e-3] * 2 + [2e-3] * 2 + [1e-3] * 2)  # two epochs an iteration


def test_max_grad_norm_acts(ragged: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a huge Adam epsilon a step is proportional to its gradient, so clipping shows in the weights."""
    steps = Steps(monkeypatch)
    moved = {}
    for limit in (None, 1e-3):
        training = {"max_grad_norm": limit, "adam_epsilon": 1e3, "learning_rate": 1.0, "max_steps": 1}
        recipe = ragged(training=training, out=f"clip-{limit}", ppo={"num_ppo_epochs": 1})
        train(recipe)
        start = load_file(Path(recipe.model.name_or_path) / "model.safetensors")
        final = load_file(Path(recipe.output_dir) / "final/model.safetensors")
        moved[limit] = float(torch.stack([(final[n] - start[n]).norm() for n in start]).norm())
        assert metrics_of(recipe)[0]["grad_norm"] == pytest.approx(steps.norms[0], rel=1e-5)  # logged before clipping
    free, clipped = steps.norms
    assert free > 0.01 and clipped == pytest.approx(1e-3, rel=1e-3)
    assert moved[1e-3] < 0.2 * moved[None]


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_gradient_checkpointing_acts_and_changes_nothing(
    lora: Any, ragged: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plain = torch.utils.checkpoint.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    gradients = []
    for checkpointing in (False, True):
        calls.clear()
        stage = stage_of(ragged(lora=lora, training={"gradient_checkpointing": checkpointing}))
        [rollout] = iteration(stage)
        before = len(calls)
        stage.forward_loss(stage.module, rollout, torch.tensor(float(rollout.batch.num_targets))).loss.backward()
        layers = 2 * stage.policy.transformer.config.num_hidden_layers  # the policy's and the value model's
        assert len(calls) - before == (layers if checkpointing else 0)
        gradients.append({n: p.grad for n, p in stage.module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0)


@pytest.mark.parametrize(("epochs", "minibatches", "size"), [(2, 2, 2), (3, 1, 4), (1, 4, 2), (2, 2, 1)])
def test_an_iteration_is_exactly_epochs_times_minibatches_optimizer_steps(
    epochs: int, minibatches: int, size: int, ragged: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 samples; `size` a microbatch (n = 2: never less than one prompt), several microbatches a minibatch."""
    steps = Steps(monkeypatch)
    ppo = {"num_ppo_epochs": epochs, "num_mini_batches": minibatches}
    recipe = ragged(ppo=ppo, training={"per_device_train_batch_size": size, "max_steps": 3})
    train(recipe)
    assert len(steps.norms) == 3 * epochs * minibatches
    stage = stage_of(recipe)
    updates = list(stage.updates(0))
    microbatches = 4 // max(1, size // 2)
    assert [len(update.microbatches) for update in updates] == [microbatches // minibatches] * (epochs * minibatches)
    for epoch in range(epochs):  # every sample once an epoch
        own = updates[epoch * minibatches : (epoch + 1) * minibatches]
        assert len({id(m.batch) for update in own for m in update.microbatches}) == microbatches


def test_minibatches_of_several_microbatches_are_one_gradient(ragged: Callable[..., TrainRecipe]) -> None:
    """Whether a minibatch is run as one microbatch or as four, the same step comes of it."""
    finals = []
    for size in (8, 2):
        recipe = ragged(out=f"m{size}", training={"per_device_train_batch_size": size, "max_steps": 2,
                                                  "learning_rate": 1e-3, "adam_epsilon": 1e-3})  # fmt: skip
        train(recipe)
        finals.append((load_file(Path(recipe.output_dir) / "final/model.safetensors"), metrics_of(recipe)))
    (ours, lines), (theirs, others) = finals
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    for a, b in zip(lines, others, strict=True):
        for key in a.keys() - {"seconds", "tokens_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@BATCHINGS
def test_before_the_first_update_every_ratio_is_exactly_one(
    batching: str, lora: Any, bf16: bool, ragged: Callable[..., TrainRecipe]
) -> None:
    """One epoch of one minibatch is always on policy: old and new log-probabilities are of the very same forward."""
    training = {"bf16": bf16, "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    ppo = {"num_ppo_epochs": 1, "sampling": {"temperature": 0.7}}
    recipe = ragged(model={"batching": batching}, lora=lora, training=training, ppo=ppo)
    train(recipe)
    lines = metrics_of(recipe)
    for line in lines:
        assert line["policy/approx_kl"] == 0.0
        assert line["policy/clip_fraction"] == 0.0
        assert line["policy/ratio"] == pytest.approx(1.0, abs=1e-6)
        assert line["value/clip_fraction"] == 0.0
    assert lines[0]["kl"] == 0.0 and lines[-1]["kl"] != 0.0
    stage = stage_of(recipe)
    assert stage.policy.bf16 == bf16
    for r in iteration(stage):
        logprobs, values = stage.module(r.batch, temperature=0.7)
        assert torch.equal(logprobs, r.old_logprobs)
        assert torch.equal(values, r.old_values)
