"""Scorers: a reward model's folder, several of them, any Python callable, or a server. Their users see no difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.errors import RecipeError, RlhfError
from rlhf.generation.ensemble import Ensemble
from rlhf.generation.reward_scorer import RewardScorer, Sample, load_reward_model
from rlhf.generation.reward_server import RewardServer
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.arguments import imported_arguments
from rlhf.recipe.callables import describe, import_callable
from rlhf.recipe.scorers import GIVEN, ScorerSection

Score = Callable[[Sequence[Sample]], Sequence[float | None]]


@dataclass(frozen=True)
class Scorer:
    """`score(samples)` gives one finite number for each sample; higher is better. None: the scorer does not apply to it."""

    name: str
    weight: float
    score: Score


def load_scorers(
    sections: Sequence[ScorerSection],
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[str], ScalarModel] = load_reward_model,
    columns: Collection[str] = (),
) -> list[Scorer]:
    """The scorers of a recipe; `load` gives a reward model by its name, `columns` are those that come with the samples.

    Raises RecipeError for a scorer that cannot be loaded or called, and for a name that two scorers have.
    """
    names = [section.label for section in sections]
    names += [f"{section.label}_spread" for section in sections if section.models is not None]
    if len(set(names)) != len(names):
        raise RecipeError(f"scorers: names must differ, got {', '.join(names)}; set name:")
    return [Scorer(s.label, s.weight, _score_of(s, tokenizer, load, columns)) for s in sections]


def total_scores(
    scorers: Sequence[Scorer], samples: Sequence[Sample]
) -> tuple[list[float], dict[str, list[float | None]]]:
    """The weighted sum of the scorers that apply to each sample; and each scorer's own scores, and how far an ensemble's members
    are apart (`NAME_spread`).

    Raises RlhfError for scores that are not one finite number a sample, and for a sample to which no scorer applies.
    """
    parts: dict[str, list[float | None]] = {}
    for scorer in scorers:
        given: Sequence[float | None]
        if isinstance(scorer.score, Ensemble):
            each = scorer.score.each(samples)
            given, parts[f"{scorer.name}_spread"] = scorer.score.combined(each), list(scorer.score.spread(each))
        else:
            given = scorer.score(samples) if samples else []
        parts[scorer.name] = checked(scorer.name, given, samples)
    own = [(scorer.weight, parts[scorer.name]) for scorer in scorers]
    total = [sum(weight * s for weight, scores in own if (s := scores[i]) is not None) for i in range(len(samples))]
    for i, sample in enumerate(samples if scorers else ()):
        if all(scores[i] is None for _, scores in own):
            raise RlhfError(
                f"no reward applies to the completion {sample.completion.text!r} of the prompt {sample.prompt!r}: "
                f"{', '.join(s.name for s in scorers)} returned None. Give every prompt a reward that applies to it"
            )
    return total, parts


def mean_of(scores: Sequence[float | None]) -> tuple[float, float]:
    """The mean of the scores that there are, and their share; 0 of none."""
    found = [score for score in scores if score is not None]
    return sum(found) / max(len(found), 1), len(found) / max(len(scores), 1)


def checked(name: str, scores: Sequence[float | None], samples: Sequence[Sample]) -> list[float | None]:
    """The scores, one for each sample, all of them finite. Raises RlhfError."""
    if len(scores) != len(samples):
        raise RlhfError(f"{name} returned {len(scores)} scores for {len(samples)} completions")
    for score, sample in zip(scores, samples, strict=True):
        if score is not None and not math.isfinite(score):
            raise RlhfError(f"{name} returned {score} for the completion {sample.completion.text!r}")
    return list(scores)


def _score_of(
    section: ScorerSection,
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[str], ScalarModel],
    columns: Collection[str],
) -> Score:
    if section.callable is not None:
        return _callable(section, columns)
    if section.url is not None:
        return RewardServer(section)
    one = [section.model_copy(update={"model": name, "models": None}) for name in section.reward_models]
    members = [RewardScorer(s, tokenizer, load(s.model or "")) for s in one]
    return members[0] if section.models is None else Ensemble(section, members)


def _callable(section: ScorerSection, columns: Collection[str]) -> Score:
    """A function, called as its parameters say (`recipe.arguments`)."""
    spec = section.callable or ""
    function, arguments = import_callable(spec), imported_arguments(spec, section.kwargs)
    if missing := [name for name in arguments.needed if name not in columns]:
        raise RecipeError(
            f"callable: {spec} needs {', '.join(missing)}; a reward function is given {', '.join(GIVEN)}, and here no such "
            "column of the rows. Give it a default value, or compute what it needs from the prompt"
        )

    def score(samples: Sequence[Sample]) -> list[float | None]:
        given: dict[str, list[Any]] = {
            "prompts": [s.prompt for s in samples],
            "completions": [s.completion.text for s in samples],
            "completion_ids": [list(s.completion.ids) for s in samples],
            "ended": [s.completion.ended for s in samples],
        }
        first = (given["prompts"], given["completions"]) if arguments.by_position else ()
        named = {name: given[name] for name in arguments.given}
        named |= {name: [s.columns.get(name) for s in samples] for name in arguments.columns(columns)}
        try:
            scores = function(*first, **named, **arguments.settings)
        except Exception as error:  # a user's own code may raise anything
            raise RlhfError(f"{spec} failed on {len(samples)} completions: {describe(error)}") from error
        try:
            return [None if score is None else float(score) for score in scores]
        except (TypeError, ValueError) as error:
            raise RlhfError(f"{spec} must return one number for each completion, or None: {error}") from error

    return score
