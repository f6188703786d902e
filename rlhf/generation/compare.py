"""`rlhf generate --compare greedy,beam,topk RECIPE`: the same prompts, decoded in several ways, side by side.

It writes no rows (`run` does). It helps a user choose the sampling of a recipe: it shows texts, and it measures how long they
are, how often they end, and how much they repeat (Holtzman et al. 2020).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf.data.rows import text_of
from rlhf.errors import RecipeError
from rlhf.generation.engines.transformers_text import TransformersText
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.schema import GenerateRecipe
from rlhf.recipe.synthesis import TextSampling, TransformersSection
from rlhf.tokens.recipe_rows import sampling_prompts, with_template
from rlhf.tokens.tokenizer import load_tokenizer

SHOWN = 3  # prompts whose completions are printed
MEASURED = 12  # prompts that are measured
NGRAM = 3  # words

# name -> (the setting that `name:value` changes, its default, other settings)
STRATEGIES: dict[str, tuple[str, float, dict[str, Any]]] = {
    "greedy": ("temperature", 0.0, {}),
    "beam": ("num_beams", 4, {"temperature": 0.0}),
    "sample": ("temperature", 1.0, {}),
    "topk": ("top_k", 50, {"temperature": 1.0}),
    "topp": ("top_p", 0.9, {"temperature": 1.0}),
    "minp": ("min_p", 0.05, {"temperature": 1.0}),
    "penalty": ("repetition_penalty", 1.2, {"temperature": 0.0}),
    "norepeat": ("no_repeat_ngram_size", 3, {"temperature": 0.0}),
}


@dataclass(frozen=True)
class Strategy:
    """A way to decode. `label` is the name that the user wrote."""

    label: str
    sampling: TextSampling


@dataclass(frozen=True)
class Measures:
    """Means over the answers of one strategy. `repeated`: the share of word trigrams that occur earlier in the same text."""

    tokens: float
    ended: float
    repeated: float
    tokens_per_second: float


def strategies(names: str, recipe: GenerateRecipe) -> list[Strategy]:
    """The strategies in `greedy,beam:8,topk`; length, stops and batch are the recipe's. Raises RecipeError for an unknown one."""
    base = {key: getattr(recipe.sampling, key) for key in ("max_new_tokens", "stop", "batch_size")}
    found = []
    for label in dict.fromkeys(filter(None, (part.strip() for part in names.split(",")))):
        name, _, value = label.partition(":")
        if name not in STRATEGIES or (name == "greedy" and value):
            raise RecipeError(
                f"--compare: no strategy {label!r}; there are {', '.join(STRATEGIES)}, with a number if you like: topk:5"
            )
        key, default, others = STRATEGIES[name]
        try:
            number = type(default)(value) if value else default
            found.append(Strategy(label, TextSampling.model_validate(base | others | {key: number})))
        except (ValueError, ValidationError):
            raise RecipeError(f"--compare: {label}: {value!r} is not a valid {key}") from None
    if not found:
        raise RecipeError(f"--compare: name some of {', '.join(STRATEGIES)}")
    return found


def compare(names: str, recipe: GenerateRecipe, console: Console) -> dict[str, Measures]:
    """Print each strategy's answers to the recipe's first prompts, and its measures; returns the measures by label."""
    chosen = strategies(names, recipe)
    recipe = with_template(recipe)
    few = [
        source.model_copy(update={"max_rows": min(source.max_rows or MEASURED, MEASURED)}) for source in recipe.prompts
    ]
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    rows = sampling_prompts(recipe.model_copy(update={"prompts": few}), tokenizer)
    texts = [prompt.content for prompt in rows[:MEASURED]]
    section = TransformersSection(engine="transformers", model=recipe.model, quantization=recipe.quantization)
    engine = TransformersText(section, name="--compare", template=recipe.template)
    requests = [Request(str(i), text) for i, text in enumerate(texts)]
    list(engine.answers(requests[:1], TextSampling(temperature=0, max_new_tokens=2), seed=0))  # the first call is slow
    answers: dict[str, list[Answer]] = {}
    measures: dict[str, Measures] = {}
    for strategy in chosen:
        began = time.perf_counter()
        by_key = {r.key: a for r, a in engine.answers(requests, strategy.sampling, seed=recipe.seed)}
        answers[strategy.label] = [by_key[r.key] for r in requests]
        measures[strategy.label] = _measures(answers[strategy.label], time.perf_counter() - began)
    engine.close()
    for i, text in enumerate(texts[:SHOWN]):
        console.print(f"[bold]prompt {i + 1}[/bold]\n{escape(text_of(text))}\n")
        for strategy in chosen:
            answer = answers[strategy.label][i]
            said = answer.error or answer.texts[0].strip() + ("" if answer.ended[0] else " ...")
            console.print(f"[bold]{strategy.label}[/bold]  {escape(said)}\n", highlight=False)
    console.print(_table(chosen, measures, len(texts)))
    return measures


def _measures(answers: Sequence[Answer], seconds: float) -> Measures:
    good = [a for a in answers if a.error is None]
    if not good:
        raise RecipeError(f"--compare: no prompt could be answered: {answers[0].error}" if answers else "no prompts")
    tokens = sum(a.completion_tokens for a in good)
    return Measures(
        tokens=tokens / len(good),
        ended=sum(a.ended[0] for a in good) / len(good),
        repeated=repeated_share([a.texts[0] for a in good]),
        tokens_per_second=tokens / seconds,
    )


def repeated_share(texts: Sequence[str]) -> float:
    """The share of word trigrams that occur earlier in the same text; 0 if there are no trigrams."""
    total = distinct = 0
    for text in texts:
        words = text.split()
        grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
        total += len(grams)
        distinct += len(set(grams))
    return 1 - distinct / total if total else 0.0


def _table(chosen: Sequence[Strategy], measures: dict[str, Measures], prompts: int) -> Table:
    table = Table(title=f"{prompts} prompts", title_justify="left")
    table.add_column("strategy")
    for heading in ("tokens", "ended", "said twice", "tokens/s"):
        table.add_column(heading, justify="right")
    for strategy in chosen:
        m = measures[strategy.label]
        table.add_row(
            strategy.label, f"{m.tokens:.1f}", f"{m.ended:.0%}", f"{m.repeated:.1%}", f"{m.tokens_per_second:.0f}"
        )
    return table
