"""What gives a completion its score: a reward model's run folder, or any Python callable. Both look alike from outside."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.embedded import resolve
from rlhf.errors import RecipeError, RlhfError
from rlhf.generation.in_process import Completion
from rlhf.models.lineage import saved_template
from rlhf.models.load import is_reward_model, load_scalar_model
from rlhf.recipe.sections import ModelSection, ScorerSection, TemplateSection
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.template import Renderer
from rlhf.tokens.tokenizer import load_tokenizer

BATCH = 32  # completions a forward pass of a reward model


@dataclass(frozen=True)
class Sample:
    """One completion with its prompt, as text and as the ids it was sampled from."""

    prompt: str
    prompt_ids: Sequence[int]
    completion: Completion


@dataclass(frozen=True)
class Scorer:
    """`score(samples)` gives one finite float each; higher is better."""

    name: str
    weight: float
    score: Callable[[Sequence[Sample]], list[float]]


def load_scorers(
    sections: Sequence[ScorerSection], tokenizer: PreTrainedTokenizerBase, *, bf16: bool, device: torch.device | str
) -> list[Scorer]:
    """The scorers of a recipe, by name. Raises RecipeError for one that cannot be loaded or a name used twice."""
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
    """The weighted sum of all scorers, one a sample, and each scorer's own scores."""
    parts = {scorer.name: scorer.score(samples) if samples else [] for scorer in scorers}
    for name, scores in parts.items():
        if len(scores) != len(samples):
            raise RlhfError(f"{name} returned {len(scores)} scores for {len(samples)} completions")
        if bad := [i for i, score in enumerate(scores) if not math.isfinite(score)]:
            raise RlhfError(f"{name} returned {scores[bad[0]]} for the completion {samples[bad[0]].completion.text!r}")
    total = [sum(s.weight * parts[s.name][i] for s in scorers) for i in range(len(samples))]
    return total, parts


def same_tokens(name_or_path: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model reads every id that this tokenizer writes as the same token; it may know more of them."""
    return tokenizer.get_vocab().items() <= load_tokenizer(name_or_path).get_vocab().items()  # type: ignore[no-any-return]


def import_callable(path: str) -> Callable[..., Any]:
    """The function that `module:function` names, looked for beside the working folder too. Raises RecipeError."""
    module_name, function_name = path.split(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own reward lies beside the recipes
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"callable: cannot import {path}: {error}") from error
    if not callable(function):
        raise RecipeError(f"callable: {path} is not a function")
    return function  # type: ignore[no-any-return]


def _callable(path: str) -> Callable[[Sequence[Sample]], list[float]]:
    function = import_callable(path)

    def score(samples: Sequence[Sample]) -> list[float]:
        prompts, completions = [s.prompt for s in samples], [s.completion.text for s in samples]
        try:
            return [float(score) for score in function(prompts, completions)]
        except Exception as error:  # a user's own code: whatever it raises is theirs to read
            reason = f"{type(error).__name__}: {error}"
            raise RlhfError(f"{path} failed on {len(samples)} completions: {reason}") from error

    return score


def _reward_model(
    name_or_path: str, tokenizer: PreTrainedTokenizerBase, bf16: bool, device: torch.device | str
) -> Callable[[Sequence[Sample]], list[float]]:
    if not is_reward_model(name_or_path):
        raise RecipeError(
            f"model: {name_or_path} is not a reward model: it has no head.safetensors (train one with method: reward)"
        )
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
        # another tokenizer, or cut at a stop string: the text, and EOS where it ended or nothing is left of it
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
