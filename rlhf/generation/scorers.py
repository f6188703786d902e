"""Scorers: a reward model's folder, or any Python callable. Their users see no difference."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.errors import RecipeError, RlhfError
from rlhf.generation.reward_scorer import RewardScorer, Sample, load_reward_model
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.callables import describe, import_callable
from rlhf.recipe.sections import ScorerSection

KEYWORDS = ("prompts", "completions", "completion_ids")  # the arguments of a function in TRL's form


@dataclass(frozen=True)
class Scorer:
    """`score(samples)` gives one finite number for each sample; higher is better."""

    name: str
    weight: float
    score: Callable[[Sequence[Sample]], list[float]]


def load_scorers(
    sections: Sequence[ScorerSection],
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[str], ScalarModel] = load_reward_model,
) -> list[Scorer]:
    """The scorers of a recipe; `load` gives a reward model by its name.

    Raises RecipeError for a scorer that cannot be loaded, and for a name that two scorers have.
    """
    names = [section.label for section in sections]
    if len(set(names)) != len(names):
        raise RecipeError(f"scorers: names must differ, got {', '.join(names)}; set name:")
    scorers = []
    for section in sections:
        if section.callable is not None:
            score = _callable(section.callable)
        else:
            assert section.model is not None
            score = RewardScorer(section, tokenizer, load(section.model))
        scorers.append(Scorer(section.label, section.weight, score))
    return scorers


def total_scores(scorers: Sequence[Scorer], samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted sum of all scorers for each sample, and each scorer's own scores."""
    parts = {scorer.name: scorer.score(samples) if samples else [] for scorer in scorers}
    for name, scores in parts.items():
        if len(scores) != len(samples):
            raise RlhfError(f"{name} returned {len(scores)} scores for {len(samples)} completions")
        if bad := [i for i, score in enumerate(scores) if not math.isfinite(score)]:
            raise RlhfError(f"{name} returned {scores[bad[0]]} for the completion {samples[bad[0]].completion.text!r}")
    total = [sum(s.weight * parts[s.name][i] for s in scorers) for i in range(len(samples))]
    return total, parts


def _callable(spec: str) -> Callable[[Sequence[Sample]], list[float]]:
    """A function in our form, `f(prompts, completions)`, or in TRL's, `f(completions, **columns)`, which gets keywords."""
    function = import_callable(spec)
    keywords = _keywords(spec, function)

    def score(samples: Sequence[Sample]) -> list[float]:
        columns: dict[str, list[Any]] = {
            "prompts": [s.prompt for s in samples],
            "completions": [s.completion.text for s in samples],
            "completion_ids": [list(s.completion.ids) for s in samples],
        }
        try:
            if keywords is None:
                scores = function(columns["prompts"], columns["completions"])
            else:
                scores = function(**{name: columns[name] for name in keywords})
        except Exception as error:  # a user's own code may raise anything
            raise RlhfError(f"{spec} failed on {len(samples)} completions: {describe(error)}") from error
        try:
            return [float(score) for score in scores]
        except (TypeError, ValueError) as error:
            raise RlhfError(f"{spec} must return one number for each completion: {error}") from error

    return score


def _keywords(spec: str, function: Callable[..., Any]) -> list[str] | None:
    """The keywords that a function in TRL's form takes; None for a function in our form, which is called by position.

    Raises RecipeError for a parameter that has no default and is not in `KEYWORDS`.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a built-in without a signature
        return None
    if inspect.iscoroutinefunction(function):
        raise RecipeError(f"callable: {spec} is async; write a plain function")
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if "completions" not in named or next(iter(named)) not in KEYWORDS:
        return None
    needed = [name for name, p in named.items() if p.default is p.empty and name not in KEYWORDS]
    if needed:
        raise RecipeError(
            f"callable: {spec} needs {', '.join(needed)}; a reward function is given {', '.join(KEYWORDS)} and no other "
            "column of the rows. Give it a default value, or compute what it needs from the prompt"
        )
    return [name for name in KEYWORDS if name in named or any(p.kind is p.VAR_KEYWORD for p in parameters)]
