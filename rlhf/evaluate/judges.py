"""What the recipe's judges say about the models' answers, and what is known about the judges."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rlhf.evaluate.compare import PairJudge, Verdicts, both_orders, load_pair_judge
from rlhf.evaluate.sampling import Answers
from rlhf.generation.reward_scorer import check_reward_model, check_template, load_reward_model
from rlhf.generation.scorers import load_scorers, total_scores
from rlhf.recipe.callables import import_module
from rlhf.recipe.schema import EvalRecipe
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.sections import Precision, QuantizationSection


@dataclass(frozen=True)
class Judges:
    """All judges. They are found before anything is sampled: a misspelt name must not cost an hour."""

    scorers: list[ScorerSection]
    pair_judges: dict[str, PairJudge]
    cards: dict[str, dict[str, Any]]
    columns: Collection[str] = ()  # of the rows, which come with the prompts

    def describe(self, recipe: EvalRecipe) -> list[dict[str, Any]]:
        """For report.json: each judge's name, where it comes from, how it judges, and its card."""
        rows = [(s.label, s.source, "scores each completion") for s in self.scorers]
        rows += [(j.label, j.callable, "sees two completions, asked in both orders") for j in recipe.pair_judges]
        return [{"name": n, "source": source, "kind": kind, "card": self.cards.get(n)} for n, source, kind in rows]


def load_judges(recipe: EvalRecipe, tokenizer: PreTrainedTokenizerBase, columns: Collection[str] = ()) -> Judges:
    """The scorers of the recipe, and its reward model, if no scorer is that model already. `columns` are those that come with the
    prompts. Raises RecipeError.

    The reward model scores the samples too. If its scores rise and the judges' scores do not, the policy exploits the reward
    (Gao et al. 2023, https://arxiv.org/abs/2210.10760).
    """
    scorers = list(recipe.scorers)
    if recipe.reward_model is not None and [recipe.reward_model] not in [s.reward_models for s in scorers]:
        section = ScorerSection(model=recipe.reward_model)
        taken = {s.label for s in scorers} | {j.label for j in recipe.pair_judges}
        scorers.append(section.model_copy(update={"name": "reward model"}) if section.label in taken else section)
    for section in scorers:
        for name in section.reward_models:
            check_reward_model(name)
        check_template(section, recipe.template)
    load_scorers([s for s in scorers if not s.reward_models], tokenizer, columns=columns)
    pair_judges = {section.label: load_pair_judge(section) for section in recipe.pair_judges}
    named = [(s.label, s.callable) for s in scorers] + [(j.label, j.callable) for j in recipe.pair_judges]
    cards = {label: card for label, path in named if path is not None and (card := judge_card(path)) is not None}
    return Judges(scorers, pair_judges, cards, columns)


def judge_card(callable_path: str) -> dict[str, Any] | None:
    """What the callable's module says about it in `judge_card(path)`; None if there is no such function."""
    function = getattr(import_module(callable_path), "judge_card", None)
    return None if function is None else dict(function(callable_path))


def score_all(
    judges: Judges,
    everyone: Sequence[Answers],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: Precision | None,
    quantization: QuantizationSection | None,
    device: str,
) -> dict[str, list[NDArray[np.float64]]]:
    """Every scorer's scores of every model's samples, [P, n] each. One scorer is loaded at a time.

    Raises RlhfError where a scorer does not apply to a sample: models are compared on the same samples only.
    """
    scores = {}
    for section in judges.scorers:
        load = partial(load_reward_model, dtype=dtype, quantization=quantization, device=device)
        scorers = load_scorers([section], tokenizer, load, judges.columns)
        own = (total_scores(scorers, answers.flat)[1][section.label] for answers in everyone)
        scores[section.label] = [
            np.asarray(given, dtype=np.float64).reshape(len(answers.samples), -1)
            for given, answers in zip(own, everyone, strict=True)
        ]
    return scores


def compare_all(judges: Judges, everyone: Sequence[Answers]) -> dict[str, list[Verdicts | None]]:
    """Every pair judge's verdicts on every model against the first model, sample by sample; None for the first model."""
    texts = [[sample.completion.text for sample in answers.flat] for answers in everyone]
    prompts = [sample.prompt for sample in everyone[0].flat]
    return {
        name: [None, *(both_orders(judge, prompts, own, texts[0]) for own in texts[1:])]
        for name, judge in judges.pair_judges.items()
    }
