"""How well held-out preferences are told: by the reward model, by each policy's implicit reward, and by mere length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rlhf.errors import DataError, RecipeError
from rlhf.evaluate import measures
from rlhf.models.load import is_reward_model, load_scalar_model
from rlhf.recipe.sections import DataSection, ModelSection, SourceSection, TemplateSection
from rlhf.tokens.dataset import tokenize
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.tokenizer import load_tokenizer

BATCH = 16  # pairs a forward pass
UNLIMITED = 2**31


@dataclass(frozen=True)
class Pairs:
    """Held-out pairs, the chosen completion first; `prompts` says which pairs share one."""

    segments: list[Segment]
    prompts: list[tuple[int, ...]]
    report: dict[str, Any]


def load_pairs(
    sources: Sequence[SourceSection],
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSection,
    context: int | None,
    *,
    seed: int,
) -> Pairs:
    """Held-out pairs as one tokenizer sees them; rows longer than the model's context are left out and counted.

    A ranking gives every pair of its completions, the better one as chosen.
    """
    section = DataSection(train=list(sources), template=template, max_length=context or UNLIMITED, on_overflow="drop")
    rows = tokenize(section, tokenizer, {"preference", "ranking"}, seed=seed)
    segments = [pair for ranking in rows.segments for pair in pairs_of(ranking)]
    if not segments:
        raise DataError(sources[0].path, "no held-out pairs: in every row all completions are tied")
    return Pairs(segments, [tuple(segment.prompt_ids) for segment in segments], rows.report)


def pairs_of(ranking: Segment) -> list[Segment]:
    """Every pair of completions of which one is better, that one first; tied completions make no pair."""
    ids, grades = ranking.completion_ids, ranking.grades
    places = range(len(ids))
    return [Segment(ranking.prompt_ids, [ids[i], ids[j]]) for i in places for j in places if grades[i] > grades[j]]


def reward_accuracy(
    name_or_path: str,
    sources: Sequence[SourceSection],
    template: TemplateSection,
    *,
    seed: int,
    dtype: Any,
    device: str,
) -> dict[str, Any]:
    """The reward model on held-out pairs, for report.json, with the baseline "the longer completion is better".

    `accuracy_chosen_shorter` is the accuracy where length points the wrong way: a reward model that only counts tokens
    has none there. Raises DataError, RecipeError.
    """
    tokenizer = load_tokenizer(name_or_path)
    section = ModelSection(name_or_path=name_or_path, dtype=dtype)
    model = load_scalar_model(section, device=device).eval().requires_grad_(False)
    context = getattr(model.transformer.config.get_text_config(), "max_position_embeddings", None)
    pairs = load_pairs(sources, tokenizer, template, context, seed=seed)
    scores: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(pairs.segments), BATCH):
            scores.append(model(collate(pairs.segments[start : start + BATCH]).to(device)).view(-1, 2).cpu())
    chosen, rejected = torch.cat(scores).double().numpy().T
    return {
        "model": name_or_path,
        "pairs": len(pairs.segments),
        "prompts": len(set(pairs.prompts)),
        "rows": pairs.report,
        "accuracy": measures.preference_accuracy(chosen, rejected, pairs.prompts).as_dict(),
        "margin": float((chosen - rejected).mean()),
        **length_facts(pairs, chosen, rejected),
    }


def length_facts(pairs: Pairs, chosen: NDArray[np.float64], rejected: NDArray[np.float64]) -> dict[str, Any]:
    """What length alone would have said, and how the scores do where it is wrong: both [pairs]."""
    long, short = np.asarray([[len(ids) for ids in s.completion_ids] for s in pairs.segments], dtype=np.float64).T
    against = np.flatnonzero(long < short)
    prompts = [pairs.prompts[i] for i in against]
    return {
        "length_baseline": measures.preference_accuracy(long, short, pairs.prompts).as_dict(),
        "pairs_chosen_shorter": len(against),
        "accuracy_chosen_shorter": (
            measures.preference_accuracy(chosen[against], rejected[against], prompts).as_dict() if prompts else None
        ),
    }


def check_reward_model(name_or_path: str) -> None:
    """Raises RecipeError, before anything is sampled, for a folder that the reward stage did not write."""
    if not is_reward_model(name_or_path):
        raise RecipeError(
            f"{name_or_path} is not a reward model: it has no head.safetensors (train one with method: reward)"
        )
