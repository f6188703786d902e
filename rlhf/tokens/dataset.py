"""A training stage's rows as segments, with an account of every row that did not become one.

`tokenize` joins `data.load`, `template` and `cache` for training. `prompts` does the same for PPO, generation and evaluation. Rows are read as
a stream, tokenised once, and kept on disk by `cache`. A second process, or a second run, finds them there.

The length of a row is the tokens of its prompt and its longest completion. `on_overflow` says what happens to a row over `max_length`.
TRL changes such rows without a message; here each one is counted.
    error      the run stops, and names the first such row and how many there are
    drop       the row is left out
    truncate   its completions are cut at the right end, so they lose EOS. The row is left out if its prompt leaves no room for one
               token, or if its completions are then equal. Prompts are never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.data.load import Stream
from rlhf.data.origins import Origins
from rlhf.data.rows import LABEL_FALSE, Located, chunks, kind_of, text_of, trained_as
from rlhf.errors import DataError
from rlhf.recipe.arguments import NONE, Columns
from rlhf.recipe.sections import DataSection, SourceSection, TemplateSection
from rlhf.tokens.cache import token_folder
from rlhf.tokens.segments import Segment
from rlhf.tokens.store import Prompts, Segments, TokenWriter
from rlhf.tokens.template import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overflow = Literal["error", "drop", "truncate"]

AT_ONCE = 1024  # rows tokenised in one call: the tokenizer's own objects take a hundred times the memory of the ids


@dataclass(frozen=True)
class TokenizedRows:
    """Segments in file order, where each came from, and the report. The first two are read from disk when they are asked for."""

    segments: Sequence[Segment] = field(default_factory=Segments)
    rows: Sequence[Located] = field(default_factory=Origins)
    report: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""  # a hash of every token and number: a resumed run must see exactly the same rows

    @property
    def items(self) -> Sequence[Segment]:
        """What a stage trains on."""
        return self.segments


def tokenize(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    kinds: Collection[str],
    which: Literal["train", "eval"] = "train",
    *,
    seed: int,
    name: str | None = None,
) -> TokenizedRows:
    """The rows of `data.train` or `data.eval` as segments. An eval section without sources gives none. `name` is what messages call
    the rows, if they stand under another key.

    `kinds` are the kinds of row that the stage trains on; `data.rows.trained_as` says what it makes of the other kinds, and the report
    says when that happened. In the report, `rows_in + repeated = rows_out + sum(dropped)`. Raises DataError for rows of another kind,
    for rows that are too long under `on_overflow: error`, and when no row is left.
    """
    if "prompt" in kinds:
        raise ValueError("rows that are only a prompt hold nothing to train on: use prompts()")
    sources = data.train if which == "train" else data.eval
    if not sources:
        return TokenizedRows(report={"sources": [], "rows_in": 0, "rows_out": 0, "dropped": {}})
    what = {"kinds": sorted(kinds), "max_length": data.max_length, "on_overflow": data.on_overflow}

    def make(folder: Path) -> None:
        work = _CountedStream(sources, Renderer(tokenizer, data.template), seed, kinds)
        fit = _Fit(data.max_length, data.on_overflow, name or f"data.{which}")
        writer = TokenWriter(folder)
        for chunk in work.chunks(kinds):
            writer.add(*fit(*work.segments(chunk), work.dropped))
        fit.finish(work.seen)
        work.needs_any(writer.rows, "row is left to train on")
        lengths = {"policy": data.on_overflow, "rows": fit.over, "truncated": fit.truncated}
        more = {"converted": work.converted, "over_length": lengths | {"dropped": fit.over - fit.truncated}}
        counts = {"truncated": fit.truncated, "completions": writer.completions, "tokens": writer.tokens}
        writer.close(work.report(writer.rows) | more | counts)

    folder = token_folder(sources, tokenizer, data.template, what, seed, make)
    return TokenizedRows(Segments(folder), folder.origins, folder.report, folder.fingerprint)


def prompts(
    sources: Sequence[SourceSection],
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSection,
    max_length: int | None = None,
    on_overflow: Overflow = "error",
    *,
    seed: int,
    keep: Columns = NONE,
) -> Prompts:
    """The distinct prompts of rows of any kind, in order, with the ids that generation starts from and the columns to `keep`.

    Repeated prompts are dropped and counted; a prompt with another value in a column that a scorer names is another one. Prompts over
    `max_length` tokens are dropped and counted too, unless `on_overflow` is `error`; a prompt is never cut. The counts are in `.report`.
    Raises DataError as `tokenize` does, and RecipeError for a source without a needed column.
    """
    if not sources:
        return Prompts()

    def make(folder: Path) -> None:
        work = _CountedStream(sources, Renderer(tokenizer, template), seed, {"prompt"}, keep)
        fit = _Fit(max_length, "error" if on_overflow == "error" else "drop", "prompts")
        writer = TokenWriter(folder)
        for chunk in work.distinct_prompts():
            ids = _prompt_ids(chunk, work.renderer)
            kept = [fit.fits(len(i), row, work.dropped) for i, row in zip(ids, chunk, strict=True)]
            writer.add_prompts(
                [i for i, k in zip(ids, kept, strict=True) if k], [row for row, k in zip(chunk, kept, strict=True) if k]
            )
        fit.finish(work.seen)
        work.needs_any(writer.rows, "prompt is left")
        writer.close(work.report(writer.rows))

    what = {"prompts": True, "max_length": max_length, "on_overflow": on_overflow, "columns": keep.as_key()}
    return Prompts(token_folder(sources, tokenizer, template, what, seed, make))


class _CountedStream:
    """The rows of some sources on their way to tokens, with a count of what became of each."""

    def __init__(
        self,
        sources: Sequence[SourceSection],
        renderer: Renderer,
        seed: int,
        kinds: Collection[str],
        keep: Columns = NONE,
    ) -> None:
        self.sources, self.renderer = sources, renderer
        self.stream, self.keep = Stream(sources, seed=seed, kinds=kinds, keep=keep), keep
        self.dropped: Counter[str] = Counter()
        self.converted: str | None = None
        self.seen = 0  # rows that reached the tokenizer
        self._refused: DataError | None = None

    def chunks(self, kinds: Collection[str]) -> Iterator[list[Located]]:
        """The rows as the stage trains on them (see `trained_as`), in lists. Raises DataError for a row of another kind."""
        for chunk in chunks(self.stream, AT_ONCE):
            yield [row for row in (self._of_kind(row, kinds) for row in chunk) if row is not None]

    def distinct_prompts(self) -> Iterator[list[Located]]:
        """The first row of every prompt; a prompt with another value in a column that a scorer names is another one."""
        met: set[int] = set()
        for chunk in chunks(self.stream, AT_ONCE):
            rows = []
            for row in chunk:
                named = [(row.columns or {}).get(name) for name in sorted(self.keep.names)]
                key = hash((text_of(row.data["prompt"]), repr(named)))
                if key not in met:
                    met.add(key)
                    rows.append(row)
            self.dropped["repeated prompt"] += len(chunk) - len(rows)
            self.seen += len(rows)
            yield rows

    def _of_kind(self, row: Located, kinds: Collection[str]) -> Located | None:
        data, kind = trained_as(row.data, kinds), kind_of(row.data)
        if kind in kinds:
            return row
        if data is row.data:
            wanted = " or ".join(sorted(kinds))
            raise row.error(f"this is a {kind} row; the stage trains on {wanted} rows (see format: and columns:)")
        self.converted = f"{kind} -> demonstration ({'chosen' if kind == 'preference' else 'label true'})"
        if data is None:
            self.dropped[LABEL_FALSE] += 1
            return None
        return replace(row, data=data)

    def segments(self, rows: list[Located]) -> tuple[list[Segment], list[Located]]:
        """The rows that the template takes, tokenised together. The others are counted."""
        rendered, kept = [], []
        for row in rows:
            try:
                rendered.append(self.renderer.render(row.data))
                kept.append(row)
            except DataError as e:
                self._refused = self._refused or row.error(e.reason, e.field)
                self.dropped[e.reason.split(": ")[0]] += 1
        self.seen += len(kept)
        return self.renderer.encode(rendered), kept

    def needs_any(self, rows_out: int, what: str) -> None:
        """Raises DataError, with the reasons, when no row is left."""
        if self._refused and not self.seen:
            raise self._refused
        if not rows_out:
            counts = Counter(self.stream.dropped) + self.dropped
            why = "; ".join(f"{n} x {reason}" for reason, n in counts.most_common() if n) or "the sources are empty"
            raise DataError(self.sources[0].path, f"no {what}: {why}")

    def report(self, rows_out: int) -> dict[str, Any]:
        """What became of every row."""
        dropped = Counter(self.stream.dropped) + self.dropped
        rows_in, repeated = self.stream.rows_in, self.stream.repeated
        assert rows_in + repeated == rows_out + dropped.total(), (rows_in, repeated, rows_out, dropped)
        return {
            "sources": self.stream.sources,
            "rows_in": rows_in,
            "repeated": repeated,
            "rows_out": rows_out,
            "dropped": {reason: n for reason, n in dropped.items() if n},
            "quarantined": self.stream.quarantine.counts(),
            "template": self.renderer.kind,
            "boundary_splits": self.renderer.boundary_splits,
            "special_tokens_in_text": self.renderer.special_tokens_in_text,
            "unfinished": self.renderer.unfinished,
            "marks_ignored": self.renderer.marks_ignored,
        }


class _Fit:
    """The rule for rows over `max_length`, and a count of what it did."""

    def __init__(self, limit: int | None, policy: Overflow, name: str) -> None:
        self.limit, self.policy, self.name = limit, policy, name
        self.over = self.truncated = self.longest = 0
        self._first: tuple[Located, int] | None = None

    def __call__(
        self, segments: Sequence[Segment], rows: Sequence[Located], dropped: Counter[str]
    ) -> tuple[list[Segment], list[Located]]:
        """The segments that fit, some of them after a cut, and their rows."""
        fitted: list[tuple[Segment, Located]] = []
        for segment, row in zip(segments, rows, strict=True):
            length = len(segment.prompt_ids) + max(map(len, segment.completion_ids))
            if self.policy != "truncate" or length <= (self.limit or length):
                if self.fits(length, row, dropped):
                    fitted.append((segment, row))
                continue
            self.over += 1
            if cut := self._cut(segment, dropped):
                self.truncated += 1
                fitted.append((cut, row))
        return [segment for segment, _ in fitted], [row for _, row in fitted]

    def fits(self, length: int, row: Located, dropped: Counter[str]) -> bool:
        """Whether a row of so many tokens stays."""
        if self.limit is None or length <= self.limit:
            return True
        self.over += 1
        self.longest = max(self.longest, length)
        self._first = self._first or (row, length)
        dropped["over max_length"] += self.policy == "drop"
        return False

    def finish(self, seen: int) -> None:
        """Raises DataError if rows were too long and the policy is `error`. Called when all rows are counted."""
        if self._first is None or self.policy != "error":
            return
        row, length = self._first
        raise row.error(
            f"{length} tokens, over max_length {self.limit}; {self.over} of {seen} rows of {self.name} are too long "
            f"(longest {self.longest}). Raise max_length, or say on_overflow: drop or truncate"
        )

    def _cut(self, segment: Segment, dropped: Counter[str]) -> Segment | None:
        room = (self.limit or 0) - len(segment.prompt_ids)
        if room < 1:
            dropped["prompt leaves no room under max_length"] += 1
            return None
        cut = [list(c[:room]) for c in segment.completion_ids]
        if len(cut) > 1 and all(c == cut[0] for c in cut):
            dropped["completions equal once truncated"] += 1
            return None
        untrained = [[(a, min(b, room)) for a, b in spans if a < room] for spans in segment.untrained]
        if any(sum(b - a for a, b in spans) == len(ids) for spans, ids in zip(untrained, cut, strict=False)):
            dropped["max_length leaves no trained token"] += 1
            return None
        return replace(segment, completion_ids=cut, untrained=untrained)


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
