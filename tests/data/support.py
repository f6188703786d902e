"""What the data tests share: the folder of real data, small files, and a console that writes to a string."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.formats import convert
from rlhf.data.load import Stream
from rlhf.data.rows import Located, Quarantine
from rlhf.data.sources import read
from rlhf.errors import DataError
from rlhf.recipe.sections import SourceSection

REAL = Path(__file__).parents[2] / "../shared/data"


def real(name: str) -> str:
    """A file of the real data; the test is skipped where it is not at hand."""
    path = REAL / name
    if not path.exists():
        pytest.skip(f"real data is not at hand: ../shared/data/{name}")
    return str(path.resolve())


def lines(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_all(path: str | Path, **options: Any) -> tuple[list[Located], Quarantine]:
    quarantine = Quarantine()
    return list(read(SourceSection(path=str(path), **options), quarantine)), quarantine


@dataclass(frozen=True)
class Loaded:
    """All rows at once, with the stream they came from."""

    rows: list[Located]
    sources: list[dict[str, Any]]
    quarantine: Quarantine
    dropped: dict[str, int]


def load(sources: Sequence[SourceSection], *, needs_rows: bool = True) -> Loaded:
    """A `Stream` read to its end."""
    stream = Stream(sources, needs_rows=needs_rows)
    rows = list(stream)
    return Loaded(rows, stream.sources, stream.quarantine, stream.dropped)


def load_one(path: str | Path, needs_rows: bool = False, **options: Any) -> Loaded:
    return load([SourceSection(path=str(path), **options)], needs_rows=needs_rows)


def console() -> tuple[Any, io.StringIO]:
    from rich.console import Console

    out = io.StringIO()
    return Console(file=out, width=200, no_color=True), out


def row(
    format: str, columns: dict[str, str] | None = None, template: str | None = None, /, **data: Any
) -> dict[str, Any]:
    """What a format makes of one row."""
    source = SourceSection(path="f", columns=columns, template=template)
    return convert(Located("f", 1, data), format, source)  # type: ignore[arg-type]


def refused(format: str, columns: dict[str, str] | None = None, /, **data: Any) -> tuple[str | None, str]:
    """(field, reason) for which a format refuses a row."""
    with pytest.raises(DataError) as error:
        row(format, columns, **data)
    assert (error.value.file, error.value.row) == ("f", 1)
    return error.value.field, error.value.reason


def read_in_a_process(path: Path) -> tuple[int, int]:
    """(rows, peak KiB) of a file read to its end in a process of its own, whose peak is not that of the one that started it."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    code = (
        "import sys; from pathlib import Path; from rlhf.data.sources import read_file; from rlhf.data.rows import Quarantine\n"
        "print(sum(1 for _ in read_file(Path(sys.argv[1]), Quarantine())))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    rows, peak = map(int, out.split())
    return rows, peak
