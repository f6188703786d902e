"""`rlhf inspect RECIPE`: the first rows exactly as training will see them, and a check of the invariants of every row.

It uses the same code as training (`dataset`, `sampler`, `segments`) and finds the trained tokens by the labels. So it shows what is
trained. Trained tokens are in colour, or between double brackets if there is no colour. Special tokens are shown as they are written,
a line break as an arrow and a line break, and a character that cannot be seen as an escape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, groupby, islice
from typing import TYPE_CHECKING, Any, cast

from rlhf.data.rows import Located
from rlhf.errors import RecipeError
from rlhf.recipe.schema import AnyRecipe
from rlhf.recipe.sections import Recipe
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.dataset import TokenizedRows
from rlhf.tokens.recipe_rows import training_rows, with_template
from rlhf.tokens.sampler import Sampler
from rlhf.tokens.segments import IGNORE_INDEX, Segment, collate, pad
from rlhf.tokens.store import Prompts

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

SHOWN = 4  # rows, or prompts
CHECKED_AT_ONCE = 64  # rows laid out together to be checked
NEWLINE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
OPEN, CLOSE = "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}", "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"


def inspect(recipe: AnyRecipe | Recipe, console: Console, shown: int = SHOWN) -> None:
    """Print the first `shown` rows, decoded and in the order of training; then the invariants, and what became of every row.

    Raises RecipeError for a recipe that does not train, DataError when a row breaks an invariant.
    """
    from rlhf.tokens.tokenizer import load_tokenizer

    if not isinstance(recipe, TrainRecipe):
        raise RecipeError(
            f"method: inspect shows what is trained on, and {getattr(recipe, 'method', '?')} trains nothing"
        )
    recipe = with_template(recipe)
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    rows = training_rows(recipe, tokenizer, "train")
    if isinstance(rows, Prompts):
        _show_prompts(rows, recipe, tokenizer, console, shown)
        return
    score_prompt = recipe.trains_prompt
    training = recipe.training
    sampler = Sampler(
        [s.num_tokens for s in rows.segments],
        batch_size=training.per_device_train_batch_size,
        max_tokens=training.max_tokens_per_batch,
        seed=recipe.seed,
        accumulation=training.gradient_accumulation_steps,
    )
    total = len(rows.segments)
    _say(console, f"{counted(total, 'row')}, {counted(sampler.total_steps(1), 'step')} in each epoch")
    for heading, index in islice(_in_order(sampler), min(shown, total)):
        if heading:
            _say(console, heading)
        _show_segment(rows.segments[index], rows.rows[index], tokenizer, score_prompt, console)
    _say_more(console, total - shown, "row")
    checked = check_rows(rows, recipe, tokenizer, score_prompt)
    _show_invariants(checked, rows, recipe, console)
    _show_report(rows.report, console)


def _in_order(sampler: Sampler) -> Iterator[tuple[str, int]]:
    """The rows' indices in the order of training; the first row of each microbatch has a heading, the others an empty one."""
    for step in count(0):
        for number, microbatch in enumerate(sampler.window(step), 1):
            for position, row in enumerate(microbatch):
                heading = f"step {step + 1}, microbatch {number}: {counted(len(microbatch), 'row')}"
                yield "" if position else heading, row


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False)


def _say_more(console: Console, number: int, noun: str) -> None:
    if number > 0:
        _say(console, f"and {counted(number, noun)} more (--rows shows more)")


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _show_invariants(checked: int, rows: TokenizedRows, recipe: TrainRecipe, console: Console) -> None:
    """What `check_rows` has found to be true, and what was cut."""
    cut = rows.report.get("truncated") or 0
    eos = "and EOS" if recipe.data.template.add_eos else "(the template adds EOS)"
    prompt = " but the prompt" if recipe.trains_prompt else ""
    turns = {
        "last": "all of its tokens",
        "all": "all tokens of the assistant's turns",
        "marked": "all tokens of its marked turns",
    }[recipe.data.template.train_on]
    lines = [
        f"checked {counted(checked, 'completion')} of {counted(len(rows.segments), 'row')}: "
        f"each trains {turns} {eos}, and nothing else{prompt};"
    ]
    if ignored := rows.report.get("marks_ignored"):
        lines.append(
            f"but {counted(ignored, 'row')} {'marks' if ignored == 1 else 'mark'} turns (weight or train), and train_on is "
            f"{recipe.data.template.train_on}: set data.template.train_on: marked to follow the marks;"
        )
    if cut:
        lines.append(
            f"but {counted(cut, 'row')} {'was' if cut == 1 else 'were'} cut at max_length: a completion that was cut has "
            "lost its end, and does not train EOS;"
        )
    if unfinished := rows.report.get("unfinished"):
        lines.append(
            f"but {counted(unfinished, 'completion')} did not end, as {'its row says' if unfinished == 1 else 'their rows say'}: "
            "no EOS follows there;"
        )
    lines.append("no padding is trained, and the beginning-of-text token is not doubled")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def check_rows(
    rows: TokenizedRows, recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase, score_prompt: bool = False
) -> int:
    """Check the invariants on the labels of every row. Returns how many completions there are. Raises DataError for a wrong row."""
    checked, endless = 0, rows.report.get("unfinished", 0)
    for start in range(0, len(rows.segments), CHECKED_AT_ONCE):
        part = range(start, min(start + CHECKED_AT_ONCE, len(rows.segments)))
        segments = [rows.segments[i] for i in part]
        padded = pad(collate(segments, score_prompt=score_prompt), cast(int, tokenizer.pad_token_id))
        laid_out = zip(padded.input_ids.tolist(), padded.labels.tolist(), padded.last.tolist(), strict=True)
        for i, segment in zip(part, segments, strict=True):
            for which, completion in enumerate(segment.completion_ids):
                ids, labels, last = next(laid_out)
                prompt = len(segment.prompt_ids)
                ids = ids[: last + 1]
                reason = _mislabelled(ids, labels, prompt, segment.trained(which), score_prompt) or _misspelt(
                    ids, prompt, recipe, tokenizer
                )
                if reason is None and _lacks_eos(ids, recipe, tokenizer):
                    endless -= 1  # some completions did not end, as their rows say; no other may lack EOS
                    reason = None if endless >= 0 else "does not train EOS, although template.add_eos is set"
                if reason:
                    raise rows.rows[i].error(reason)
                assert len(completion) == last + 1 - prompt
                checked += 1
    return checked


def _mislabelled(ids: list[int], labels: list[int], prompt: int, trained: list[bool], score_prompt: bool) -> str | None:
    """What is wrong with a row's labels. They must be the completion's trained tokens (with `score_prompt` also the prompt's), and no
    others.
    """
    none, length = [IGNORE_INDEX], prompt + len(trained)
    if labels[prompt:length] == none * (length - prompt):
        return "trains no token of the completion"
    if labels[length:] != none * (len(labels) - length):
        return "trains padding"
    if labels[prompt:length] != [i if kept else IGNORE_INDEX for i, kept in zip(ids[prompt:], trained, strict=True)]:
        return "does not train every token of the completion's turns as itself"
    if labels[:prompt] != (none + ids[1:prompt] if score_prompt else none * prompt):
        return "does not train the prompt, although loss_on is all" if score_prompt else "trains the prompt"
    return None


def _misspelt(ids: list[int], prompt: int, recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What is wrong with a row's tokens: its length, its end, its beginning."""
    template, limit = recipe.data.template, recipe.data.max_length
    bos, eos, pad_id = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if len(ids) > limit:
        return f"is longer than max_length: {len(ids)} tokens"
    if ids[prompt:].count(eos) > 1 and ids[-2] == eos:
        return "trains EOS twice at its end"
    if pad_id not in (eos, bos, tokenizer.unk_token_id) and pad_id in ids[prompt:]:
        return "trains the padding token inside the completion"
    return _doubled_bos(ids if bos != eos else ids[:prompt], bos, template.kind)


def _lacks_eos(ids: list[int], recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether EOS is missing where the template puts one: not after a row that was cut at max_length."""
    cut = recipe.data.on_overflow == "truncate" and len(ids) == recipe.data.max_length
    return recipe.data.template.add_eos and ids[-1] != tokenizer.eos_token_id and not cut


def _doubled_bos(ids: list[int], bos: Any, kind: str) -> str | None:
    """A chat template may start every turn with BOS, as ChatML does. Two in a row, or two in a plain text, are a mistake."""
    if bos is None or not (ids[:2] == [bos, bos] or (kind == "plain" and ids.count(bos) > 1)):
        return None
    return "begins with the beginning-of-text token twice: the tokenizer adds it, so the template must not"


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
        pieces = list(_pieces(ids, trained, prompt, tokenizer))
        if i == 0:
            _show_tokens("prompt", [p for p in pieces if p.in_prompt], console)
        _show_tokens(_name(segment, i), [p for p in pieces if not p.in_prompt], console)


@dataclass(frozen=True)
class _Piece:
    text: str
    trained: bool
    in_prompt: bool


def _pieces(ids: list[int], trained: list[bool], prompt: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[_Piece]:
    """Runs of tokens of one kind, each as the text that it adds to the text before it.

    Decoded alone, a run would lose its leading space with SentencePiece tokenizers. If the bytes of one character are in two runs,
    each part is shown as what its own bytes decode to.
    """
    before = ""
    end = 0
    for (is_trained, in_prompt), group in groupby(range(len(ids)), key=lambda i: (trained[i], i < prompt)):
        start, end = end, end + len(list(group))
        whole = cast(str, tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False))
        alone = cast(str, tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False))
        yield _Piece(whole[len(before) :] if whole.startswith(before) else alone, is_trained, in_prompt)
        before = whole


def _name(segment: Segment, i: int) -> str:
    if list(segment.grades) == [1, 0]:
        margin = f" (margin {segment.margin:g})" if segment.margin is not None and i == 0 else ""
        return ("chosen", "rejected")[i] + margin
    return f"completion {i} (grade {segment.grades[i]:g})" if segment.grades else "completion"


def _show_tokens(name: str, pieces: list[_Piece], console: Console) -> None:
    from rich.text import Text

    plain = console.no_color or not console.is_terminal
    line = Text(f"{name}: ", style="bold")
    for piece in pieces:
        text = _visible(piece.text)
        shown = f"{OPEN}{text}{CLOSE}" if piece.trained and plain else text
        line.append(shown, style="not bold green" if piece.trained else "not bold dim")
    console.print(line, soft_wrap=True)


def _visible(text: str) -> str:
    """The text with marks at its line breaks, and with escapes for other characters that cannot be seen (a tab, for instance)."""
    return "".join(
        f"{NEWLINE}\n" if c == "\n" else c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


def _show_prompts(
    found: Prompts, recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase, console: Console, shown: int
) -> None:
    _say(console, f"{counted(len(found), 'prompt')}; nothing in them is trained, and rollouts start after them")
    for number, prompt in enumerate(found, 1):
        ids = prompt.ids
        if reason := _doubled_bos(ids, tokenizer.bos_token_id, recipe.data.template.kind):
            raise found.rows[number - 1].error(f"the prompt {reason}", "prompt")
        if number <= shown:
            pieces = list(_pieces(ids, [False] * len(ids), len(ids), tokenizer))
            _show_tokens(f"prompt {number}, {len(ids)} tokens", pieces, console)
    _say_more(console, len(found) - shown, "prompt")
    _show_report(found.report, console)


def _show_report(report: dict[str, Any], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "", show_header=False)
    for source in report["sources"]:
        said = f"{source['format']}{' (recognised by its columns)' if source['recognised'] else ''}"
        said += f", {counted(source['rows_in'], 'row')}, {source['rows_out']:,} usable"
        table.add_row(escape(source["path"]), said)
    for key, value in report.items():
        if key not in ("sources", "quarantined", "truncated") and value not in ({}, None):
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            table.add_row(key.replace("_", " "), escape(", ".join(f"{k} {v}".strip() for k, v in pairs)))
    console.print(table)
