"""What a PPO must get right, at the level of models and the stage.

`test_01` to `test_18` are the list of Huang et al. 2024 (the N implementation details of RLHF with PPO) and its
forebears, one by one; the formulas themselves are proven in tests/numerics. Below them: each fault that TRL's last
PPOTrainer (1.12) was measured to have, as a test that ours has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, GPT2Config, LlamaConfig

from rlhf.generation.engine import Completion
from rlhf.generation.in_process import InProcessEngine
from rlhf.generation.scorers import Sample, Scorer
from rlhf.losses import LossOutput
from rlhf.models.load import disable_dropout, load_policy, load_scalar_model
from rlhf.models.policy import Policy
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.schema import PpoRecipe, TrainRecipe
from rlhf.recipe.sections import ModelSection, SamplingSection
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.ppo import Ppo
from rlhf.train.rollout import Experience, Prompt, experience
from rlhf.train.run import load_rows, make_accelerator, train
from rlhf.train.setup import Setup
from tests.tiny import tiny_tokenizer
from tests.train.conftest import config_of, metrics_of

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
BATCHINGS = pytest.mark.parametrize("batching", ["segments", "padded"])
EOS = tiny_tokenizer().eos_token_id
LETTERS = {"callable": "tests.train.rewards:count_letters"}
SEEN: list[tuple[str, str]] = []  # what `spy` was asked to score


def spy(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that remembers what it was asked."""
    SEEN.extend(zip(prompts, completions, strict=True))
    return [float(len(c)) for c in completions]


def count_spaces(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(c.count(" ")) for c in completions]


class Recorder:
    """An engine that remembers what it was asked and what it gave."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.prompts: list[list[list[int]]] = []
        self.seeds: list[int] = []
        self.groups: list[list[list[Completion]]] = []

    def generate(self, prompts: Any, sampling: Any, *, seed: int, progress: Any = None) -> list[list[Completion]]:
        self.prompts.append([list(p) for p in prompts])
        self.seeds.append(seed)
        self.groups.append(self.engine.generate(prompts, sampling, seed=seed, progress=progress))
        return self.groups[-1]


def stage_of(recipe: TrainRecipe) -> Ppo:
    """The stage as `train` builds it, its engine under a recorder."""
    assert isinstance(recipe, PpoRecipe)
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    rows = load_rows(recipe, tokenizer)
    stage = Ppo(recipe, Setup(recipe, make_accelerator(recipe), tokenizer, rows.train, rows.held_out))
    stage.engine = Recorder(stage.engine)
    stage.module.train()
    return stage


def iteration(stage: Ppo, step: int = 0) -> list[Experience]:
    """The rollouts of one iteration, each microbatch once (its first epoch)."""
    updates = list(stage.updates(step))
    return [m.batch for window in updates[: stage.section.num_mini_batches] for m in window]


def tokens(rollouts: Iterable[Experience], name: str) -> Tensor:
    """One number a completion token, over all microbatches."""
    return torch.cat([getattr(r, name)[r.batch.mask] for r in rollouts])


def by_completion(rollouts: Iterable[Experience]) -> dict[tuple[int, ...], dict[str, Tensor]]:
    """Each completion's own numbers by its prompt and ids, whatever microbatch it lay in."""
    found = {}
    for r in rollouts:
        for m, length in enumerate(r.batch.lengths.tolist()):
            ids = tuple(r.batch.to_rows(r.batch.targets)[m, :length].tolist())
            span = r.batch.spans[int(r.batch.segments[m])]
            prompt = tuple(r.batch.input_ids[span.start : span.start + span.prompt].tolist())
            names = ("old_logprobs", "ref_logprobs", "old_values", "advantages", "returns")
            found[(*prompt, -1, *ids)] = {n: getattr(r, n)[m, :length] for n in names} | {"scores": r.scores[m]}
    return found


def assert_same_experience(ours: Iterable[Experience], theirs: Iterable[Experience]) -> None:
    a, b = by_completion(ours), by_completion(theirs)
    assert a.keys() == b.keys()
    for key, numbers in a.items():
        for name, value in numbers.items():
            torch.testing.assert_close(value, b[key][name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def plain_logprobs(network: Any, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> Tensor:
    """A completion's log-probabilities by a plain forward pass of its own."""
    with torch.no_grad():
        logits = network(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)


def perturb(module: torch.nn.Module, scale: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A tiny Llama whose next token is EOS with a chosen logit: 6 is about as likely as all other tokens together."""
    made: dict[float, str] = {}

    def folder(logit: float) -> str:
        if logit not in made:
            torch.manual_seed(1)
            tokenizer = tiny_tokenizer()
            network = AutoModelForCausalLM.from_config(config_of("llama", tokenizer))
            with torch.no_grad():  # one dimension of every hidden state is large and constant, and EOS reads it
                network.model.embed_tokens.weight[:, 0] = 5.0
                network.lm_head.weight[:, 0] = 0.0
                network.lm_head.weight[EOS] = 0.0
                network.lm_head.weight[EOS, 0] = logit / 32**0.5
            made[logit] = str(tmp_path_factory.mktemp("ending"))
            network.save_pretrained(made[logit])
            tokenizer.save_pretrained(made[logit])
        return made[logit]

    return folder


@pytest.fixture
def ragged(ending: Callable[..., str], recipe_of: Recipes) -> Callable[..., TrainRecipe]:
    """PPO recipes on a model that ends about half of its completions early: `ragged(ppo=...)`."""

    def make(*, logit: float = 5.0, ppo: dict[str, Any] | None = None, **sections: Any) -> TrainRecipe:
        model = {"name_or_path": ending(logit)} | sections.pop("model", {})
        training = {"per_device_train_batch_size": 8} | sections.pop("training", {})
        sampling = {"max_new_tokens": 6, "n": 2} | (ppo or {}).pop("sampling", {})
        return recipe_of(
            "ppo", ending(logit), model=model, training=training, ppo={"sampling": sampling} | (ppo or {}), **sections
        )

    return make


@pytest.fixture
def reward_model(recipe_of: Recipes, model_folder: Folders) -> Callable[[], str]:
    """The `final/` of a reward model that was trained a little."""

    def make(name: str = "llama") -> str:
        recipe = recipe_of("reward", model_folder(name), out=f"rm-{name}")
        train(recipe)
        return f"{recipe.output_dir}/final"

    return make


def both_kinds(rollouts: Sequence[Experience], stage: Ppo) -> list[Completion]:
    """All completions; the test means nothing unless some ended early and some did not."""
    completions = [c for group in stage.engine.groups[-1] for c in group]
    assert {c.ended for c in completions} == {True, False}
    assert len({len(c.ids) for c in completions}) > 2
    return completions


# --- The list -------------------------------------------------------------------------------------------------------


@BATCHINGS
def test_01_pad_is_not_eos_and_padding_is_masked_by_place(batching: str, ragged: Callable[..., TrainRecipe]) -> None:
    """pad == eos here. The EOS action is trained, and how much padding stands after it changes nothing."""
    wide, narrow, flat = (
        stage_of(ragged(model={"batching": b}, training={"per_device_train_batch_size": size}))
        for b, size in ((batching, 8), (batching, 1), ("segments", 8))
    )
    assert load_tokenizer(wide.policy.transformer.name_or_path).pad_token_id == EOS == wide.policy.pad_token_id
    assert wide.policy.segments == wide.value_model.segments == (batching == "segments")
    rollouts = iteration(wide)
    both_kinds(rollouts, wide)
    assert_same_experience(rollouts, iteration(narrow))
    assert_same_experience(rollouts, iteration(flat))
    [rollout] = rollouts
    batch = rollout.batch
    logprobs = wide.policy(batch, temperature=1.0).detach().requires_grad_()
    values = wide.value_model(batch, per_token=True).detach().requires_grad_()
    count = torch.tensor(float(batch.num_targets))
    wide.forward_loss(lambda *_, **__: (logprobs, values), rollout, count).loss.backward()
    ends = batch.targets == EOS
    assert ends.any() and not ends.all()
    assert (logprobs.grad[ends] != 0).all() and (values.grad[ends] != 0).all()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_02_left_padded_generation_equals_unpadded(name: str) -> None:
    """Prompts of unlike length in one batch, greedily, against a plain forward pass of each alone, token by token."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(2)
    config = config_of(name, tokenizer)
    config.initializer_range = 0.5  # so that where a token stands matters
    network = AutoModelForCausalLM.from_config(config)
    disable_dropout(network)
    policy = Policy(network, pad_token_id=0)
    prompts = [tokenizer(p).input_ids for p in ("you", "The film was good and the answer", "hello there,")]
    assert len({len(p) for p in prompts}) == 3
    sampling = SamplingSection(temperature=0, max_new_tokens=12)
    ours = InProcessEngine(policy, tokenizer).generate(prompts, sampling, seed=0)
    for prompt, [completion] in zip(prompts, ours, strict=True):
        row = list(prompt)
        while len(row) < len(prompt) + 12 and (len(row) == len(prompt) or row[-1] != EOS):
            with torch.no_grad():
                row.append(int(network(torch.tensor([row])).logits[0, -1].argmax()))
        assert completion.ids == row[len(prompt) :]


@BATCHINGS
def test_03_the_temperature_divides_the_logits_of_policy_old_and_reference_alike(
    batching: str, ragged: Callable[..., TrainRecipe]
) -> None:
    stage = stage_of(ragged(model={"batching": batching}, ppo={"sampling": {"temperature": 0.7}}))
    rollouts = iteration(stage)
    assert stage.metrics["kl"] == 0.0
    for r in rollouts:
        assert torch.equal(r.old_logprobs, r.ref_logprobs)
        logprobs, _ = stage.module(r.batch, temperature=stage.section.sampling.temperature)
        assert torch.equal(r.batch.to_rows(logprobs), r.old_logprobs)
        output = stage.forward_loss(stage.module, r, torch.tensor(float(r.batch.num_targets)))
        assert output.metrics["policy/ratio"].item() == pytest.approx(1.0, abs=1e-6)
        assert output.metrics["policy/approx_kl"].item() == output.metrics["policy/clip_fraction"].item() == 0.0
    network = AutoModelForCausalLM.from_pretrained(stage.policy.transformer.name_or_path)
    for prompt, group in zip(stage.engine.prompts[0], stage.engine.groups[0], strict=True):
        for completion in group:
            numbers = by_completion(rollouts)[(*prompt, -1, *completion.ids)]
            expected = plain_logprobs(network, prompt, completion.ids, 0.7)
            torch.testing.assert_close(numbers["old_logprobs"], expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(expected, plain_logprobs(network, prompt, completion.ids, 1.0), atol=1e-2)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [({"top_k": 50}, "top_k: 0"), ({"top_p": 0.9}, "top_p: 1.0"), ({"temperature": 0.0}, "must be positive")],
)
def test_04_truncated_sampling_is_refused(
    sampling: dict[str, Any], message: str, ragged: Callable[..., TrainRecipe]
) -> None:
    with pytest.raises(ValidationError, match=message):
        ragged(ppo={"sampling": sampling})
    ragged(ppo={"sampling": {"top_k": 0, "top_p": 1.0, "temperature": 0.7}})


def test_05_the_scorer_sees_the_text_cut_at_the_stop_token(ragged: Callable[..., TrainRecipe]) -> None:
    SEEN.clear()
    stage = stage_of(ragged(ppo={"rewards": [{"callable": f"{__name__}:spy"}]}))
    rollouts = iteration(stage)
    completions = both_kinds(rollouts, stage)
    tokenizer = tiny_tokenizer()
    assert [text for _, text in SEEN] == [c.text for c in completions]
    for completion in completions:
        assert EOS not in completion.ids[:-1]
        assert completion.ended == (completion.ids[-1] == EOS)
        assert completion.text == tokenizer.decode([i for i in completion.ids if i != EOS], skip_special_tokens=True)
    assert "<|im_end|>" not in "".join(text for _, text in SEEN)
    prompts = [p.text for p in stage._prompts_of(0) for _ in range(2)]
    assert [prompt for prompt, _ in SEEN] == prompts


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("mode", ["replace", "penalty"])
def test_06_missing_eos(mode: str, center: bool, ragged: Callable[..., TrainRecipe]) -> None:
    section = {"missing_eos": {"mode": mode, "value": -3.5}, "center_rewards": center}
    stage = stage_of(ragged(ppo=section))
    rollouts = iteration(stage)
    completions = both_kinds(rollouts, stage)
    raw = [sum(ch.isalpha() for ch in c.text) - (stage.reward_offset or 0.0) for c in completions]
    unfinished = [-3.5 if mode == "replace" else r - 3.5 for r in raw]
    expected = [r if c.ended else u for r, u, c in zip(raw, unfinished, completions, strict=True)]
    assert torch.cat([r.scores for r in rollouts]).tolist() == pytest.approx(expected, abs=1e-6)
    assert stage.metrics["score"] == pytest.approx(
        sum(raw) / 8 + (stage.reward_offset or 0.0)
    )  # logged as it was given


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
        assert rollout.returns[m].tolist()[: last + 1] == pytest.approx(expected, abs=1e-5)
        assert not rollout.returns[m, last + 1 :].any()


@pytest.mark.parametrize("width", [512, 2048])
def test_08_the_reward_heads_start(width: int) -> None:
    """N(0, 1/sqrt(d + 1)), bias 0, read at the last real token."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=11, hidden_size=width, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=4, num_key_value_heads=4)  # fmt: skip
    model = ScalarModel(AutoModel.from_config(config), pad_token_id=2)
    weight = model.head.weight.detach()
    assert model.head.bias.item() == 0.0
    assert weight.std().item() == pytest.approx((width + 1) ** -0.5, rel=0.1)
    assert abs(weight.mean().item()) < 4 * (width + 1) ** -0.5 / width**0.5
    rows = [[3, 4, 5, 2], [6, 7], [8, 2, 2]]  # 2 is EOS and padding alike
    with torch.no_grad():
        alone = [
            float(model.head(model.transformer(torch.tensor([[1, 9, *row]])).last_hidden_state[0, -1])) for row in rows
        ]
        for segments in (True, False):
            model.segments = segments
            scores = model(collate([Segment([1, 9], rows)]))
            assert scores.tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_09_the_value_model_starts_as_the_reward_model(
    lora: Any, recipe_of: Recipes, model_folder: Folders, reward_model: Callable[[], str]
) -> None:
    folder = reward_model()
    rewards = [LETTERS, {"model": folder}]
    stage = stage_of(recipe_of("ppo", model_folder("llama"), ppo={"rewards": rewards}, lora=lora))
    rollouts = iteration(stage)
    theirs = load_scalar_model(ModelSection(name_or_path=folder))
    for r in rollouts:
        with torch.no_grad():
            values = r.batch.to_rows(theirs(r.batch, per_token=True))
        torch.testing.assert_close(r.old_values, values, rtol=1e-6, atol=1e-6)
        assert r.old_values[r.batch.mask].abs().min() > 0
    assert torch.equal(stage.value_model.head.weight, theirs.head.weight)


def test_10_rewards_are_centred_on_what_the_starting_policy_writes(ragged: Callable[..., TrainRecipe]) -> None:
    recipe = ragged(checkpoint={"save_steps": 1}, training={"max_steps": 2})
    stage = stage_of(recipe)
    assert stage.reward_offset is None
    rollouts = iteration(stage)
    offset = stage.reward_offset
    assert offset == pytest.approx(stage.metrics["score"]) and offset > 0
    assert torch.cat([r.scores for r in rollouts]).mean().item() == pytest.approx(0.0, abs=1e-5)
    second = torch.cat([r.scores for r in iteration(stage, step=1)]).mean().item()
    assert stage.reward_offset == offset
    assert second == pytest.approx(stage.metrics["score"] - offset, abs=1e-5) and second != 0.0
    resumed = stage_of(recipe)
    resumed.load_state(json.loads(json.dumps(stage.state())))
    iteration(resumed, step=1)
    assert resumed.reward_offset == offset
    assert resumed.metrics == stage.metrics
    train(recipe)
    for step in (1, 2):
        state = json.loads((Path(recipe.output_dir) / f"checkpoints/step-{step:06d}/state.json").read_text())
        assert state["stage"]["reward_offset"] == pytest.approx(offset)
    plain = stage_of(ragged(ppo={"center_rewards": False}))
    assert torch.cat([r.scores for r in iteration(plain)]).mean().item() == pytest.approx(offset)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_11_dropout_is_off_everywhere(lora: Any, recipe_of: Recipes, model_folder: Folders) -> None:
    """GPT-2 is published with dropout 0.1; in train mode policy, value model and reference still repeat themselves."""
    config = GPT2Config.from_pretrained(model_folder("gpt2"))
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    noisy = AutoModelForCausalLM.from_pretrained(model_folder("gpt2")).train()
    ids = torch.arange(20)[None]
    assert not torch.equal(noisy(ids).logits, noisy(ids).logits)
    for batching in ("segments", "padded"):
        model = {"name_or_path": model_folder("gpt2"), "batching": batching}
        stage = stage_of(recipe_of("ppo", "", model=model, lora=lora))
        stage.module.train()
        batch = collate([Segment(range(10), [range(20, 30), range(40, 45)])])
        first, second = (stage.module(batch, temperature=1.0) for _ in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
        assert torch.equal(stage.reference(batch), stage.reference(batch))


def test_11_dropout_in_a_recipes_adapters_is_refused(ragged: Callable[..., TrainRecipe]) -> None:
    with pytest.raises(ValidationError, match="lora_dropout must be 0 in PPO"):
        ragged(lora={"r": 4, "lora_dropout": 0.1})


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
        torch.testing.assert_close(rollout.returns[m, : len(ids)], expected, rtol=1e-4, atol=2e-5)
        kls.append(float(kl.sum()))
    assert stage.metrics["kl"] == pytest.approx(sum(kls) / len(kls), abs=1e-4) and abs(stage.metrics["kl"]) > 0.01
    objective = rollout.scores.mean().item() - 0.3 * stage.metrics["kl"]
    assert stage.metrics["objective"] == pytest.approx(objective, abs=1e-4)


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
    assert all(not r.advantages[~r.batch.mask].any() for r in white)

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


def test_14_value_clipping_takes_half_the_larger_error(ragged: Callable[..., TrainRecipe]) -> None:
    stage = stage_of(ragged(ppo={"cliprange_value": 0.15, "cliprange": 0.1, "vf_coef": 0.7}))
    [r] = iteration(stage)
    generator = torch.Generator().manual_seed(0)
    mask = r.batch.mask
    logprobs, values = (
        old[mask] + 0.3 * torch.randn(int(mask.sum()), generator=generator) for old in (r.old_logprobs, r.old_values)
    )
    n = r.batch.num_targets
    output: LossOutput = stage.forward_loss(lambda *_, **__: (logprobs, values), r, torch.tensor(float(n)))
    old, returns, advantages = r.old_values[mask], r.returns[mask], r.advantages[mask]
    clipped = torch.maximum(torch.minimum(values, old + 0.15), old - 0.15)
    value = 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).sum() / n
    ratio = (logprobs - r.old_logprobs[mask]).exp()
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


def test_16_every_rank_and_iteration_draws_with_a_seed_of_its_own(ragged: Callable[..., TrainRecipe]) -> None:
    stage = stage_of(ragged())
    for step in range(3):
        iteration(stage, step)
    assert stage.engine.seeds == [stage._sampling_seed(step) for step in range(3)]
    seeds, shares = set(), []
    for rank in range(4):
        stage.accelerator = SimpleNamespace(process_index=rank, num_processes=4)
        seeds |= {stage._sampling_seed(step) for step in range(5)}
        shares.append([p.text for p in stage._prompts_of(0)])
    assert len(seeds) == 20
    assert all(len(share) == 1 for share in shares) and len({share[0] for share in shares}) == 4  # no prompt twice
    other = stage_of(ragged(seed=1))
    assert other._sampling_seed(0) not in seeds


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


def test_18_eos_is_never_suppressed(ragged: Callable[..., TrainRecipe]) -> None:
    """A policy that wants to stop at once does, and that one action is trained."""
    stage = stage_of(ragged(logit=40.0, ppo={"sampling": {"max_new_tokens": 6}, "missing_eos": {"value": -9.0}}))
    rollouts = iteration(stage)
    assert all(c.ids == [EOS] and c.ended and c.text == "" for group in stage.engine.groups[0] for c in group)
    assert stage.metrics["eos_rate"] == stage.metrics["length"] == 1.0
    assert stage.metrics["score"] == 0.0
    assert torch.cat([r.old_logprobs.flatten() for r in rollouts]).abs().max() < 1e-6
    stage.module.zero_grad()
    stage.value_model.head.bias.data += 1.0  # an error for the value model to learn from
    stage.forward_loss(stage.module, iteration(stage, 1)[0], torch.tensor(8.0)).loss.backward()
    assert stage.value_model.head.weight.grad.abs().sum() > 0


# --- What TRL's last PPOTrainer got wrong ---------------------------------------------------------------------------


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
    assert [len(window) for window in updates] == [microbatches // minibatches] * (epochs * minibatches)
    for epoch in range(epochs):  # every sample once an epoch
        windows = updates[epoch * minibatches : (epoch + 1) * minibatches]
        assert len({id(m.batch) for window in windows for m in window}) == microbatches


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


@BATCHINGS
def test_an_eos_inside_a_chat_prompt_stays_in_the_prompt(batching: str, ragged: Callable[..., TrainRecipe]) -> None:
    """Every ChatML turn ends with EOS, which is also the pad token."""
    recipe = ragged(model={"batching": batching})
    chat = recipe.data.model_copy(update={"template": recipe.data.template.model_copy(update={"kind": "chat"})})
    stage = stage_of(recipe.model_copy(update={"data": chat}))
    [rollout] = iteration(stage)
    both_kinds([rollout], stage)
    network = AutoModelForCausalLM.from_pretrained(stage.policy.transformer.name_or_path)
    tokenizer = tiny_tokenizer()
    for prompt, text in zip(stage.engine.prompts[0], [p.text for p in stage._prompts_of(0)], strict=True):
        turn = [{"role": "user", "content": text}]
        assert prompt == tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
        assert prompt.count(EOS) == 1
    found = by_completion([rollout])
    for prompt, group in zip(stage.engine.prompts[0], stage.engine.groups[0], strict=True):
        for completion in group:
            ours = found[(*prompt, -1, *completion.ids)]["old_logprobs"]
            torch.testing.assert_close(ours, plain_logprobs(network, prompt, completion.ids, 1.0), rtol=1e-4, atol=1e-5)


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
        assert torch.equal(r.batch.to_rows(logprobs), r.old_logprobs)
        assert torch.equal(r.batch.to_rows(values), r.old_values)


def test_bf16_acts_and_master_weights_stay_float32(ragged: Callable[..., TrainRecipe]) -> None:
    exact, rounded = (iteration(stage_of(ragged(training={"bf16": b})))[0] for b in (False, True))
    ours, theirs = by_completion([rounded]), by_completion([exact])
    both = ours.keys() & theirs.keys()
    assert both
    assert any(not torch.equal(ours[k]["old_logprobs"], theirs[k]["old_logprobs"]) for k in both)
    for key in both:
        torch.testing.assert_close(ours[key]["old_logprobs"], theirs[key]["old_logprobs"], rtol=0.05, atol=0.1)
    stage = stage_of(ragged(training={"bf16": True}))
    assert {p.dtype for p in stage.module.parameters()} == {torch.float32}


def test_the_models_own_generation_config_does_not_leak(
    ragged: Callable[..., TrainRecipe], recipe_of: Recipes, tmp_path: Path
) -> None:
    recipe = ragged()
    network = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path)
    network.generation_config = GenerationConfig(
        do_sample=True, repetition_penalty=3.0, min_p=0.2, no_repeat_ngram_size=1, top_k=2, top_p=0.3, temperature=0.1,
        max_new_tokens=1, suppress_tokens=[EOS], eos_token_id=EOS,
    )  # fmt: skip
    network.save_pretrained(tmp_path / "opinionated")
    tiny_tokenizer().save_pretrained(tmp_path / "opinionated")
    leaky = recipe.model_copy(update={"model": ModelSection(name_or_path=str(tmp_path / "opinionated"))})
    stages = [stage_of(r) for r in (recipe, leaky)]
    assert stages[1].policy.transformer.generation_config.repetition_penalty == 3.0
    rollouts = [iteration(stage) for stage in stages]
    assert stages[0].engine.groups == stages[1].engine.groups
    assert stages[0].metrics == stages[1].metrics
    assert_same_experience(*rollouts)


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
        assert stage.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    count = torch.tensor(float(sum(stage.count(r) for r in rollouts)))
    assert count == sum(len(c.ids) for c in completions)
    perturb(stage.module, 0.02)
    outputs = [stage.forward_loss(stage.module, r, count).metrics for r in rollouts]
    log_ratio = torch.cat([plain_logprobs(stage.policy.transformer, p, i, 1.0) for p, i in rows]) - torch.cat(own)
    ratio = float(sum(o["policy/ratio"] for o in outputs))
    approx_kl = float(sum(o["policy/approx_kl"] for o in outputs))
    assert ratio == pytest.approx(float(log_ratio.exp().mean()), rel=1e-4)
    assert approx_kl == pytest.approx(float((0.5 * log_ratio**2).mean()), rel=1e-3)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_the_value_model_is_in_the_checkpoint(lora: Any, ragged: Callable[..., TrainRecipe]) -> None:
    recipe = ragged(lora=lora, checkpoint={"save_steps": 2}, training={"max_steps": 2})
    train(recipe)
    folder = Path(recipe.output_dir) / "checkpoints/step-000002"
    saved = load_file(folder / "model.safetensors")
    stage = stage_of(recipe)
    trains = {n for n, p in stage.module.named_parameters() if p.requires_grad}
    assert saved.keys() == trains
    assert {"value_model.head.weight", "value_model.head.bias"} <= saved.keys()
    assert any(re.match(r"value_model\.model\..*q_proj", n) for n in saved)
    moments = {n.rsplit("/", 1)[0] for n in load_file(folder / "optimizer.safetensors")}
    assert {n for n in moments if n.startswith("value_model.")} == {n for n in trains if n.startswith("value_model.")}
    start = dict(stage.module.named_parameters())
    assert not torch.equal(saved["value_model.head.weight"], start["value_model.head.weight"])


def test_a_callable_is_a_reward_and_several_add_up_by_weight(
    recipe_of: Recipes, model_folder: Folders, reward_model: Callable[[], str]
) -> None:
    folder = reward_model()
    rewards = [LETTERS | {"weight": 0.5}, {"callable": f"{__name__}:count_spaces", "weight": -2.0},
               {"model": folder, "name": "liking", "weight": 3.0}]  # fmt: skip
    ppo = {"rewards": rewards, "center_rewards": False}
    stage = stage_of(recipe_of("ppo", model_folder("llama"), ppo=ppo, training={"per_device_train_batch_size": 8}))
    [rollout] = iteration(stage)
    model = load_scalar_model(ModelSection(name_or_path=folder))
    parts: dict[str, list[float]] = {"count_letters": [], "count_spaces": [], "liking": []}
    for prompt, group in zip(stage.engine.prompts[0], stage.engine.groups[0], strict=True):
        for completion in group:
            parts["count_letters"].append(sum(ch.isalpha() for ch in completion.text))
            parts["count_spaces"].append(completion.text.count(" "))
            parts["liking"].append(model(collate([Segment(prompt, [completion.ids])])).item())
    weights = {"count_letters": 0.5, "count_spaces": -2.0, "liking": 3.0}
    total = [sum(w * parts[name][i] for name, w in weights.items()) for i in range(8)]
    assert rollout.scores.tolist() == pytest.approx(total, rel=1e-5, abs=1e-5)
    assert stage.metrics["score"] == pytest.approx(sum(total) / 8, rel=1e-5)
    for name, values in parts.items():
        assert stage.metrics[f"score/{name}"] == pytest.approx(sum(values) / 8, rel=1e-5)


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


def test_the_reference_may_be_another_model(ragged: Callable[..., TrainRecipe], ending: Callable[..., str]) -> None:
    for lora in (None, {"r": 4}):
        stage = stage_of(ragged(lora=lora, ppo={"reference": ending(8.0)}))
        rollouts = iteration(stage)
        other = load_policy(ModelSection(name_or_path=ending(8.0)))
        for r in rollouts:
            with torch.no_grad():
                assert torch.equal(r.batch.to_rows(other(r.batch)), r.ref_logprobs)
        assert stage.metrics["kl"] > 0.05
        trains = [n for n, p in stage.module.named_parameters() if p.requires_grad]
        assert trains and not any(p.requires_grad for p in stage.reference._policy.parameters())


def test_the_initial_reference_does_not_follow_the_policy(ragged: Callable[..., TrainRecipe]) -> None:
    for lora in (None, {"r": 4}):
        stage = stage_of(ragged(lora=lora))
        batch = collate([Segment([3, 4, 5], [[6, 7, 8], [9, EOS]])])
        policy, reference = stage.policy(batch).detach(), stage.reference(batch)
        assert torch.equal(policy, reference)
        with torch.no_grad():
            for parameter in stage.policy.parameters():
                if parameter.requires_grad:
                    parameter += 0.05
        assert torch.equal(stage.reference(batch), reference)
        assert (stage.policy(batch) - policy).abs().max() > 1e-3


def test_the_value_model_may_be_given(
    recipe_of: Recipes, model_folder: Folders, reward_model: Callable[[], str]
) -> None:
    """`ppo.value_model` wins over the reward model; without either it is the policy's own base under a fresh head."""
    folder = reward_model()
    plain = stage_of(recipe_of("ppo", model_folder("llama")))
    given = stage_of(recipe_of("ppo", model_folder("llama"), ppo={"value_model": folder}))
    over = stage_of(
        recipe_of(
            "ppo", model_folder("llama"), ppo={"rewards": [{"model": folder}], "value_model": model_folder("qwen2")}
        )
    )
    saved = load_file(Path(folder) / "head.safetensors")
    assert torch.equal(given.value_model.head.weight, saved["weight"])
    assert not torch.equal(plain.value_model.head.weight, saved["weight"])
    base = AutoModel.from_pretrained(model_folder("llama")).state_dict()
    assert all(torch.equal(v, base[n]) for n, v in plain.value_model.transformer.state_dict().items())
    assert type(over.value_model.transformer).__name__ == "Qwen2Model"
    assert not torch.equal(over.value_model.head.weight, saved["weight"])
    for stage in (plain, given, over):
        assert all(torch.isfinite(r.old_values).all() for r in iteration(stage))


def test_policy_and_value_model_share_no_weights(ragged: Callable[..., TrainRecipe]) -> None:
    """The value loss alone moves the value model alone, the policy loss the policy alone."""
    for lora in (None, {"r": 4}):
        stage = stage_of(ragged(lora=lora))
        batch = collate([Segment([3, 4, 5], [[6, 7, 8], [9, EOS]])])
        for index, name in enumerate(("policy", "value_model")):
            stage.module.zero_grad(set_to_none=True)
            stage.module(batch, temperature=1.0)[index].pow(2).sum().backward()
            moved = {n.split(".")[0] for n, p in stage.module.named_parameters() if p.grad is not None and p.grad.any()}
            assert moved == {name}


def test_experience_takes_hand_made_samples(ragged: Callable[..., TrainRecipe]) -> None:
    """`experience` needs no engine: groups of any provenance, a microbatch at a time, in order."""
    stage = stage_of(ragged())
    prompts = [Prompt("a", [3, 4]), Prompt("b", [5])]
    groups = [[Completion([6, EOS], "x", True), Completion([7, 8, 9], "y", False)],
              [Completion([EOS], "", True), Completion([6, 6, 6, EOS], "z", True)]]  # fmt: skip
    scorer = Scorer("length", 1.0, lambda samples: [float(len(s.completion.ids)) for s in samples])
    scores = torch.tensor(
        scorer.score([Sample(p.text, p.ids, c) for p, g in zip(prompts, groups, strict=True) for c in g])
    )
    options: dict[str, Any] = {"section": stage.section, "policy": stage.policy, "reference": stage.reference,
                               "value_model": stage.value_model, "kl_coef": 0.1, "reduce": lambda x: x}  # fmt: skip
    together = experience(prompts, groups, scores, batch_size=2, **options)
    apart = experience(prompts, groups, scores, batch_size=1, **options)
    assert [len(r.scores) for r in together] == [4] and [len(r.scores) for r in apart] == [2, 2]
    assert together[0].scores.tolist() == [2.0, 3.0, 1.0, 4.0]
    assert_same_experience(together, apart)
