"""What the bookkeeping of model steps costs beside the models: rows through `generate` with an engine that answers at once.

    python -m benchmarks.journal --rows 100000

CPU and wall milliseconds a row of a first run (every answer to the journal) and of a second (every answer from it), the peak of
memory, and the same for a tenth of the rows: memory that grew with the rows would show.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.publish import publish
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.schema import DataRecipe
from rlhf.recipe.synthesis import TextSampling

TEXT = "an answer of ordinary length, which is to say of about two hundred characters, " * 3


MEANT = {
    "first_cpu_ms_a_row": "first run, CPU ms a row",
    "first_without_the_step_cpu_ms_a_row": "the same build without the step, CPU ms a row",
    "second_cpu_ms_a_row": "run again with all answers in the journal, CPU ms a row",
    "second_without_the_step_cpu_ms_a_row": "the same build without the step, CPU ms a row (second time)",
    "first_wall_ms_a_row": "first run, wall ms a row",
    "second_wall_ms_a_row": "run again, wall ms a row",
    "journal_mb": "journal, MB",
    "peak_mb": "peak memory of the process, MB",
}


class AtOnce:
    """Answers everything immediately."""

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        for request in requests:
            yield request, Answer([f"{TEXT}{request.key}"], [True], 50, 60)

    def close(self) -> None:
        pass


def measure(rows: int) -> dict[str, float]:
    """One build and one more of the same; run in a process of its own for the peak."""
    from rlhf.data.build import build
    from rlhf.synthesis.steps import ModelSteps

    figures: dict[str, float] = {"rows": rows}
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "rows.jsonl"
        with source.open("w") as file:
            file.writelines(
                json.dumps({"prompt": f"prompt {i} {TEXT}", "completion": f"own {i}"}) + "\n" for i in range(rows)
            )
        engines = {"x": {"engine": "openai", "base_url": "http://x", "model": "x"}}
        steps = [{"generate": {"engine": "x", "into": "rejected"}}]
        data = {
            "method": "data",
            "output_dir": f"{name}/out",
            "sources": str(source),
            "steps": steps,
            "engines": engines,
        }
        for run in ("first", "second"):
            for asked in (True, False):
                recipe = DataRecipe.model_validate(
                    data | ({} if asked else {"steps": [], "engines": {}, "output_dir": f"{name}/plain"})
                )
                wall, cpu = time.perf_counter(), time.process_time()
                with (
                    ModelSteps(recipe, lambda *_: AtOnce()) as hook,
                    contextlib.redirect_stderr(None),
                    contextlib.redirect_stdout(None),
                ):
                    build(recipe, hook)
                kind = run if asked else f"{run}_without_the_step"
                figures[f"{kind}_cpu_ms_a_row"] = (time.process_time() - cpu) / rows * 1e3
                figures[f"{kind}_wall_ms_a_row"] = (time.perf_counter() - wall) / rows * 1e3
        figures["journal_mb"] = (Path(name) / "out/journal/step-1.jsonl").stat().st_size / 1e6
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--here", action="store_true", help="in this process, figures as JSON")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.rows)))
        return
    found = []
    for rows in (max(arguments.rows // 10, 1), arguments.rows):
        command = [sys.executable, "-m", "benchmarks.journal", "--here", "--rows", str(rows)]
        found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    lines = [("", [f"{figures['rows']:,.0f} rows" for figures in found])]
    lines += [(meant, [f"{figures[key]:,.3g}" for figures in found]) for key, meant in MEANT.items()]
    table = ["| " + " | ".join([name, *cells]) + " |" for name, cells in lines]
    table.insert(1, "|---|" + "---|" * len(found))
    publish("journal", "# Bookkeeping of model steps: `generate` with an engine that answers at once", table, found)


if __name__ == "__main__":
    main()
