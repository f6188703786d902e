"""How often held-out preferences are predicted: by the reward model, by each policy's implicit reward, and by length alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rlhf.errors import DataError
from rlhf.evaluate import measures
from rlhf.generation.in_process import context_length
from rlhf.models.lineage import quantization_beside
from rlhf.models.load import load_scalar_model
from rlhf.recipe.sections import (
    DataSection,
    Precision,
    QuantizationSection,
    SourceSection,
    StoredModelSection,
    TemplateSection,
)
from rlhf.tokens.dataset import tokenize
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.tokenizer import load_tokenizer

BATCH = 16  # pairs a forward pass
UNLIMITED = 2**31


@dataclass(frozen=True)
class Pairs:
    """Held-out pairs with the chosen completion first. Pairs of one prompt have equal entries in `prompts`."""

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
    """Held-out pairs in the tokens of one tokenizer. Rows longer than the model's context are left out and counted.

    A ranking gives every pair of its completions; the better completion is chosen.
    """
    section = DataSection(train=list(sources), template=template, max_length=context or UNLIMITED, on_overflow="drop")
    rows = tokenize(section, tokenizer, {"preference", "ranking"}, seed=seed)
    segments = [pair for ranking in rows.segments for pair in pairs_of(ranking)]
    if not segments:
        raise DataError(sources[0].path, "no held-out pairs: in every row, all completions are tied")
    return Pairs(segments, [tuple(segment.prompt_ids) for segment in segments], rows.report)


def pairs_of(ranking: Segment) -> list[Segment]:
    """Every pair of completions with the better one first. Tied completions make no pair."""
    ids, grades, untrained = ranking.completion_ids, ranking.grades, ranking.untrained
    pairs = [(i, j) for i in range(len(ids)) for j in range(len(ids)) if grades[i] > grades[j]]
    return [
        Segment(ranking.prompt_ids, [ids[i], ids[j]], untrained=[untrained[i], untrained[j]] if untrained else ())
        for i, j in pairs
    ]


def reward_accuracy(
    name_or_path: str,
    sources: Sequence[SourceSection],
    template: TemplateSection,
    *,
    seed: int,
    dtype: Precision | None,
    device: str,
    quantization: QuantizationSection | None = None,
) -> dict[str, Any]:
    """The reward model on held-out pairs, for report.json, with the baseline "the longer completion is better".

    `accuracy_chosen_shorter` is the accuracy on pairs whose chosen completion is the shorter one. A reward model that only counts
    tokens has 0 there. Raises DataError, RecipeError.
    """
    tokenizer = load_tokenizer(name_or_path)
    section = StoredModelSection(name_or_path=name_or_path, dtype=dtype)
    quantization = quantization_beside(name_or_path, quantization)
    model = load_scalar_model(section, quantization=quantization, device=device).eval().requires_grad_(False)
    pairs = load_pairs(sources, tokenizer, template, context_length(model.transformer), seed=seed)
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
    """What length alone predicts, and how good the scores are where length is wrong: both [pairs]."""
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
