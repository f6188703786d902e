"""Where rows come from: files, globs, folders of parquet or arrow splits, and `embedded:NAME`.

The first step of the pipeline: a recipe's SourceSection becomes located raw rows. `readers` has a module for each kind of file.
For every file, `rows_in = rows read + rows quarantined`.

Unlike `datasets.load_dataset`, it keeps no cache, runs no script and guesses no schema from the first block. Where a row is bad, only
that row is lost.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from rlhf.data.readers.csv_rows import read_csv
from rlhf.data.readers.json_rows import read_json
from rlhf.data.readers.names import SUFFIXES, TABLES, suffix_of
from rlhf.data.readers.nested import unnest
from rlhf.data.readers.text_files import TextFile
from rlhf.data.rows import Located, Quarantine, Row
from rlhf.data.where import select
from rlhf.errors import DataError
from rlhf.recipe.sections import Format, SourceSection


def read(source: SourceSection, quarantine: Quarantine) -> Iterator[Located]:
    """The source's rows in order, file by file; what cannot be read goes to the quarantine.

    `max_rows` takes the first so many readable rows and looks no further. Raises DataError for a missing file, a file
    that is not what its name says, or a folder without the split.
    """
    rows = select(_rows(source, quarantine), source, quarantine)
    yield from islice(rows, source.max_rows)


def _rows(source: SourceSection, quarantine: Quarantine) -> Iterator[Located]:
    if is_on_hub(source):
        from rlhf.data.readers.hub import read_hub

        rows = read_hub(source, quarantine)
    else:
        if source.config is not None:
            raise DataError(
                source.path, "config: names a part of a data set of the hub; this is a local file or folder"
            )
        files = files_of(source)
        rows = (located for path in files for located in read_file(path, quarantine, source.format))
        if len(files) > 1 and all(suffix_of(path) == ".xml" for path in files):  # each site counts its questions from 1
            rows = (replace(located, group=f"{located.file}:{located.group}") for located in rows)
    if source.format not in (None, "squad", "oasst"):
        return rows
    return unnest(rows, source.format, quarantine)


def is_on_hub(source: SourceSection) -> bool:
    """Whether the path is the name of a data set of the hub, `owner/name`, and no file or folder."""
    path = Path(source.path)
    if os.path.exists(path) or source.path.startswith("embedded:") or glob.has_magic(source.path):
        return False
    return (
        suffix_of(path) not in SUFFIXES
        and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source.path) is not None
    )


def files_of(source: SourceSection) -> list[Path]:
    """The files that a source names, in order."""
    from rlhf.embedded import resolve

    text = resolve(source.path)
    path = Path(text)
    if os.path.isdir(path):  # unlike Path's, no error where the system refuses to look
        return _split_files(path, source.split)
    if source.split is not None:
        raise DataError(
            source.path, "split names a part of a folder; this is a file" if os.path.isfile(path) else "no such folder"
        )
    if os.path.isfile(path):
        return [path]
    found = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file())
    if not found:
        raise DataError(source.path, "no file matches" if glob.has_magic(text) else "no such file or folder")
    return found


def identity(source: SourceSection) -> list[Path]:
    """Every file whose content decides what the source yields."""
    lists = [Path(values) for values in (source.where or {}).values() if isinstance(values, str)]
    if is_on_hub(source):
        from rlhf.data.readers.hub import hub_files

        return [*hub_files(source), *lists]
    return [*files_of(source), *lists]


def table_files(source: SourceSection) -> list[Path]:
    """The source's files where all of them are parquet or arrow and their rows are taken as they come, else none."""
    if source.where or source.max_rows:
        return []
    from rlhf.embedded import resolve

    text = resolve(source.path)
    if not (os.path.exists(text) or glob.has_magic(text)):
        return []
    files = files_of(source)
    return files if all(suffix_of(path) in TABLES for path in files) else []


def named_columns(data: Row, source: SourceSection) -> Row:
    """A raw row's columns under their own names, and under those that the source's `columns` gives them."""
    return data | {name: data[column] for name, column in (source.columns or {}).items() if column in data}


def columns_in(rows: Sequence[Located], source: SourceSection) -> list[str]:
    """The columns that any of some raw rows has, by all of their names."""
    return list(dict.fromkeys(name for row in rows for name in named_columns(row.data, source)))


def read_file(path: Path, quarantine: Quarantine, format: Format | None = None) -> Iterator[Located]:
    """One file's rows, by its suffix; `.gz` after it is unpacked on the way."""
    suffix = suffix_of(path)
    match suffix:
        case ".json" | ".jsonl" | ".txt":
            with TextFile(path, str(path), quarantine) as file:
                yield from read_json(file, format, is_text=suffix == ".txt")
        case ".xml":
            from rlhf.data.readers.dump import read_dump

            with TextFile(path, str(path), quarantine) as file:
                yield from read_dump(file)
        case ".csv" | ".tsv":
            with TextFile(path, str(path), quarantine) as file:
                yield from read_csv(file, "," if suffix == ".csv" else "\t")
        case ".parquet" | ".arrow":
            from rlhf.data.readers.arrow_files import read_table

            yield from read_table(path, quarantine)
        case _:
            known = ", ".join(SUFFIXES)
            raise DataError(
                str(path), f"cannot tell what this file is by its name: known are {known}, each also with .gz"
            )


def _split_files(folder: Path, split: str | None) -> list[Path]:
    """A split's files in any of the layouts that our own build and `datasets` write.

    `<split>/*`, `<split>-00000-of-00001.*`, `data/<split>-*`, `<split>.*`; with no split asked for, `train`, or else
    a folder that holds tables without splits.
    """
    name = split or "train"
    for pattern in (f"{name}/*", f"{name}-*", f"{name}.*", f"data/{name}-*"):
        if found := _tables(folder, pattern):
            return found
    if split is None and (found := _tables(folder, "*")):
        return found
    inside = ", ".join(sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))) or "nothing"
    raise DataError(str(folder), f"no split {name!r} of parquet or arrow files here; the folder holds {inside}")


def _tables(folder: Path, pattern: str) -> list[Path]:
    return sorted(p for p in folder.glob(pattern) if p.suffix in TABLES and p.is_file())
