"""Where rows come from: files, globs, folders of parquet or arrow splits, and `embedded:NAME`.

The first step of the pipeline: a recipe's SourceSection becomes located raw rows. The file formats are in `textfiles`;
tables in `tablefiles`. `rows_in = rows read + rows quarantined`, for every file.

Unlike `datasets.load_dataset` there is no cache to go stale, no script to run, no schema guessed from the first block, and
a bad row costs itself only.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rlhf.data.rows import Located, Quarantine
from rlhf.data.textfiles import TextFile, read_csv, read_json
from rlhf.errors import DataError
from rlhf.recipe.sections import SourceSection

TABLES = (".parquet", ".arrow")
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", *TABLES)


def read(source: SourceSection, quarantine: Quarantine) -> Iterator[Located]:
    """The source's rows in order, file by file; what cannot be read goes to the quarantine.

    `max_rows` takes the first so many readable rows and looks no further. Raises DataError for a missing file, a file
    that is not what its name says, or a folder without the split.
    """
    rows = (located for path in files_of(source) for located in read_file(path, quarantine))
    yield from islice(rows, source.max_rows)


def files_of(source: SourceSection) -> list[Path]:
    """The files that a source names, in order."""
    from rlhf.embedded import resolve

    text = resolve(source.path)
    path = Path(text)
    if path.is_dir():
        return _split_files(path, source.split)
    if source.split is not None:
        raise DataError(
            source.path, "split names a part of a folder; this is a file" if path.is_file() else "no such folder"
        )
    if path.is_file():
        return [path]
    found = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file())
    if not found:
        raise DataError(source.path, "no file matches" if glob.has_magic(text) else "no such file or folder")
    return found


def table_files(source: SourceSection) -> list[Path]:
    """The source's files where all of them are parquet or arrow and their rows are taken as they come, else none."""
    if source.where or source.max_rows:
        return []
    from rlhf.embedded import resolve

    text = resolve(source.path)
    if not (Path(text).exists() or glob.has_magic(text)):
        return []
    files = files_of(source)
    return files if all(_suffix(path) in TABLES for path in files) else []


def read_file(path: Path, quarantine: Quarantine) -> Iterator[Located]:
    """One file's rows, by its suffix; `.gz` after it is unpacked on the way."""
    suffix = _suffix(path)
    match suffix:
        case ".json" | ".jsonl":
            with TextFile(path, str(path), quarantine) as file:
                yield from read_json(file)
        case ".csv" | ".tsv":
            with TextFile(path, str(path), quarantine) as file:
                yield from read_csv(file, "," if suffix == ".csv" else "\t")
        case ".parquet" | ".arrow":
            from rlhf.data.tablefiles import read_table

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


def _suffix(path: Path) -> str:
    return (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
