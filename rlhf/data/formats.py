"""One file row to one canonical row, or a reason why not.

The second step of the pipeline, after `sources`: it knows what the published data sets look like, and nothing later
does. A row that breaks its format's rules raises a DataError, which the caller puts into the quarantine; a file without
the columns that its format needs is refused whole (see `recognise`).

Different from the reference code: KoChatGPT's `ranking` is an order (ranking[0] is the INDEX of the best completion),
not the rank of each completion, which would flip the pairs of the two 3-cycles; that both dialogues of a pair share a
prompt is checked, not assumed; nothing is filled in for what is missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from rlhf.data.messages import as_messages, conversational_completion, conversational_prompt, dialogue_pair, last_turn
from rlhf.data.rows import Located, Row, text_of
from rlhf.errors import DataError
from rlhf.recipe.sections import Format

ASSISTANT = "\n\nAssistant:"
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
RANKS = (
    "ranks give each completion's place; a ranking is an order: ranking[0] is the index of the best completion, "
    "then the next. Write the order into a column `ranking`"
)


class Fields:
    """A row's fields under their canonical names, each read with its rules. Raises DataError with its place."""

    def __init__(self, located: Located, columns: Mapping[str, str] | None) -> None:
        self.located = located
        self.columns = dict(columns or {})
        taken = set(self.columns.values())
        self.data: Row = {k: v for k, v in located.data.items() if k not in taken}
        for name, column in self.columns.items():
            if column in located.data:
                self.data[name] = located.data[column]

    def error(self, field: str, reason: str) -> DataError:
        return self.located.error(reason, self.columns.get(field, field))

    def get(self, field: str) -> Any:
        if self.data.get(field) is None:
            raise self.error(field, "is null" if field in self.data else "is missing")
        return self.data[field]

    def has(self, field: str) -> bool:
        return self.data.get(field) is not None

    def text(self, field: str) -> str:
        value = self.get(field)
        if not isinstance(value, str):
            raise self.error(field, f"must be text, not {type(value).__name__}")
        if not value.strip():
            raise self.error(field, "is empty")
        return value

    def list(self, field: str) -> list[Any]:
        """A list; a CSV cell may hold it as JSON."""
        value = self.get(field)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                raise self.error(field, "must be a list") from None
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, not {type(value).__name__}")
        return value

    def number(self, field: str, value: Any) -> float:
        """A finite number; a CSV cell holds it as text."""
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(field, f"must be a finite number: {value!r}")
        return number


def convert(located: Located, format: Format, columns: Mapping[str, str] | None = None) -> Row:
    """The canonical row (see `rows`), with its fields and no others. Raises DataError for a row to be quarantined."""
    return _CONVERTERS[format](Fields(located, columns))


def _kochatgpt_rm(f: Fields) -> Row:
    names = sorted((k for k in f.data if re.fullmatch(r"completion_\d+", k) and f.data[k] is not None), key=_number_of)
    if [_number_of(n) for n in names] != list(range(len(names))) or len(names) < 2:
        raise f.error("completion_0", "needs completion_0, completion_1, ... without a gap")
    completions = [f.text(n) for n in names]
    return {"prompt": f.text("prompt"), "completions": completions, "ranking": _order(f, len(completions))}


def _stack_exchange_paired(f: Fields) -> Row:
    pair = {"prompt": f"Question: {f.text('question')}\n\nAnswer: ", "chosen": f.text("response_j")}
    return _distinct(f, pair | {"rejected": f.text("response_k")}, "response_k")


def _hh(f: Fields) -> Row:
    chosen, rejected = f.text("chosen"), f.text("rejected")
    prompts, answers = [], []
    for name, dialogue in (("chosen", chosen), ("rejected", rejected)):
        at = dialogue.rfind(ASSISTANT)
        if at < 0:
            raise f.error(name, "holds no assistant turn")
        prompts.append(dialogue[: at + len(ASSISTANT)])
        answers.append(dialogue[at + len(ASSISTANT) :])
        if not answers[-1].strip():
            raise f.error(name, "is empty after the last assistant turn")
    if prompts[0] != prompts[1]:
        raise f.error("rejected", "does not share chosen's prompt")
    return _distinct(f, {"prompt": prompts[0], "chosen": answers[0], "rejected": answers[1]}, "rejected")


def _alpaca(f: Fields) -> Row:
    blank = not f.has("input") or (isinstance(f.data["input"], str) and not f.data["input"].strip())
    extra = "" if blank else f.text("input")
    filled = (ALPACA_INPUT if extra else ALPACA).split("{instruction}")
    prompt = filled[0] + f.text("instruction") + filled[1].replace("{input}", extra)
    return {"prompt": prompt, "completion": f.text("output")}


def _preference(f: Fields) -> Row:
    if not f.has("prompt") and isinstance(f.get("chosen"), list):
        row = dialogue_pair(f)
    else:
        prompt = _prompt(f)["prompt"]
        row = {"prompt": prompt} | {k: _completion(f, k, f.get(k), prompt) for k in ("chosen", "rejected")}
    if f.has("margin") and f.data["margin"] != "":
        row["margin"] = f.number("margin", f.data["margin"])
        if row["margin"] < 0:
            raise f.error("margin", "is negative, so rejected would be the better one")
    return _distinct(f, row, "rejected")


def _ranking(f: Fields) -> Row:
    prompt = _prompt(f)["prompt"]
    completions = [_completion(f, "completions", c, prompt) for c in f.list("completions")]
    if len(completions) < 2:
        raise f.error("completions", "needs two completions at least")
    row: Row = {"prompt": prompt, "completions": completions}
    if not f.has("scores"):
        return row | {"ranking": _order(f, len(completions))}
    scores = [f.number("scores", s) for s in f.list("scores")]
    if len(scores) != len(completions):
        raise f.error("scores", f"needs one score a completion: {len(scores)} for {len(completions)}")
    if f.has("ranking"):  # scores say more than an order; they must agree
        order = _order(f, len(completions))
        if any(scores[a] < scores[b] for a, b in pairwise(order)):
            raise f.error("ranking", "contradicts scores")
    return row | {"scores": scores}


def _demonstration(f: Fields) -> Row:
    if not f.has("prompt") and f.has("messages"):
        return last_turn(f)
    prompt = _prompt(f)["prompt"]
    return {"prompt": prompt, "completion": _completion(f, "completion", f.get("completion"), prompt)}


def _prompt(f: Fields) -> Row:
    if isinstance(f.get("prompt"), list):
        return {"prompt": conversational_prompt(f, "prompt", as_messages(f, "prompt", f.data["prompt"]))}
    return {"prompt": f.text("prompt")}


def _completion(f: Fields, field: str, value: Any, prompt: Any) -> Any:
    if isinstance(prompt, list):
        return conversational_completion(f, field, value)
    if not isinstance(value, str):
        raise f.error(field, f"must be text as the prompt is, not {type(value).__name__}")
    if not value.strip():
        raise f.error(field, "is empty")
    return value


def _order(f: Fields, n: int) -> list[int]:
    if f.columns.get("ranking") == "ranks" or ("ranks" in f.data and not f.has("ranking")):
        raise f.located.error(RANKS, "ranks")
    order = f.list("ranking")
    if any(isinstance(i, bool) or not isinstance(i, int) for i in order) or sorted(order) != list(range(n)):
        raise f.error("ranking", f"is not an order of the {n} completions' indices: {order}")
    return list(order)


def _distinct(f: Fields, row: Row, field: str) -> Row:
    if text_of(row["chosen"]) == text_of(row["rejected"]):
        raise f.error(field, "is equal to chosen")
    return row


def _number_of(name: str) -> int:
    return int(name.rpartition("_")[2])


_CONVERTERS: dict[Format, Callable[[Fields], Row]] = {
    "kochatgpt_rm": _kochatgpt_rm,
    "stack_exchange_paired": _stack_exchange_paired,
    "hh": _hh,
    "alpaca": _alpaca,
    "preference": _preference,
    "ranking": _ranking,
    "demonstration": _demonstration,
    "prompt": _prompt,
}
