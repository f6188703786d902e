"""`rlhf inspect RECIPE`: the first batch exactly as training will see it, and the invariants of every row.

Goes the real way, through `dataset`, `sampler` and `segments`, and reads the trained tokens off the labels; so what is shown
cannot differ from what is trained. Trained tokens are in colour, or between double brackets where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from rlhf.data.dataset import KINDS, Prompts, TokenizedRows, prompts, tokenize
from rlhf.data.rows import Located
from rlhf.data.sampler import Sampler
from rlhf.data.segments import IGNORE_INDEX, PaddedBatch, Segment, collate, pad
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.schema import AnyRecipe, PpoRecipe, Recipe, SftRecipe, TrainRecipe

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

SHOWN = 4  # rows of the batch, or prompts
OPEN, CLOSE = "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}", "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"


def inspect(recipe: AnyRecipe | Recipe, console: Console) -> None:
    """Print the first microbatch decoded, the invariants, and what became of every row.

    Raises RecipeError for a recipe that does not train, DataError when a row breaks an invariant.
    """
    from rlhf.models.load import load_tokenizer

    if not isinstance(recipe, TrainRecipe):
        raise RecipeError(
            f"method: inspect shows what is trained on, and {getattr(recipe, 'method', '?')} trains nothing"
        )
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    if isinstance(recipe, PpoRecipe):
        room = recipe.data.max_length - recipe.ppo.sampling.max_new_tokens
        found = prompts(recipe.data.train, tokenizer, recipe.data.template, room, recipe.data.on_overflow)
        _show_prompts(found, tokenizer, console)
        return
    rows = tokenize(recipe.data, tokenizer, KINDS[recipe.method], "train")
    score_prompt = isinstance(recipe, SftRecipe) and recipe.sft.loss_on == "all"
    training = recipe.training
    sampler = Sampler(
        [s.num_tokens for s in rows.segments],
        batch_size=training.per_device_train_batch_size,
        max_tokens=training.max_tokens_per_batch,
        seed=recipe.seed,
        accumulation=training.gradient_accumulation_steps,
    )
    batch = sampler.window(0)[0]
    console.print(f"step 1, microbatch 1: {len(batch)} rows, {sampler.total_steps(1)} steps an epoch", highlight=False)
    for index in batch[:SHOWN]:
        _show_segment(rows.segments[index], rows.rows[index], tokenizer, score_prompt, console)
    if len(batch) > SHOWN:
        console.print(f"and {len(batch) - SHOWN} rows more in this microbatch", highlight=False)
    checked = check_rows(rows, recipe, tokenizer, score_prompt)
    console.print(f"checked {checked} completions of {len(rows.segments)} rows: each trains a token; EOS is trained;")
    console.print("the beginning-of-text token is not doubled; no padding is trained")
    _show_report(rows.report, console)


def check_rows(
    rows: TokenizedRows, recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase, score_prompt: bool = False
) -> int:
    """Check the invariants on the labels of every row; returns how many completions there are. Raises DataError."""
    checked = 0
    for segment, row in zip(rows.segments, rows.rows, strict=True):
        padded = pad(collate([segment], score_prompt=score_prompt), cast(int, tokenizer.pad_token_id))
        for i in range(len(padded.input_ids)):
            if reason := _fault(padded, i, segment, recipe, tokenizer):
                raise row.error(reason)
            checked += 1
    return checked


def _fault(
    padded: PaddedBatch, i: int, segment: Segment, recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """What is wrong with completion `i` of a segment."""
    template, limit = recipe.data.template, recipe.data.max_length
    labels, prompt = padded.labels[i], list(segment.prompt_ids)
    bos = tokenizer.bos_token_id
    length = int(padded.attention_mask[i].sum())
    if not bool((labels != IGNORE_INDEX).any()):
        return "trains no token"
    if bool((labels[length:] != IGNORE_INDEX).any()):
        return "trains padding"
    cut = recipe.data.on_overflow == "truncate" and length == limit
    if template.add_eos and int(labels[length - 1]) != tokenizer.eos_token_id and not cut:
        return "does not train EOS, although template.add_eos is set"
    if bos is not None and (
        prompt[:2] == [bos, bos] or (template.kind == "plain" and prompt.count(cast(int, bos)) > 1)
    ):
        return "begins with the beginning-of-text token twice"
    return "is longer than max_length" if length > limit else None


def _show_segment(
    segment: Segment, row: Located, tokenizer: PreTrainedTokenizerBase, score_prompt: bool, console: Console
) -> None:
    padded = pad(collate([segment], score_prompt=score_prompt), cast(int, tokenizer.pad_token_id))
    prompt = len(segment.prompt_ids)
    console.rule(f"{row.file}:{row.row}  {segment.num_tokens} tokens, prompt {prompt}", align="left", characters="-")
    for i, completion in enumerate(segment.completion_ids):
        end = prompt + len(completion)
        ids, labels = padded.input_ids[i, :end].tolist(), padded.labels[i, :end].tolist()
        trained = [label != IGNORE_INDEX for label in labels]
        if i == 0:
            _show_tokens("prompt", ids[:prompt], trained[:prompt], tokenizer, console)
        _show_tokens(_name(segment, i), ids[prompt:], trained[prompt:], tokenizer, console)


def _name(segment: Segment, i: int) -> str:
    if list(segment.grades) == [1, 0]:
        margin = f" (margin {segment.margin:g})" if segment.margin is not None and i == 0 else ""
        return ("chosen", "rejected")[i] + margin
    return f"completion {i} (grade {segment.grades[i]:g})" if segment.grades else "completion"


def _show_tokens(
    name: str, ids: list[int], trained: list[bool], tokenizer: PreTrainedTokenizerBase, console: Console
) -> None:
    from rich.text import Text

    plain = console.no_color or not console.is_terminal
    line = Text(f"{name}: ", style="bold")
    for is_trained, text in _runs(ids, trained, tokenizer):
        shown = f"{OPEN}{text}{CLOSE}" if is_trained and plain else text
        line.append(shown, style="not bold green" if is_trained else "not bold dim")
    console.print(line, soft_wrap=True)


def _runs(ids: list[int], trained: list[bool], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[bool, str]]:
    for is_trained, group in groupby(zip(trained, ids, strict=True), key=lambda pair: pair[0]):
        yield is_trained, cast(str, tokenizer.decode([token for _, token in group]))


def _show_prompts(found: Prompts, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    console.print(f"{len(found)} prompts; nothing in them is trained, rollouts start after them", highlight=False)
    for number, (_, ids) in enumerate(found[:SHOWN], 1):
        if not ids:
            raise DataError("template", "a prompt without a token")
        _show_tokens(f"prompt {number}, {len(ids)} tokens", ids, [False] * len(ids), tokenizer, console)
    _show_report(found.report, console)


def _show_report(report: dict[str, Any], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "", show_header=False)
    for source in report["sources"]:
        said = f"{source['format']}{' (recognised by its columns)' if source['recognised'] else ''}"
        table.add_row(escape(source["path"]), f"{said}, {source['rows_in']} rows, {source['rows_out']} usable")
    for key, value in report.items():
        if key not in ("sources", "quarantined", "truncated") and value not in ({}, None):
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            table.add_row(key.replace("_", " "), escape(", ".join(f"{k} {v}".strip() for k, v in pairs)))
    console.print(table)
