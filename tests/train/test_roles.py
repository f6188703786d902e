"""PPO's four roles on one base: each is the function that it is on a base of its own, and none moves another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.models.adapters import lora_layers
from rlhf.models.load import load_policy, load_scalar_model
from rlhf.recipe.sections import LoraSection, ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.ppo import Ppo
from rlhf.train.run import train
from tests.train.ppo_support import EOS, Folders, Recipes, iteration, stage_of

NF4 = {"quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}}
BATCH = collate([Segment([3, 4, 5], [[6, 7, 8], [9, EOS]]), Segment([7, 7], [[11, 12, 13, EOS]])])


class Chain:
    """SFT, then a reward model and PPO that start from it; `weights` is lora or nf4."""

    def __init__(self, recipe_of: Recipes, base: str, weights: str) -> None:
        self._recipe_of = recipe_of
        self.sections: dict[str, Any] = {"lora": {"r": 4}} | (NF4 if weights == "nf4" else {})
        self.sft = self._trained("sft", base, "sft")
        self.reward = self._trained("reward", self.sft, "reward")

    def _trained(self, method: str, model: str, out: str) -> str:
        sections = self.sections if method == "sft" else {"lora": {}}
        recipe = self._recipe_of(method, model, out=out, **sections)
        train(recipe)
        return f"{recipe.output_dir}/final"

    def recipe(self, *, out: str = "ppo", **sections: Any) -> TrainRecipe:
        ppo = {"rewards": [{"model": self.reward}]} | sections.pop("ppo", {})
        return self._recipe_of("ppo", self.sft, out=out, ppo=ppo, lora={}, **sections)

    def stage(self, **sections: Any) -> Ppo:
        return stage_of(self.recipe(**sections))


@pytest.fixture(params=["lora", "nf4"])
def chain(request: pytest.FixtureRequest, recipe_of: Recipes, model_folder: Folders) -> Chain:
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
    return Chain(recipe_of, model_folder("llama"), request.param)


@torch.no_grad()
def test_each_role_is_what_it_is_on_a_base_of_its_own(chain: Chain) -> None:
    stage = chain.stage()
    scorer = stage.scorers[0].score
    reward = load_scalar_model(ModelSection(name_or_path=chain.reward))
    sft = load_policy(ModelSection(name_or_path=chain.sft))
    assert reward.scale is not None
    for _ in range(2):  # whichever ran before
        torch.testing.assert_close(stage.policy(BATCH), sft(BATCH), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stage.reference(BATCH), sft(BATCH), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scorer.model(BATCH), reward(BATCH), rtol=1e-5, atol=1e-5)  # type: ignore[attr-defined]
        values = stage.module.value_model(BATCH, per_token=True)
        expected = (reward(BATCH, per_token=True) - reward.scale.mean) / reward.scale.std
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)


def test_there_is_one_base_in_memory(chain: Chain) -> None:
    stage = chain.stage()
    scorer = stage.scorers[0].score
    assert stage.module.value_model.transformer is stage.policy.transformer is scorer.model.transformer  # type: ignore[attr-defined]
    base = [p for n, p in stage.policy.transformer.named_parameters() if "lora_" not in n]
    every = {id(p): p for m in (stage.module, scorer.model) for p in m.parameters()}  # type: ignore[attr-defined]
    heads = 2 * (32 + 1)
    adapters = sum(p.numel() for n, p in stage.policy.named_parameters() if "lora_" in n)
    assert sum(p.numel() for p in every.values()) == sum(p.numel() for p in base) + adapters + heads


def test_only_policy_and_value_train_and_each_alone(chain: Chain) -> None:
    stage = chain.stage()
    iteration(stage)  # sampling, scoring and the reference switch roles: what trains must not change
    trains = {n for n, p in stage.module.named_parameters() if p.requires_grad}
    assert {n.split(".")[-2] for n in trains if "lora_" in n} == {"default", "value"}
    assert {n for n in trains if "lora_" not in n} == {"value_model.head.weight", "value_model.head.bias"}
    for index, name in enumerate(("default", "value")):
        stage.module.zero_grad(set_to_none=True)
        stage.module(BATCH, temperature=1.0)[index].pow(2).sum().backward()
        moved = {n.split(".")[-2] for n, p in stage.module.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == {name} | ({"head"} if index else set())


def test_recomputed_activations_use_their_own_roles_adapters(chain: Chain) -> None:
    """With gradient checkpointing each block runs again in the backward pass, when the policy's adapters count again."""
    gradients = []
    for checkpointing in (False, True):
        stage = chain.stage(training={"gradient_checkpointing": checkpointing})
        for layer in lora_layers(stage.policy):  # B starts as the parent's; move the value's away from the policy's
            layer.lora_B["value"].weight.data.add_(0.1)
        stage.module.train()
        logprobs, values = stage.module(BATCH, temperature=1.0)
        (logprobs.pow(2).sum() + values.pow(2).sum()).backward()
        gradients.append({n: p.grad for n, p in stage.module.named_parameters() if p.grad is not None})
    plain, again = gradients
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_run_is_that_of_separate_models(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three iterations with the roles on one base, and with a base for each: the same metrics."""
    from rlhf.train.setup import Setup
    from tests.train.conftest import metrics_of

    def run(out: str) -> list[dict[str, Any]]:
        recipe = chain.recipe(out=out, training={"max_steps": 3})
        train(recipe)
        return metrics_of(recipe)

    together = run("together")
    monkeypatch.setattr(Setup, "_on_base_of", lambda *_: None)
    apart = run("apart")
    for one, other in zip(together, apart, strict=True):
        for name in ("loss", "kl", "score", "grad_norm", "value/explained_variance", "length"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name


def test_a_reward_model_of_another_base_has_its_own(chain: Chain, recipe_of: Recipes, model_folder: Folders) -> None:
    other = recipe_of("reward", model_folder("gpt2"), out="other", lora={"r": 2})
    train(other)
    rewards = [{"model": chain.reward, "name": "ours"}, {"model": f"{other.output_dir}/final", "name": "other"}]
    stage = chain.stage(ppo={"rewards": rewards})
    ours, theirs = (scorer.score.model for scorer in stage.scorers)  # type: ignore[attr-defined]
    assert ours.transformer is stage.policy.transformer and theirs.transformer is not stage.policy.transformer
    iteration(stage)


def test_several_reward_models_lie_on_one_base(chain: Chain) -> None:
    rewards = [{"model": chain.reward, "name": "a"}, {"model": chain.reward, "name": "b", "weight": -1.0}]
    stage = chain.stage(ppo={"rewards": rewards, "missing_eos": None, "center_rewards": False})
    [rollout] = iteration(stage)[:1]
    assert rollout.scores.tolist() == pytest.approx([0.0] * len(rollout.scores), abs=1e-5)


@pytest.mark.parametrize("batching", ["segments", "padded"])
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_a_shared_value_is_a_head_on_the_policys_own_states(
    batching: str, lora: Any, ragged: Callable[..., TrainRecipe]
) -> None:
    stage = stage_of(ragged(lora=lora, model={"batching": batching}, ppo={"value": "shared"}))
    rollouts = iteration(stage)
    assert all(float(r.old_values.abs().max()) == 0 for r in rollouts), "it starts at the mean of centred rewards"
    with torch.no_grad():
        stage.module.value_model.head.weight.normal_()
        logprobs, values = stage.module(BATCH, temperature=1.0)
        torch.testing.assert_close(logprobs, stage.policy(BATCH))
        for segment, own in zip(
            (([3, 4, 5], [6, 7, 8]), ([3, 4, 5], [9, EOS])), (values[:3], values[3:5]), strict=True
        ):
            prompt, ids = segment
            states = stage.policy.transformer.base_model(torch.tensor([[*prompt, *ids]])).last_hidden_state[0]
            expected = stage.module.value_model(states[len(prompt) - 1 : -1])
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    names = {n for n, p in stage.module.named_parameters() if p.requires_grad and n.startswith("value_model.")}
    assert names == {"value_model.head.weight", "value_model.head.bias"}


def test_a_shared_value_learns_and_resumes(ragged: Callable[..., TrainRecipe]) -> None:
    whole = ragged(lora={"r": 4}, ppo={"value": "shared"}, training={"max_steps": 4}, checkpoint={"save_steps": 2})
    train(whole)
    from tests.train.conftest import metrics_of

    lines = metrics_of(whole)
    assert all(line["value/loss"] > 0 for line in lines)
    part = ragged(
        lora={"r": 4}, ppo={"value": "shared"}, training={"max_steps": 2}, checkpoint={"save_steps": 2}, out="part"
    )
    train(part)
    rest = part.model_copy(update={"training": whole.training})
    train(rest)
    assert [line["loss"] for line in metrics_of(rest)] == [line["loss"] for line in lines]


def test_a_shared_value_takes_no_value_model(recipe_of: Recipes, model_folder: Folders) -> None:
    with pytest.raises(ValueError, match="value_model: does nothing with value: shared"):
        recipe_of("ppo", model_folder("llama"), ppo={"value": "shared", "value_model": "run"})


def test_a_role_takes_the_parents_shape(chain: Chain) -> None:
    """What `lora:` states is said of the policy: a reward model's adapters keep their own rank."""
    stage = chain.stage()
    assert LoraSection().r is None
    ranks = {name: config.r for name, config in stage.policy.model.peft_config.items()}  # type: ignore[union-attr]
    assert ranks == {"default": 4, "start": 4, "value": 4, "reward-0": 4}
