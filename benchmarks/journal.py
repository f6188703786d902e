"""What the bookkeeping of model steps costs beside the models: rows through `generate` with an engine that answers at once.

    python -m benchmarks.journal --rows 100000

Prints CPU and wall milliseconds a row of a first run (every answer to the journal) and of a second (every answer from it), the peak of
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

from rlhf.generation.text import Answer, Request
from rlhf.recipe.schema import DataRecipe
from rlhf.recipe.synthesis import TextSampling

TEXT = "an answer of ordinary length, which is to say of about two hundred characters, " * 3


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
    for rows in (max(arguments.rows // 10, 1), arguments.rows):
        command = [sys.executable, "-m", "benchmarks.journal", "--here", "--rows", str(rows)]
        figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            "  ".join(f"{key} {value:.3f}" if value < 100 else f"{key} {value:.0f}" for key, value in figures.items())
        )


if __name__ == "__main__":
    main()
