"""Tokenised rows on disk, made once: flat files of token ids that training maps into memory and reads by row number.

`dataset` fills a folder. The sampler and the batches ask for row i, and nothing before it is read. A folder holds

    ids.bin       int32 [tokens]        every row's prompt and then its completions, end to end
    lengths.npy   int32 [parts]         tokens of each prompt and each completion, in the same order
    counts.npy    int32 [rows]          completions of each row; 0 for prompts alone
    grades.npy    float64 [completions] or empty where nothing is compared
    margins.npy   float64 [rows]        nan where unknown
    untrained.npy int64 [3 x spans]     completion (counted over all rows), start, stop of each span that is not trained
    files.npy     int32 [rows]          which file a row came from: an index into `files` of report.json
    rows.npy      int64 [rows]          its row number in that file
    texts.jsonl   for prompts alone: each prompt's text or messages, and the columns of its row that scorers asked for
    places.npy    int64 [rows]          where each line of texts.jsonl starts; empty where there are no such lines
    report.json   {files, report, columns}     what became of every row; the names of those columns

`cache` keeps the folder under a key of everything that the tokens depend on. Two processes that want it at the same time make it once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from rlhf.data.origins import OnDemand, Origins
from rlhf.data.rows import Located, Text, text_of
from rlhf.runs.manifest import NAME as MANIFEST
from rlhf.tokens.segments import Segment

_TYPES = {
    "lengths": np.int32,
    "counts": np.int32,
    "grades": np.float64,
    "margins": np.float64,
    "untrained": np.int64,
    "files": np.int32,
    "rows": np.int64,
    "places": np.int64,
}


class TokenWriter:
    """Fills a folder block by block. Memory holds the lengths and the row numbers, not the tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = self.completions = self.tokens = 0
        self._ids = (folder / "ids.bin").open("wb")
        self._texts = (folder / "texts.jsonl").open("wb")
        self._parts: dict[str, list[Any]] = {name: [] for name in _TYPES}
        self._files: dict[str, int] = {}
        self._columns: dict[str, None] = {}

    def add(self, segments: Sequence[Segment], rows: Sequence[Located]) -> None:
        """Append segments and the rows they come from."""
        margins = [np.nan if s.margin is None else s.margin for s in segments]
        grades = [g for s in segments for g in s.grades]
        first = self.completions
        for s in segments:
            spans = [n for i, found in enumerate(s.untrained) for span in found for n in (first + i, *span)]
            first += len(s.completion_ids)
            if spans:
                self._parts["untrained"].append(np.asarray(spans, dtype=np.int64))
        self._add([[s.prompt_ids, *s.completion_ids] for s in segments], rows, grades, margins)

    def add_prompts(self, prompts: Sequence[Sequence[int]], rows: Sequence[Located]) -> None:
        """Append prompts alone, with their texts and the columns that came with them. What JSON does not know becomes text."""
        self._add([[ids] for ids in prompts], rows, [], [np.nan] * len(rows))
        places = []
        for row in rows:
            columns = row.columns or {}
            self._columns |= dict.fromkeys(columns)
            places.append(self._texts.tell())
            line = json.dumps([row.data["prompt"], columns], ensure_ascii=False, default=str)
            self._texts.write(line.encode() + b"\n")
        self._parts["places"].append(np.asarray(places, dtype=np.int64))

    def close(self, report: dict[str, Any]) -> None:
        """Write the arrays and the report."""
        self._ids.close()
        self._texts.close()
        for name, kind in _TYPES.items():
            np.save(self.folder / f"{name}.npy", np.concatenate([np.empty(0, dtype=kind), *self._parts[name]]))
        about = {"files": list(self._files), "report": report, "columns": list(self._columns)}
        text = json.dumps(about, ensure_ascii=False, indent=1)
        (self.folder / "report.json").write_text(text + "\n", encoding="utf-8")

    def _add(
        self, parts: list[list[Sequence[int]]], rows: Sequence[Located], grades: list[float], margins: list[float]
    ) -> None:
        ids = np.fromiter((i for row in parts for part in row for i in part), dtype=np.int32)
        self._ids.write(ids.tobytes())
        files = [self._files.setdefault(row.file, len(self._files)) for row in rows]
        values = {
            "lengths": [len(part) for row in parts for part in row],
            "counts": [len(row) - 1 for row in parts],
            "grades": grades,
            "margins": margins,
            "files": files,
            "rows": [row.row for row in rows],
        }
        for name, value in values.items():
            self._parts[name].append(np.asarray(value, dtype=_TYPES[name]))
        self.rows += len(rows)
        self.completions += sum(len(row) - 1 for row in parts)
        self.tokens += len(ids)


class TokenFolder:
    """A folder that `TokenWriter` filled, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        self.report: dict[str, Any] = about["report"]
        self.columns: tuple[str, ...] = tuple(about["columns"])
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _TYPES}
        self.counts, self.grades, self.margins = arrays["counts"], arrays["grades"], arrays["margins"]
        self.origins = Origins(about["files"], arrays["files"], arrays["rows"])
        self.untrained = arrays["untrained"].reshape(-1, 3)
        self._ends = np.cumsum(arrays["lengths"], dtype=np.int64)  # of each part
        self._first = np.cumsum(self.counts + 1, dtype=np.int64) - self.counts - 1  # each row's first part
        size = (folder / "ids.bin").stat().st_size
        self._ids: Any = (
            np.memmap(folder / "ids.bin", dtype=np.int32, mode="r") if size else np.empty(0, dtype=np.int32)
        )
        self._places = arrays["places"]
        self._texts: Any = np.memmap(folder / "texts.jsonl", dtype=np.uint8, mode="r") if len(self._places) else b""
        self.fingerprint = _fingerprint(folder, with_texts=bool(self.columns), with_spans=len(self.untrained) > 0)

    def __len__(self) -> int:
        return len(self.counts)

    def parts(self, index: int) -> list[list[int]]:
        """A row's prompt and completions as ids."""
        first, count = int(self._first[index]), int(self.counts[index])
        ends = self._ends[first : first + count + 1].tolist()
        start = int(self._ends[first - 1]) if first else 0
        ids = self._ids[start : ends[-1]].tolist()
        cuts = [0, *(end - start for end in ends)]
        return [ids[a:b] for a, b in pairwise(cuts)]

    def text(self, index: int) -> tuple[Text, dict[str, Any]]:
        """A prompt's text or messages, and the columns that came with it."""
        start = int(self._places[index])
        end = int(self._places[index + 1]) if index + 1 < len(self._places) else len(self._texts)
        content, columns = json.loads(bytes(self._texts[start:end]))
        return content, columns

    @property
    def num_tokens(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of each row, as `Segment.num_tokens` counts them."""
        last = self._ends[self._first + self.counts] if len(self) else np.empty(0, dtype=np.int64)
        return np.diff(last, prepend=0)

    @property
    def trained_tokens(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of each row's completions that are trained."""
        counted: np.ndarray[Any, np.dtype[np.int64]] = self._ends[self._first + self.counts] - self._ends[self._first]
        completion, start, stop = self.untrained.T
        row = np.searchsorted(np.cumsum(self.counts), completion, side="right")
        np.subtract.at(counted, row, stop - start)
        return counted


def _fingerprint(folder: Path, *, with_texts: bool, with_spans: bool) -> str:
    """A hash of the tokens and numbers of a finished folder, and of the columns that scorers read. It does not depend on where
    the rows came from.
    """
    sealed = json.loads((folder / MANIFEST).read_text())["files"]
    names = ["ids.bin", "lengths.npy", "counts.npy", "grades.npy", "margins.npy"]
    names += ["texts.jsonl"] * with_texts + ["untrained.npy"] * with_spans
    return hashlib.sha256("".join(sealed[name]["sha256"] for name in names).encode()).hexdigest()


class Segments(OnDemand[Segment]):
    """The rows of a token folder as segments. Each is read when it is asked for."""

    def __init__(self, folder: TokenFolder | None = None) -> None:
        self._folder = folder
        if folder is not None:
            self._first = np.cumsum(folder.counts, dtype=np.int64) - folder.counts  # each row's first completion

    def __len__(self) -> int:
        return 0 if self._folder is None else len(self._folder)

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of each segment."""
        return np.empty(0, dtype=np.int64) if self._folder is None else self._folder.num_tokens

    @property
    def trained_tokens(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of each segment's completions that are trained."""
        return np.empty(0, dtype=np.int64) if self._folder is None else self._folder.trained_tokens

    @property
    def fingerprint(self) -> str:
        """A hash of every token and number."""
        return "" if self._folder is None else self._folder.fingerprint

    def _at(self, index: int) -> Segment:
        assert self._folder is not None
        prompt, *completions = self._folder.parts(index)
        first, margin = int(self._first[index]), float(self._folder.margins[index])
        grades = self._folder.grades[first : first + len(completions)].tolist() if len(self._folder.grades) else ()
        return Segment(
            prompt, completions, grades, None if np.isnan(margin) else margin, self._untrained(first, len(completions))
        )

    def _untrained(self, first: int, count: int) -> list[list[tuple[int, int]]] | tuple[()]:
        """The spans that are not trained, for each of some completions; empty where there are none."""
        assert self._folder is not None
        spans = self._folder.untrained
        start, stop = np.searchsorted(spans[:, 0], [first, first + count]) if len(spans) else (0, 0)
        if start == stop:
            return ()
        found: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        for completion, begin, end in spans[start:stop].tolist():
            found[completion - first].append((begin, end))
        return found


class Prompt(NamedTuple):
    """A prompt to sample completions of: its row's text or messages, the ids that generation starts from, and the columns of its
    row that the scorers asked for.
    """

    content: Text
    ids: list[int]
    columns: Mapping[str, Any] = MappingProxyType({})

    @property
    def text(self) -> str:
        """The prompt as one text, for reward functions and reports."""
        return text_of(self.content)


class Prompts(OnDemand[Prompt]):
    """The prompts of a folder that `add_prompts` filled, in file order. Each is read when it is asked for."""

    def __init__(self, folder: TokenFolder | None = None) -> None:
        nothing = {"sources": [], "rows_in": 0, "rows_out": 0, "dropped": {}}
        self._folder = folder
        self.rows: Sequence[Located] = Origins() if folder is None else folder.origins
        self.report: dict[str, Any] = nothing if folder is None else folder.report
        self.fingerprint = "" if folder is None else folder.fingerprint
        self.columns: tuple[str, ...] = () if folder is None else folder.columns  # those that any prompt came with

    def __len__(self) -> int:
        return 0 if self._folder is None else len(self._folder)

    @property
    def items(self) -> Sequence[Prompt]:
        """What a stage starts from."""
        return self

    def _at(self, index: int) -> Prompt:
        assert self._folder is not None
        content, columns = self._folder.text(index)
        return Prompt(content, self._folder.parts(index)[0], columns)
