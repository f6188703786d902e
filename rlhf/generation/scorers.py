"""Scorers: a reward model's folder, or any Python callable. Their users see no difference."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.embedded import resolve
from rlhf.errors import RecipeError, RlhfError
from rlhf.generation.engine import Completion
from rlhf.models.lineage import saved_template
from rlhf.models.load import is_reward_model, load_scalar_model
from rlhf.recipe.callables import describe, import_callable
from rlhf.recipe.sections import ModelSection, ScorerSection, TemplateSection
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.template import Renderer
from rlhf.tokens.tokenizer import load_tokenizer

BATCH = 32  # completions in a forward pass of a reward model
KEYWORDS = ("prompts", "completions", "completion_ids")  # the arguments of a function in TRL's form


@dataclass(frozen=True)
class Sample:
    """One completion with its prompt, as text and as the ids that it was sampled from."""

    prompt: str
    prompt_ids: Sequence[int]
    completion: Completion


@dataclass(frozen=True)
class Scorer:
    """`score(samples)` gives one finite number for each sample; higher is better."""

    name: str
    weight: float
    score: Callable[[Sequence[Sample]], list[float]]


def load_scorers(
    sections: Sequence[ScorerSection], tokenizer: PreTrainedTokenizerBase, *, bf16: bool, device: torch.device | str
) -> list[Scorer]:
    """The scorers of a recipe. Raises RecipeError for a scorer that cannot be loaded, and for a name that two scorers have."""
    names = [section.label for section in sections]
    if len(set(names)) != len(names):
        raise RecipeError(f"scorers: names must differ, got {', '.join(names)}; set name:")
    scorers = []
    for section in sections:
        if section.callable is not None:
            score = _callable(section.callable)
        else:
            assert section.model is not None
            score = _reward_model(section.model, tokenizer, bf16, device)
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


def template_warnings(sections: Sequence[ScorerSection], template: TemplateSection) -> list[str]:
    """A sentence for each reward model that was trained with another template than that of the prompts.

    Used by `rlhf generate`, evaluation and PPO. A model that rlhf did not train names no template, and gets no sentence.
    """
    warnings = []
    for section in sections:
        if section.model is None:
            continue
        trained = saved_template(Path(resolve(section.model)))
        if trained is not None and trained != template:
            theirs, ours = trained.model_dump(), template.model_dump()
            if "auto" in (theirs["kind"], ours["kind"]):  # settled by the rows, which are not known here
                theirs["kind"] = ours["kind"]
            differ = ", ".join(
                f"{key} {theirs[key]!r} instead of {ours[key]!r}" for key in ours if theirs[key] != ours[key]
            )
            if not differ:
                continue
            warnings.append(
                f"the reward model {section.model} was trained with another template ({differ}); set template: to match"
            )
    return warnings


def check_reward_model(name_or_path: str) -> None:
    """Raises RecipeError for a folder that the reward stage did not write."""
    if not is_reward_model(name_or_path):
        raise RecipeError(
            f"model: {name_or_path} is not a reward model: it has no head.safetensors (train one with method: reward)"
        )


def same_tokens(name_or_path: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every id of this tokenizer is the same token for the model. The model may have more tokens."""
    return tokenizer.get_vocab().items() <= load_tokenizer(name_or_path).get_vocab().items()


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


def _reward_model(
    name_or_path: str, tokenizer: PreTrainedTokenizerBase, bf16: bool, device: torch.device | str
) -> Callable[[Sequence[Sample]], list[float]]:
    check_reward_model(name_or_path)
    section = ModelSection(name_or_path=name_or_path, dtype="bfloat16" if bf16 else "float32")
    model = load_scalar_model(section, bf16=bf16, device=device)
    model.eval().requires_grad_(False)
    own = load_tokenizer(name_or_path)
    same = same_tokens(name_or_path, tokenizer)
    renderer = Renderer(own, saved_template(Path(resolve(name_or_path))) or TemplateSection())

    def segment(sample: Sample) -> Segment:
        completion = sample.completion
        if same and tokenizer.decode(completion.ids, skip_special_tokens=True) == completion.text:
            return Segment(sample.prompt_ids, [completion.ids])
        # another tokenizer, or a text cut at a stop string: take the text; add EOS if it ended or is empty
        prompt = sample.prompt_ids if same else renderer.prompt_ids(sample.prompt)
        text = own(completion.text, add_special_tokens=False).input_ids
        return Segment(prompt, [[*text, own.eos_token_id] if completion.ended or not text else text])

    @torch.no_grad()
    def score(samples: Sequence[Sample]) -> list[float]:
        scores: list[float] = []
        for i in range(0, len(samples), BATCH):
            scores += model(collate([segment(s) for s in samples[i : i + BATCH]]).to(device)).tolist()
        return scores

    return score
