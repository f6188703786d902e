"""From scores to advantages in PPO: missing EOS, centring, KL, whitening, and the averages that are logged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.generation.engine import Completion
from rlhf.generation.reward_scorer import Sample
from rlhf.generation.scorers import Scorer
from rlhf.models.load import load_scalar_model
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.store import Prompt
from rlhf.train.rollout import evaluate
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.train.ppo_support import (
    BATCHINGS,
    EOS,
    LETTERS,
    Folders,
    Recipes,
    assert_same_experience,
    both_kinds,
    by_completion,
    iteration,
    perturb,
    plain_logprobs,
    stage_of,
    tokens,
)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("mode", ["replace", "penalty"])
def test_06_missing_eos(mode: str, center: bool, ragged: Callable[..., TrainRecipe]) -> None:
    value = -3.5 if mode == "replace" else 3.5
    section = {"missing_eos": {"mode": mode, "value": value}, "center_rewards": center}
    stage = stage_of(ragged(ppo=section))
    rollouts = iteration(stage)
    completions = both_kinds(rollouts, stage)
    raw = [sum(ch.isalpha() for ch in c.text) - (stage.reward_offset or 0.0) for c in completions]
    unfinished = [-3.5 if mode == "replace" else r - 3.5 for r in raw]
    expected = [r if c.ended else u for r, u, c in zip(raw, unfinished, completions, strict=True)]
    assert torch.cat([r.scores for r in rollouts]).tolist() == pytest.approx(expected, abs=1e-6)
    assert stage.measured["score"] == pytest.approx(
        sum(raw) / 8 + (stage.reward_offset or 0.0)
    )  # logged as it was given


def test_06_a_penalty_that_rewards_not_ending_is_refused(ragged: Callable[..., TrainRecipe]) -> None:
    with pytest.raises(ValueError, match=r"a penalty is subtracted from the score, so -1 would reward .* write 1"):
        ragged(ppo={"missing_eos": {"mode": "penalty", "value": -1.0}})


@BATCHINGS
def test_07_the_terminal_reward_lands_on_the_last_real_token(batching: str, ragged: Callable[..., TrainRecipe]) -> None:
    """With gamma 0 a return is the reward of its own token."""
    stage = stage_of(ragged(model={"batching": batching}, ppo={"gamma": 0.0, "kl_coef": 0.0}))
    [rollout] = iteration(stage)
    completions = both_kinds([rollout], stage)
    assert rollout.scores.abs().min() > 0
    for m, completion in enumerate(completions):
        last = len(completion.ids) - 1
        expected = [0.0] * last + [rollout.scores[m].item()]
        assert rollout.returns[rollout.batch.rows == m].tolist() == pytest.approx(expected, abs=1e-5)


def test_10_rewards_are_centred_on_what_the_starting_policy_writes(ragged: Callable[..., TrainRecipe]) -> None:
    recipe = ragged(checkpoint={"save_steps": 1}, training={"max_steps": 2})
    stage = stage_of(recipe)
    assert stage.reward_offset is None
    rollouts = iteration(stage)
    offset = stage.reward_offset
    assert offset == pytest.approx(stage.measured["score"]) and offset > 0
    assert torch.cat([r.scores for r in rollouts]).mean().item() == pytest.approx(0.0, abs=1e-5)
    second = torch.cat([r.scores for r in iteration(stage, step=1)]).mean().item()
    assert stage.reward_offset == offset
    assert second == pytest.approx(stage.measured["score"] - offset, abs=1e-5) and second != 0.0
    resumed = stage_of(recipe)
    resumed.load_state(json.loads(json.dumps(stage.state())))
    iteration(resumed, step=1)
    assert resumed.reward_offset == offset
    assert resumed.measured == stage.measured
    train(recipe)
    for step in (1, 2):
        state = json.loads((Path(recipe.output_dir) / f"checkpoints/step-{step:06d}/state.json").read_text())
        assert state["stage"]["reward_offset"] == pytest.approx(offset)
    plain = stage_of(ragged(ppo={"center_rewards": False}))
    assert torch.cat([r.scores for r in iteration(plain)]).mean().item() == pytest.approx(offset)


def test_12_the_reward_is_kl_per_token_and_the_score_at_the_end_only(ragged: Callable[..., TrainRecipe]) -> None:
    stage = stage_of(ragged(ppo={"gamma": 0.0, "kl_coef": 0.3}))
    perturb(stage.policy)
    [rollout] = iteration(stage)
    both_kinds([rollout], stage)
    network = AutoModelForCausalLM.from_pretrained(stage.policy.transformer.name_or_path)
    rows = [(p, c.ids) for p, g in zip(stage.engine.prompts[0], stage.engine.groups[0], strict=True) for c in g]
    kls = []
    for m, (prompt, ids) in enumerate(rows):
        own = plain_logprobs(stage.policy.transformer, prompt, ids, 1.0)
        kl = own - plain_logprobs(network, prompt, ids, 1.0)  # the policy moved, the reference did not
        expected = -0.3 * kl
        expected[-1] += rollout.scores[m]
        torch.testing.assert_close(rollout.returns[rollout.batch.rows == m], expected, rtol=1e-4, atol=2e-5)
        kls.append(float(kl.sum()))
    assert stage.measured["kl"] == pytest.approx(sum(kls) / len(kls), abs=1e-4) and abs(stage.measured["kl"]) > 0.01
    objective = rollout.scores.mean().item() - 0.3 * stage.measured["kl"]
    assert stage.measured["objective"] == pytest.approx(objective, abs=1e-4)


def test_13_advantages_are_whitened_over_the_whole_rollout_and_rewards_keep_their_mean(
    ragged: Callable[..., TrainRecipe],
) -> None:
    small = {"per_device_train_batch_size": 2}  # four microbatches, of unlike width
    plain, white = (
        iteration(stage_of(ragged(logit=6.5, ppo={"whiten_advantages": w}, training=small))) for w in (False, True)
    )
    assert len(white) == 4 and len({r.batch.mask.shape[1] for r in white}) > 1
    advantages = tokens(plain, "advantages")
    expected = (advantages - advantages.mean()) / advantages.std()
    torch.testing.assert_close(tokens(white, "advantages"), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(tokens(plain, "returns"), tokens(white, "returns"))  # the value model's target is left alone

    rewards = []
    for whiten in (False, True):
        ppo = {"gamma": 0.0, "whiten_rewards": whiten, "center_rewards": False}
        stage = stage_of(ragged(logit=6.5, ppo=ppo, training=small))
        perturb(stage.policy, 0.02)
        rewards.append(tokens(iteration(stage), "returns"))
    before, after = rewards
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=1e-4) and abs(before.mean()) > 0.1
    assert after.std().item() == pytest.approx(1.0, rel=1e-4)
    torch.testing.assert_close(after, (before - before.mean()) / before.std() + before.mean(), rtol=1e-4, atol=1e-4)


def test_17_the_coefficient_follows_the_measured_kl(ragged: Callable[..., TrainRecipe]) -> None:
    ppo = {"kl_coef": 0.2, "adaptive_kl": {"target": 0.05, "horizon": 40}}
    recipe = ragged(ppo=ppo, training={"max_steps": 6}, checkpoint={"save_steps": 6})
    train(recipe)
    lines = metrics_of(recipe)
    expected = 0.2
    for line in lines:
        assert line["kl_coef"] == pytest.approx(expected, rel=1e-9)
        expected *= 1 + min(max(line["kl"] / 0.05 - 1, -0.2), 0.2) * 8 / 40
    assert len({line["kl_coef"] for line in lines}) == 6 and lines[1]["kl_coef"] < 0.2  # no KL yet: it gives way
    state = json.loads((Path(recipe.output_dir) / "checkpoints/step-000006/state.json").read_text())
    assert state["stage"]["kl_coef"] == pytest.approx(expected, rel=1e-9)
    fixed = ragged(ppo={"kl_coef": 0.2}, out="fixed")
    train(fixed)
    assert {line["kl_coef"] for line in metrics_of(fixed)} == {0.2}


@BATCHINGS
def test_averages_ignore_padding(batching: str, ragged: Callable[..., TrainRecipe]) -> None:
    """Every logged mean, from the samples themselves: by token or by completion, padding nowhere."""
    stage = stage_of(ragged(model={"batching": batching}, training={"per_device_train_batch_size": 4}))
    perturb(stage.policy, 0.02)
    rollouts = iteration(stage)
    completions = both_kinds(rollouts, stage)
    rows = [(p, c.ids) for p, g in zip(stage.engine.prompts[0], stage.engine.groups[0], strict=True) for c in g]
    reference = AutoModelForCausalLM.from_pretrained(stage.policy.transformer.name_or_path)
    own = [plain_logprobs(stage.policy.transformer, p, ids, 1.0) for p, ids in rows]
    ref = [plain_logprobs(reference, p, ids, 1.0) for p, ids in rows]
    found = by_completion(rollouts)
    returns, values = (torch.cat([found[(*p, -1, *i)][n] for p, i in rows]) for n in ("returns", "old_values"))
    explained = 1 - float(((returns - values) ** 2).mean()) / float(returns.var(unbiased=False))
    expected = {
        "length": sum(len(c.ids) for c in completions) / 8,
        "eos_rate": sum(c.ended for c in completions) / 8,
        "entropy": -float(torch.cat(own).mean()),
        "kl": sum(float((a - b).sum()) for a, b in zip(own, ref, strict=True)) / 8,
        "score": sum(sum(ch.isalpha() for ch in c.text) for c in completions) / 8,
        "value/explained_variance": explained,
    }
    for name, value in expected.items():
        assert stage.measured[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    count = torch.tensor(float(sum(stage.count(r) for r in rollouts)))
    assert count == sum(len(c.ids) for c in completions)
    perturb(stage.module, 0.02)
    outputs = [stage.forward_loss(stage.module, r, count).metrics for r in rollouts]
    log_ratio = torch.cat([plain_logprobs(stage.policy.transformer, p, i, 1.0) for p, i in rows]) - torch.cat(own)
    ratio = float(sum(o["policy/ratio"] for o in outputs))
    approx_kl = float(sum(o["policy/approx_kl"] for o in outputs))
    assert ratio == pytest.approx(float(log_ratio.exp().mean()), rel=1e-4)
    assert approx_kl == pytest.approx(float((0.5 * log_ratio**2).mean()), rel=1e-3)


def count_spaces(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(c.count(" ")) for c in completions]


def test_a_callable_is_a_reward_and_several_add_up_by_weight(
    recipe_of: Recipes, model_folder: Folders, reward_model: Callable[[], str]
) -> None:
    folder = reward_model()
    rewards = [LETTERS | {"weight": 0.5}, {"callable": f"{__name__}:count_spaces", "weight": -2.0},
               {"model": folder, "name": "liking", "weight": 3.0}]  # fmt: skip
    ppo = {"rewards": rewards, "center_rewards": False, "missing_eos": None}
    stage = stage_of(recipe_of("ppo", model_folder("llama"), ppo=ppo, training={"per_device_train_batch_size": 8}))
    [rollout] = iteration(stage)
    model = load_scalar_model(ModelSection(name_or_path=folder))
    scale = model.scale
    assert scale is not None
    parts: dict[str, list[float]] = {"count_letters": [], "count_spaces": [], "liking": []}
    for prompt, group in zip(stage.engine.prompts[0], stage.engine.groups[0], strict=True):
        for completion in group:
            parts["count_letters"].append(sum(ch.isalpha() for ch in completion.text))
            parts["count_spaces"].append(completion.text.count(" "))
            ids = completion.ids if completion.ended else [*completion.ids, EOS]  # it was trained on texts that end
            score = model(collate([Segment(prompt, [ids])])).item()
            parts["liking"].append((score - scale.mean) / scale.std)
    weights = {"count_letters": 0.5, "count_spaces": -2.0, "liking": 3.0}
    total = [sum(w * parts[name][i] for name, w in weights.items()) for i in range(8)]
    assert rollout.scores.tolist() == pytest.approx(total, rel=1e-5, abs=1e-5)
    assert stage.measured["score"] == pytest.approx(sum(total) / 8, rel=1e-5)
    for name, values in parts.items():
        assert stage.measured[f"score/{name}"] == pytest.approx(sum(values) / 8, rel=1e-5)


def test_evaluation_scores_held_out_prompts(ragged: Callable[..., TrainRecipe], rows: dict[str, str]) -> None:
    """One completion a prompt, drawn with the same noise every time: a policy that stands still scores the same."""
    recipe = ragged(training={"eval_steps": 2, "max_steps": 4, "learning_rate": 1e-12})
    with_eval = recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": recipe.data.train})})
    train(with_eval)
    lines = {line["step"]: line for line in metrics_of(with_eval)}
    assert [step for step, line in lines.items() if "eval/score" in line] == [0, 2, 4]
    stage = stage_of(with_eval)
    metrics = stage.evaluate(stage.module)
    completions = [c for [c] in stage.engine.groups[0]]
    assert len(completions) == 6
    score = sum(sum(ch.isalpha() for ch in c.text) for c in completions) / 6
    assert metrics == pytest.approx({"score": score, "length": sum(len(c.ids) for c in completions) / 6})
    assert all(lines[step]["eval/score"] == pytest.approx(score) for step in (0, 2, 4))


def test_experience_takes_hand_made_samples(ragged: Callable[..., TrainRecipe]) -> None:
    """`evaluate` and the stage's `estimate` need no engine: groups of any provenance, a microbatch at a time, in order."""
    stage = stage_of(ragged())
    prompts = [Prompt("a", [3, 4]), Prompt("b", [5])]
    groups = [[Completion([6, EOS], "x", True), Completion([7, 8, 9], "y", False)],
              [Completion([EOS], "", True), Completion([6, 6, 6, EOS], "z", True)]]  # fmt: skip
    scorer = Scorer("length", 1.0, lambda samples: [float(len(s.completion.ids)) for s in samples])
    scores = torch.tensor(
        scorer.score([Sample(p.text, p.ids, c) for p, g in zip(prompts, groups, strict=True) for c in g])
    )
    models = {"policy": stage.policy, "critic": stage.critic, "reference": stage.reference}
    together, apart = (
        stage.estimate(evaluate(prompts, groups, scores, temperature=1.0, batch_size=size, **models)) for size in (2, 1)
    )
    assert [len(r.scores) for r in together] == [4] and [len(r.scores) for r in apart] == [2, 2]
    assert together[0].scores.tolist() == [2.0, 3.0, 1.0, 4.0]
    assert_same_experience(together, apart)
