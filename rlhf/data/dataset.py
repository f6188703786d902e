"""A training stage's rows as segments, with an account of every row that did not become one.

Joins `load` and `template` for `train`; `prompts` does the same for PPO, generation and evaluation.

Rows over `max_length` (tokens of the prompt plus each completion) are never dealt with in silence, as TRL does:
    error      the run stops, naming the first such row and how many there are
    drop       the row is left out and counted
    truncate   a completion is cut at its right end, and so ends without EOS; a row whose prompt leaves no room for one
               token, or whose completions are no longer different, is left out and counted. Prompts are never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from rlhf.data.load import Loaded, load
from rlhf.data.rows import Kind, Located, Text, kind_of, text_of
from rlhf.data.segments import Segment
from rlhf.data.template import Renderer
from rlhf.errors import DataError
from rlhf.recipe.sections import DataSection, SourceSection, TemplateSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overflow = Literal["error", "drop", "truncate"]

# The kinds of row each method trains on; prompts can be had from any kind.
KINDS: dict[str, frozenset[str]] = {
    "sft": frozenset({"demonstration"}),
    "reward": frozenset({"preference", "ranking"}),
    "dpo": frozenset({"preference"}),
    "ppo": frozenset({"prompt"}),
}


@dataclass(frozen=True)
class TokenizedRows:
    """Segments in file order, the rows they came from (one each), and the report."""

    segments: list[Segment] = field(default_factory=list)
    rows: list[Located] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


class Prompts(list[tuple[Text, list[int]]]):
    """(prompt, its ids) pairs, with the report beside them."""

    report: dict[str, Any]


def tokenize(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    kinds: Collection[str],
    which: Literal["train", "eval"] = "train",
) -> TokenizedRows:
    """The rows of `data.train` or `data.eval` as segments; nothing for an eval section without sources.

    `kinds` are the canonical kinds that the stage trains on. Where only demonstrations fit, a preference row's chosen
    completion is one, and the report says so. The report's `rows_in = rows_out + sum(dropped)`. Raises DataError for
    rows of another kind, for over-long rows under `on_overflow: error`, and when no row is left.
    """
    if "prompt" in kinds:
        raise ValueError("prompt-only rows hold nothing to train on: use prompts()")
    sources = data.train if which == "train" else data.eval
    loaded = load(sources)
    rows, converted = _of_kinds(loaded.rows, kinds)
    renderer = Renderer(tokenizer, data.template)
    dropped = Counter(loaded.dropped)
    segments, kept = _segments(rows, renderer, dropped)
    fitted, lengths = _fit(segments, kept, data.max_length, data.on_overflow, f"data.{which}", dropped)
    if sources and not fitted:
        raise DataError(sources[0].path, f"no row is left to train on: {_listed(dropped)}")
    report = _report(loaded, dropped, len(fitted), renderer) | {
        "converted": converted,
        "over_length": lengths,
        "truncated": lengths["truncated"],
        "tokens": sum(s.num_tokens for s, _ in fitted),
    }
    return TokenizedRows([s for s, _ in fitted], [r for _, r in fitted], report)


def prompts(
    sources: Sequence[SourceSection],
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSection,
    max_length: int | None = None,
    on_overflow: Overflow = "error",
) -> Prompts:
    """The distinct prompts of rows of any kind, in order, with the ids that generation starts from.

    Repeated prompts are dropped and counted, and so are those over `max_length` tokens unless that is an error
    (a prompt is never cut). The counts are in `.report`. Raises DataError as `tokenize` does.
    """
    loaded = load(sources)
    renderer = Renderer(tokenizer, template)
    first: dict[str, Located] = {}
    for row in loaded.rows:
        first.setdefault(text_of(row.data["prompt"]), row)
    rows = list(first.values())
    dropped = Counter(loaded.dropped)
    dropped["repeated prompt"] = len(loaded.rows) - len(rows)
    out = Prompts()
    over: list[tuple[Located, int]] = []
    for row, ids in zip(rows, _prompt_ids(rows, renderer), strict=True):
        if max_length is not None and len(ids) > max_length:
            over.append((row, len(ids)))
        else:
            out.append((row.data["prompt"], ids))
    if over and on_overflow == "error":
        raise _too_long(over, len(rows), max_length or 0, "prompts")
    dropped["over max_length"] = len(over)
    if sources and not out:
        raise DataError(sources[0].path, f"no prompt is left: {_listed(dropped)}")
    out.report = _report(loaded, dropped, len(out), renderer)
    return out


def _of_kinds(rows: list[Located], kinds: Collection[str]) -> tuple[list[Located], str | None]:
    """Rows of the kinds wanted; chosen completions as demonstrations where those alone are."""
    converted = None
    out = []
    for row in rows:
        kind: Kind = kind_of(row.data)
        if kind not in kinds:
            if kind != "preference" or "demonstration" not in kinds:
                wanted = " or ".join(sorted(kinds))
                raise row.error(f"this is a {kind} row; the stage trains on {wanted} rows (see format: and columns:)")
            converted = "preference -> demonstration (chosen)"
            row = replace(row, data={"prompt": row.data["prompt"], "completion": row.data["chosen"]})
        out.append(row)
    return out, converted


def _segments(rows: list[Located], renderer: Renderer, dropped: Counter[str]) -> tuple[list[Segment], list[Located]]:
    """All rows that the template takes, tokenised in one go. Raises when it takes none of them."""
    rendered, kept = [], []
    error: DataError | None = None
    for row in rows:
        try:
            rendered.append(renderer.render(row.data))
            kept.append(row)
        except DataError as e:
            error = error or row.error(e.reason, e.field)
            dropped[e.reason.split(": ")[0]] += 1
    if error and not kept:
        raise error
    return renderer.encode(rendered), kept


def _prompt_ids(rows: list[Located], renderer: Renderer) -> list[list[int]]:
    try:
        return renderer.batch_prompt_ids([row.data["prompt"] for row in rows])
    except DataError:
        for row in rows:  # find the row to name
            try:
                renderer.render_prompt(row.data["prompt"])
            except DataError as e:
                raise row.error(e.reason, e.field) from None
        raise


def _fit(
    segments: list[Segment], rows: list[Located], limit: int, policy: Overflow, name: str, dropped: Counter[str]
) -> tuple[list[tuple[Segment, Located]], dict[str, Any]]:
    """The segments that fit, and what became of the others."""
    fitted: list[tuple[Segment, Located]] = []
    over: list[tuple[Located, int]] = []
    truncated = 0
    for segment, row in zip(segments, rows, strict=True):
        length = len(segment.prompt_ids) + max(map(len, segment.completion_ids))
        if length <= limit:
            fitted.append((segment, row))
            continue
        over.append((row, length))
        room = limit - len(segment.prompt_ids)
        if policy != "truncate":
            dropped["over max_length"] += policy == "drop"
        elif room < 1:
            dropped["prompt leaves no room under max_length"] += 1
        else:
            cut = [list(c[:room]) for c in segment.completion_ids]
            if len(cut) > 1 and all(c == cut[0] for c in cut):
                dropped["completions equal once truncated"] += 1
            else:
                truncated += 1
                fitted.append((replace(segment, completion_ids=cut), row))
    if over and policy == "error":
        raise _too_long(over, len(rows), limit, name)
    return fitted, {"policy": policy, "rows": len(over), "truncated": truncated, "dropped": len(over) - truncated}


def _too_long(over: list[tuple[Located, int]], total: int, limit: int, name: str) -> DataError:
    row, length = over[0]
    longest = max(n for _, n in over)
    return row.error(
        f"{length} tokens, over max_length {limit}; so are {len(over)} of {total} rows of {name} (longest {longest}). "
        "Raise max_length, or say on_overflow: drop or truncate"
    )


def _report(loaded: Loaded, dropped: Counter[str], rows_out: int, renderer: Renderer) -> dict[str, Any]:
    report = {
        "sources": loaded.sources,
        "rows_in": loaded.quarantine.rows_in,
        "rows_out": rows_out,
        "dropped": {k: n for k, n in dropped.items() if n},
        "quarantined": loaded.dropped,
        "boundary_splits": renderer.boundary_splits,
        "special_tokens_in_text": renderer.special_tokens_in_text,
    }
    assert report["rows_in"] == rows_out + sum(dropped.values()), report
    return report


def _listed(counts: Counter[str]) -> str:
    return "; ".join(f"{n} x {reason}" for reason, n in counts.most_common() if n) or "the sources are empty"
