"""The pass over the rows: every accumulator sees every chunk once, and the report is what they say.

Called by `rlhf data stats` and `rlhf data lint`. Rows are measured as the recipe trains on them: in SFT a preference row is
its chosen completion, in PPO any row is its prompt. The report's keys are documented in docs/lint.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from rlhf.data.load import Stream
from rlhf.data.rows import Located, Quarantine, Row, kind_of, reason_of
from rlhf.data.stats.chunk import LengthsOf, characters, chunks
from rlhf.data.stats.inputs import Target
from rlhf.data.stats.labels import Labels
from rlhf.data.stats.lengths import LengthBias, SideLengths
from rlhf.data.stats.repeats import Repeats, leakage
from rlhf.data.stats.scripts import Scripts
from rlhf.data.stats.texts import Texts
from rlhf.recipe.schema import row_kinds

REPORT_VERSION = 1
LABEL_FALSE = "label false: not an answer to imitate"  # as `rlhf.tokens.dataset` says it


@dataclass(frozen=True)
class Counting:
    """How lengths are counted: a function, its unit, and whose tokens they are."""

    lengths_of: LengthsOf = characters
    unit: str = "characters"
    tokenizer: str | None = None
    special_tokens: Sequence[str] = ()


def measure(
    target: Target, counted: Counting | None = None, on_rows: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Everything that is measured of a target, as plain data for JSON. `on_rows` hears how many rows have been read.

    Raises DataError for files that cannot be read; rows that cannot are counted.
    """
    counted = counted or Counting()
    splits: dict[str, dict[str, Any]] = {}
    repeats: dict[str, Repeats] = {}
    for name, sources in target.splits.items():
        kinds = row_kinds(target.method) if target.method else None
        stream = Stream(sources, seed=target.seed, kinds=kinds, needs_rows=False)
        measures = _Split(target, counted)
        for chunk in chunks(measures.trained(stream), counted.lengths_of):
            measures.add(chunk)
            if on_rows is not None:
                on_rows(len(chunk.rows))
        splits[name] = _reading(stream, measures) | measures.report()
        repeats[name] = measures.repeats
    return {
        "version": REPORT_VERSION,
        "target": target.name,
        "built": target.built,
        "method": target.method,
        "unit": counted.unit,
        "tokenizer": counted.tokenizer,
        "max_length": target.max_length if counted.unit == "tokens" else None,
        "on_overflow": target.on_overflow,
        "splits": splits,
        "leakage": {f"{a}/{b}": leakage(repeats[a], repeats[b]) for a, b in combinations(splits, 2)},
    }


class _Split:
    """The accumulators of one split."""

    def __init__(self, target: Target, counted: Counting) -> None:
        self._target, self._counted = target, counted
        self._kinds: Counter[str] = Counter()
        self._untrainable: Counter[str] = Counter()
        self._untrainable_example: str | None = None
        self._converted: Counter[str] = Counter()
        self.rows = self.left_out = 0
        self.repeats = Repeats()
        self._lengths, self._bias = SideLengths(), LengthBias()
        self._scripts, self._labels = Scripts(), Labels()
        self._texts = Texts(counted.special_tokens)
        parts = (self.repeats, self._lengths, self._bias, self._scripts, self._labels, self._texts)
        self._accumulators: tuple[Any, ...] = parts

    def trained(self, rows: Any) -> Iterator[Located]:
        """The rows as the recipe trains on them; kinds are counted as they were read."""
        method = self._target.method
        for row in rows:
            kind = kind_of(row.data)
            self._kinds[kind] += 1
            data = as_trained(row.data, kind, method)
            if data is None:
                self.left_out += 1
                continue
            if data is not row.data:
                self._converted[f"{kind} -> {kind_of(data)}"] += 1
                row = replace(row, data=data)
            if method is not None and kind_of(data) not in row_kinds(method):
                self._untrainable[kind] += 1
                self._untrainable_example = self._untrainable_example or f"{row.file}:{row.row}"
            yield row

    def add(self, chunk: Any) -> None:
        self.rows += len(chunk.rows)
        for accumulator in self._accumulators:
            accumulator.add(chunk)

    def report(self) -> dict[str, Any]:
        limit = self._target.max_length if self._counted.unit == "tokens" else None
        return {
            "kinds": dict(self._kinds.most_common()),
            "converted": dict(self._converted),
            "untrainable": {"kinds": dict(self._untrainable), "example": self._untrainable_example},
            "refused_by_template": {"rows": self._lengths.refused, "example": self._lengths.refused_example},
            "lengths": self._lengths.report(),
            "over_length": self._lengths.over(limit) if limit is not None else None,
            "length_bias": self._bias.report(),
            "repeats": self.repeats.report(),
            "scripts": self._scripts.report(),
            "texts": self._texts.report(),
            "labels": self._labels.report(),
        }


def as_trained(row: Row, kind: str, method: str | None) -> Row | None:
    """What a stage makes of a row, as in `rlhf.tokens.dataset`; None where it leaves the row out.

    SFT takes the chosen completion of a preference and an unpaired one whose label is true; PPO the prompt of anything.
    """
    if method == "sft" and kind == "preference":
        return {"prompt": row["prompt"], "completion": row["chosen"]}
    if method == "sft" and kind == "unpaired":
        return {"prompt": row["prompt"], "completion": row["completion"]} if row["label"] else None
    if method == "ppo" and kind != "prompt":
        return {"prompt": row["prompt"]}
    return row


def _reading(stream: Stream, measures: _Split) -> dict[str, Any]:
    """The account of the reading: `rows_in + repeated = rows + dropped`, by source and by reason with an example each."""
    dropped: dict[str, dict[str, Any]] = {
        reason: {"rows": n, "example": _example(stream.quarantine, reason)} for reason, n in stream.dropped.items()
    }
    if measures.left_out:
        dropped[LABEL_FALSE] = {"rows": measures.left_out, "example": None}
    assert stream.rows_in + stream.repeated == measures.rows + sum(d["rows"] for d in dropped.values())
    return {
        "rows": measures.rows,
        "rows_in": stream.rows_in,
        "repeated_by_weight": stream.repeated,
        "dropped": dropped,
        "sources": stream.sources,
    }


def _example(quarantine: Quarantine, reason: str) -> str | None:
    """`file:row` of a row set aside for a reason; None when it is beyond the entries that are kept."""
    for entry in quarantine.entries:
        if reason_of(entry) == reason:
            return f"{entry['file']}:{entry['row']}" if entry["row"] is not None else str(entry["file"])
    return None
