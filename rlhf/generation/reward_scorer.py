"""A reward model as a scorer: it reads a completion exactly as its training laid it out, and answers in standard deviations.

The policy's ids are taken over where both have the same tokens; else the text is tokenised again. The end is the training's: a
completion that ended gets the end that the reward model's template puts there, and not the token that stopped the sampling. A
completion that was cut off has no end, if the model was trained on such completions. A model that saw an end on every text was
never asked about one without, and its answer would be chance (one gave such texts three points more): then every text gets its
end, and what was cut off is dealt with by `ppo.missing_eos` alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.embedded import resolve
from rlhf.errors import RecipeError
from rlhf.generation.engine import Completion
from rlhf.models.lineage import (
    is_reward_model,
    problem_with_template,
    quantization_beside,
    saved_template,
    trained_dtype,
)
from rlhf.models.load import load_scalar_model
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.sections import Precision, QuantizationSection, StoredModelSection, TemplateSection
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.template import Renderer
from rlhf.tokens.tokenizer import load_tokenizer

BATCH = 32  # completions in a forward pass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One completion with its prompt, as text and as the ids that it was sampled from, and the columns of the prompt's row."""

    prompt: str
    prompt_ids: Sequence[int]
    completion: Completion
    columns: Mapping[str, Any] = field(default_factory=dict)


class RewardScorer:
    """`scorer(samples)` gives each sample's score: in standard deviations from the mean of the model's own data, or raw."""

    def __init__(self, section: ScorerSection, tokenizer: PreTrainedTokenizerBase, model: ScalarModel) -> None:
        assert section.model is not None
        name = section.model
        self.model, self.scale = model, model.scale
        if self.scale is None:
            log.warning("%s has no scores.json: its scores are not normalised. Train it again to have them so", name)
        self.normalize = section.normalize and self.scale is not None
        self._tokenizer, own = tokenizer, load_tokenizer(name)
        self._same = same_tokens(name, tokenizer)
        template = saved_template(Path(resolve(name))) or TemplateSection(kind="plain")
        self._renderer = Renderer(own, template)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        knows = self.scale is not None and self.scale.knows_unfinished
        scores = self._scores(samples, [sample.completion.ended or not knows for sample in samples])
        return [self.normalised(float(score)) for score in scores]

    def normalised(self, score: float) -> float:
        """A raw score in standard deviations from the mean, where that is known and asked for."""
        return (score - self.scale.mean) / self.scale.std if self.normalize and self.scale is not None else score

    def effect_of_end(self, samples: Sequence[Sample]) -> float:
        """How much higher the same texts score with their end than without it, in standard deviations of the scores."""
        ends = self._scores(samples, [True] * len(samples))
        bare = self._scores(samples, [False] * len(samples))
        spread = float(ends.std(correction=0)) if self.scale is None else self.scale.std
        return float((ends - bare).mean()) / max(spread, 1e-6)

    def about_ends(self, name: str, effect: float, rule: object) -> str:
        """What to say of a model whose scores go by the end: `effect` is `effect_of_end`, `rule` PPO's `missing_eos`."""
        said = f"{name} scores the same texts {abs(effect):.1f} standard deviations {'higher' if effect > 0 else 'lower'} with their end than without"
        if self.scale is not None and self.scale.knows_unfinished:
            return f"{said}: it goes by the end more than by the text. Watch eos_rate"
        paid = "nothing is taken off (ppo.missing_eos)" if rule is None else "it pays ppo.missing_eos"
        return (
            f"{said}. It saw an end on every text of its training, so every text is scored with one here; for a text that did not "
            f"end, {paid}. To let it judge such texts, train it on rows that say what ended, as rlhf generate writes them"
        )

    @torch.no_grad()
    def _scores(self, samples: Sequence[Sample], with_end: Sequence[bool]) -> Tensor:
        """Raw scores, [M] float64, of the texts with or without an end."""
        segments = [self._segment(sample, end) for sample, end in zip(samples, with_end, strict=True)]
        batches = [segments[i : i + BATCH] for i in range(0, len(segments), BATCH)]
        device = self.model.transformer.device
        return torch.cat([self.model(collate(batch).to(device)).double().cpu() for batch in batches])

    def _segment(self, sample: Sample, with_end: bool) -> Segment:
        ids = self._ids(sample.completion)
        prompt = sample.prompt_ids if self._same else self._renderer.prompt_ids(sample.prompt)
        # something must be scored, so an empty text keeps its end
        return Segment(prompt, [self._renderer.with_end(ids) if with_end or not ids else ids])

    def _ids(self, completion: Completion) -> list[int]:
        """The completion's tokens, without any end."""
        ids = list(completion.ids)
        if not self._same or self._tokenizer.decode(ids, skip_special_tokens=True) != completion.text:
            return self._renderer.continuation_ids(completion.text)  # also a text that was cut at a stop string
        return self._renderer.without_end(ids) if completion.ended else ids


def load_reward_model(
    name_or_path: str,
    *,
    device: torch.device | str = "cpu",
    dtype: Precision | None = None,
    quantization: QuantizationSection | None = None,
) -> ScalarModel:
    """A reward model that only scores, as it was trained or stored if `dtype` does not say otherwise. Adapters lie on their base
    as it was trained; `quantization` is of whole models. Raises RecipeError for a folder that the reward stage did not write.
    """
    check_reward_model(name_or_path)
    dtype = dtype or trained_dtype(name_or_path)
    model = load_scalar_model(
        StoredModelSection(name_or_path=name_or_path, dtype=dtype),
        quantization=quantization_beside(name_or_path, quantization),
        bf16=dtype == "bfloat16",
        device=device,
    )
    return model.eval().requires_grad_(False)


def check_reward_model(name_or_path: str) -> None:
    """Raises RecipeError for a folder that the reward stage did not write."""
    if not is_reward_model(name_or_path):
        raise RecipeError(
            f"model: {name_or_path} is not a reward model: it has no head.safetensors (train one with method: reward)"
        )


def check_template(section: ScorerSection, template: TemplateSection) -> None:
    """Raises RecipeError for a reward model of another template (`lineage.problem_with_template`) that the recipe does not allow."""
    for name in () if section.other_template else section.reward_models:
        if problem := problem_with_template(name, template):
            raise RecipeError(problem)


def same_tokens(name_or_path: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every id of this tokenizer is the same token for the model. The model may have more tokens."""
    return tokenizer.get_vocab().items() <= load_tokenizer(name_or_path).get_vocab().items()
