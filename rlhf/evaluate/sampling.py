"""Each model's answers to the held-out prompts, and how far it is from the reference there (KL).

All models answer the same prompts with the same random numbers, so two models can be compared answer by answer. The reference
stays loaded, and one other model beside it: never more than two at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedTokenizerBase

from rlhf.display.progress import ProgressBar, say
from rlhf.evaluate.preferences import Pairs, load_pairs
from rlhf.generation.context import check_context, config_context
from rlhf.generation.engine import Completion, Engine
from rlhf.generation.in_process import InProcessEngine, context_length
from rlhf.generation.reward_scorer import Sample
from rlhf.models.lineage import quantization_beside
from rlhf.models.load import load_policy
from rlhf.models.policy import Policy
from rlhf.recipe.schema import EvalModel, EvalRecipe
from rlhf.recipe.sections import StoredModelSection
from rlhf.tokens.recipe_rows import sampling_prompts
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.store import Prompts
from rlhf.tokens.tokenizer import load_tokenizer

BATCH = 16  # prompts a forward pass


@dataclass(frozen=True)
class Answers:
    """One model's answers: P prompts, n samples each. Their ids are tokens of the reference."""

    model: EvalModel
    samples: list[list[Sample]]  # [P][n]
    kl: NDArray[np.float64] | None  # [P, n]: nats; None if it is not defined
    preferred: NDArray[np.float64] | None  # [pairs, 2]: log(pi / pi_ref) of chosen and rejected
    seconds: float
    tokens: int
    notes: tuple[str, ...] = ()

    @property
    def flat(self) -> list[Sample]:
        """[P * n]."""
        return [sample for group in self.samples for sample in group]

    def per_sample(self, value: Callable[[Sample], float]) -> NDArray[np.float64]:
        """One number for each sample, [P, n]."""
        return np.asarray([[value(sample) for sample in group] for group in self.samples], dtype=np.float64)


@dataclass(frozen=True)
class Reference:
    """The first model of the recipe. It stays loaded while the others are loaded one after another."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    pairs: Pairs | None
    pair_logprobs: NDArray[np.float64] | None  # [pairs, 2]


def load_reference(recipe: EvalRecipe, device: str, console: Console) -> Reference:
    """The reference, with the prompts and pairs in its tokens. Raises DataError, RecipeError."""
    name_or_path = recipe.models[0].name_or_path
    tokenizer = load_tokenizer(name_or_path)
    prompts = sampling_prompts(recipe, tokenizer)
    longest = max(len(prompt.ids) for prompt in prompts)
    for model in recipe.models:  # before any of them is loaded
        context = config_context(model.name_or_path)
        check_context(longest, recipe.sampling.max_new_tokens, context, model.name)
    say(console, f"loading {recipe.models[0].name}")
    policy = _load(name_or_path, recipe, device)
    pairs = None
    if recipe.preferences:
        pairs = load_pairs(
            recipe.preferences, tokenizer, recipe.template, context_length(policy.transformer), seed=recipe.seed
        )
    logprobs = None
    if pairs is not None and len(recipe.models) > 1:
        say(console, f"{recipe.models[0].name}: log-probabilities of {len(pairs.segments)} held-out pairs")
        logprobs = completion_logprobs(policy, pairs.segments).reshape(-1, 2)
    return Reference(policy, tokenizer, prompts, pairs, logprobs)


def answers(recipe: EvalRecipe, reference: Reference, device: str, console: Console) -> Iterator[Answers]:
    """Every model's answers in the recipe's order, the reference first. A model is freed after its answers."""
    for model in recipe.models:
        yield _answer(model, recipe, reference, device, console)


def _answer(model: EvalModel, recipe: EvalRecipe, reference: Reference, device: str, console: Console) -> Answers:
    itself = model is recipe.models[0]
    if not itself:
        say(console, f"loading {model.name}")
    policy = reference.policy if itself else _load(model.name_or_path, recipe, device)
    tokenizer = reference.tokenizer if itself else load_tokenizer(model.name_or_path)
    same_tokens = itself or tokenizer.get_vocab() == reference.tokenizer.get_vocab()
    prompts = reference.prompts if same_tokens else sampling_prompts(recipe, tokenizer)
    engine: Engine = InProcessEngine(policy, tokenizer)
    began = time.perf_counter()
    with ProgressBar(f"sampling {escape(model.name)}", len(prompts) * recipe.sampling.n, console) as bar:
        groups = engine.generate(
            [prompt.ids for prompt in prompts], recipe.sampling, seed=recipe.seed, progress=bar.advance
        )
    seconds = time.perf_counter() - began
    tokens = sum(len(completion.ids) for group in groups for completion in group)
    if not same_tokens:
        groups = [[_in_tokens_of(reference.tokenizer, completion) for completion in group] for group in groups]
    samples = [
        [Sample(prompt.text, prompt.ids, completion, prompt.columns) for completion in group]
        for prompt, group in zip(reference.prompts, groups, strict=True)
    ]
    kl, preferred = None, None
    notes = _undefined_kl(recipe, model.name, same_tokens)
    if not notes and itself:
        kl = np.zeros((len(samples), recipe.sampling.n))
    elif not notes:
        say(console, f"{model.name}: KL to {recipe.models[0].name}")
        kl = sampled_kl(policy, reference.policy, samples, recipe.sampling.temperature)
    if reference.pair_logprobs is not None and reference.pairs is not None and same_tokens and not itself:
        say(console, f"{model.name}: log-probabilities of {len(reference.pairs.segments)} held-out pairs")
        own = completion_logprobs(policy, reference.pairs.segments).reshape(-1, 2)
        preferred = own - reference.pair_logprobs
    return Answers(model, samples, kl, preferred, seconds, tokens, notes)


def sampled_kl(
    policy: Policy, reference: Policy, samples: Sequence[Sequence[Sample]], temperature: float
) -> NDArray[np.float64]:
    """log pi(y|x) - log pi_ref(y|x) of the policy's own samples, at the temperature of their sampling, [P, n] in nats.

    The mean over samples is an unbiased estimate of KL(pi || pi_ref) per completion; single entries may be negative. Both models
    run exactly the same batches, so a model's KL to itself is exactly zero.
    """
    segments = [Segment(group[0].prompt_ids, [s.completion.ids for s in group]) for group in samples]
    own = completion_logprobs(policy, segments, temperature)
    return (own - completion_logprobs(reference, segments, temperature)).reshape(len(samples), -1)


@torch.no_grad()
def completion_logprobs(policy: Policy, segments: Sequence[Segment], temperature: float = 1.0) -> NDArray[np.float64]:
    """log pi(y|x) of every completion, [M], summed over its tokens in float64."""
    device = policy.transformer.device
    sums = []
    for start in range(0, len(segments), BATCH):
        batch = collate(segments[start : start + BATCH]).to(device)
        sums.append(batch.sum_rows(policy(batch, temperature=temperature).double()).cpu().numpy())
    return np.concatenate(sums)


def _load(name_or_path: str, recipe: EvalRecipe, device: str) -> Policy:
    section = StoredModelSection(name_or_path=name_or_path, dtype=recipe.dtype)
    quantization = quantization_beside(name_or_path, recipe.quantization)
    policy = load_policy(section, quantization=quantization, device=device)
    return policy.eval().requires_grad_(False)


def _undefined_kl(recipe: EvalRecipe, name: str, same_tokens: bool) -> tuple[str, ...]:
    if not same_tokens:
        return (f"KL of {name} to {recipe.models[0].name} is not defined: their vocabularies differ.",)
    if recipe.sampling.temperature == 0:
        return (
            f"KL of {name} is not estimated: its samples are greedy (temperature 0), not drawn from its distribution.",
        )
    return ()


def _in_tokens_of(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> Completion:
    """The same text in the reference's tokens, so that lengths are comparable and reward models can read it."""
    ids = list(tokenizer(completion.text, add_special_tokens=False).input_ids)
    if completion.ended or not ids:
        ids.append(int(tokenizer.eos_token_id))
    return Completion(ids, completion.text, completion.ended)
