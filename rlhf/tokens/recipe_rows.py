"""The rows of a recipe as tokens: the one way for training, inspection, generation and evaluation.

What is shown is therefore what is trained: the same sources, limits and seed, from the same cache.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Literal, TypeVar

from rlhf.data.load import Stream
from rlhf.recipe.arguments import columns_of, imported_arguments, written_arguments
from rlhf.recipe.schema import EvalRecipe, GenerateRecipe
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.dataset import TokenizedRows, prompts, tokenize
from rlhf.tokens.segments import Segment
from rlhf.tokens.store import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


R = TypeVar("R", TrainRecipe, GenerateRecipe, EvalRecipe)


def with_template(recipe: R) -> R:
    """The recipe with `template.kind: auto` settled: `chat` where some source's first row is messages, else `plain`.

    Called once, before a recipe is carried out, so that its rows, its report and its lineage name the same kind. Raises DataError as
    reading the rows does.
    """
    section = recipe.data if isinstance(recipe, TrainRecipe) else recipe
    if section.template.kind != "auto":
        return recipe
    sources = recipe.data.train if isinstance(recipe, TrainRecipe) else recipe.prompts
    kinds = recipe.row_kinds if isinstance(recipe, TrainRecipe) else {"prompt"}
    keep = columns_of(recipe.scorers, written_arguments)  # no function is imported for this
    keep = replace(keep, needed={}, optional=frozenset(keep.names))  # what is not there is said when the rows are read
    streams = (Stream([source], seed=recipe.seed, kinds=kinds, needs_rows=False, keep=keep) for source in sources)
    firsts = (row for stream in streams if (row := next(iter(stream), None)) is not None)
    kind = "chat" if any(isinstance(row.data["prompt"], list) for row in firsts) else "plain"
    update = {"template": section.template.model_copy(update={"kind": kind})}
    if isinstance(recipe, TrainRecipe):
        return recipe.model_copy(update={"data": recipe.data.model_copy(update=update)})
    return recipe.model_copy(update=update)


def training_rows(
    recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase, which: Literal["train", "eval"]
) -> TokenizedRows | Prompts:
    """The segments of `data.train` or `data.eval`; for a method that samples its own completions prompts, with the columns that
    its rewards read.

    Raises DataError and RecipeError as `tokenize` and `prompts` do.
    """
    if recipe.longest_prompt is None:
        return tokenize(recipe.data, tokenizer, recipe.row_kinds, which, seed=recipe.seed)
    data = recipe.data
    sources = data.train if which == "train" else data.eval
    overflow: Literal["error", "drop"] = "error" if data.on_overflow == "error" else "drop"  # a prompt is never cut
    keep = columns_of(recipe.scorers, imported_arguments)
    return prompts(sources, tokenizer, data.template, recipe.longest_prompt, overflow, seed=recipe.seed, keep=keep)


def given_rows(recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
    """The demonstrations that a method which samples its completions also trains on. Raises as `training_rows` does."""
    if not recipe.given:
        return TokenizedRows()
    data = recipe.data.model_copy(update={"train": list(recipe.given)})
    return tokenize(data, tokenizer, {"demonstration"}, seed=recipe.seed, name=f"{recipe.method}.ptx.train")


def sampling_prompts(recipe: GenerateRecipe | EvalRecipe, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The prompts that a recipe samples completions of, with the columns that its scorers read. Raises as `prompts` does."""
    keep = columns_of(recipe.scorers, imported_arguments)
    return prompts(recipe.prompts, tokenizer, recipe.template, seed=recipe.seed, keep=keep)


def probe_rows(rows: TokenizedRows | Prompts, count: int) -> list[Segment]:
    """A few rows to hold a model against; prompts alone are cut in two, the second half as the completion."""
    if isinstance(rows, TokenizedRows):
        return [rows.segments[i] for i in range(min(count, len(rows.segments)))]
    long = [p.ids for p in islice(rows, count) if len(p.ids) > 1]
    return [Segment(ids[: len(ids) // 2], [ids[len(ids) // 2 :]]) for ids in long]
