"""What the tests of PPO share: a stage as `train` builds it, its rollouts, and their numbers one completion at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.generation.engine import Completion
from rlhf.recipe.online import OnlineRecipe
from rlhf.recipe.training import TrainRecipe
from rlhf.runs.start import imported
from rlhf.tokens.recipe_rows import given_rows, training_rows
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.ppo import Ppo
from rlhf.train.rollout import Experience
from rlhf.train.run import make_accelerator
from rlhf.train.setup import Setup
from tests.tiny import tiny_tokenizer

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
BATCHINGS = pytest.mark.parametrize("batching", ["segments", "padded"])
EOS = tiny_tokenizer().eos_token_id
LETTERS = {"callable": "tests.train.rewards:count_letters"}


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


def stage_of(recipe: TrainRecipe) -> Any:
    """The stage as `train` builds it, its engine under a recorder."""
    assert isinstance(recipe, OnlineRecipe)
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    rows, held_out = (training_rows(recipe, tokenizer, which) for which in ("train", "eval"))
    given = given_rows(recipe, tokenizer)
    stage = imported(recipe.stage)(
        recipe, Setup(recipe, make_accelerator(recipe), tokenizer, rows.items, held_out.items, given.items)
    )
    stage.engine = Recorder(stage.engine)
    stage.module.train()
    return stage


def iteration(stage: Ppo, step: int = 0) -> list[Experience]:
    """The rollouts of one iteration, each microbatch once (its first epoch); its metrics are left in `stage.measured`."""
    updates = list(stage.updates(step))
    stage.measured = dict(updates[0].metrics)  # type: ignore[attr-defined]
    return [m.batch for update in updates[: stage.section.num_mini_batches] for m in update.microbatches]


def tokens(rollouts: Iterable[Experience], name: str) -> Tensor:
    """One number a completion token, over all microbatches."""
    return torch.cat([getattr(r, name) for r in rollouts])


def by_completion(rollouts: Iterable[Experience]) -> dict[tuple[int, ...], dict[str, Tensor]]:
    """Each completion's own numbers by its prompt and ids, whatever microbatch it lay in."""
    found = {}
    for r in rollouts:
        for m, length in enumerate(r.batch.lengths.tolist()):
            ids = tuple(r.batch.to_rows(r.batch.targets)[m, :length].tolist())
            span = r.batch.spans[int(r.batch.segments[m])]
            prompt = tuple(r.batch.input_ids[span.start : span.start + span.prompt].tolist())
            names = ("old_logprobs", "ref_logprobs", "old_values", "advantages", "returns")
            own = r.batch.rows == m
            found[(*prompt, -1, *ids)] = {n: getattr(r, n)[own] for n in names} | {"scores": r.scores[m]}
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


def both_kinds(rollouts: Sequence[Experience], stage: Ppo) -> list[Completion]:
    """All completions; the test means nothing unless some ended early and some did not."""
    completions = [c for group in stage.engine.groups[-1] for c in group]
    assert {c.ended for c in completions} == {True, False}
    assert len({len(c.ids) for c in completions}) > 2
    return completions
