"""Where the figures go: benchmarks/results/NAME.md to read and NAME.json to draw from, with the day and the machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def publish(name: str, head: str, table: Sequence[str], found: Any) -> None:
    """Print a table in Markdown under its heading, and write both, and the figures as JSON."""
    said = f"{head}\n{date.today()}, {machine()}.\n\n" + "\n".join(table) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(said)
    about = {"date": str(date.today()), "machine": machine(), "found": found}
    (RESULTS / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
    print(said)


def machine() -> str:
    """The processor, the cores this process may use, and Python."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
