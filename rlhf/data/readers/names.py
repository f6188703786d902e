"""What kind of file a name promises."""

from __future__ import annotations

from pathlib import Path

TABLES = (".parquet", ".arrow")
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".xml", *TABLES)


def suffix_of(path: Path) -> str:
    """The file's suffix in lower case; for a gzipped file, the one before `.gz`."""
    return (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
