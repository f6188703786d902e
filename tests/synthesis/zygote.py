"""A process that has everything imported and forks a build for each line it reads: a recipe's path in, a pid and then an exit code out.

For tests that kill builds: starting Python anew for each of fifty would take a minute. Killed builds say nothing but their signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import rlhf.data.build
import rlhf.data.load
import rlhf.generation.engines.openai_server
import rlhf.synthesis.steps
from rlhf.recipe.loader import load


def warm() -> None:
    """A build without an engine, for what is imported on first use (pyarrow brings pandas along, which takes seconds)."""
    with tempfile.TemporaryDirectory() as name, quiet():
        rows, recipe = Path(name) / "rows.jsonl", Path(name) / "recipe.yaml"
        rows.write_text('{"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}\n')
        made = {"method": "data", "output_dir": f"{name}/out", "sources": str(rows), "steps": [{"select": {}}]}
        recipe.write_text(json.dumps(made))
        rlhf.synthesis.steps.build(load(recipe))  # type: ignore[arg-type]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def main() -> None:
    warm()
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 1
            try:
                with quiet():
                    rlhf.synthesis.steps.build(load(line.strip()))  # type: ignore[arg-type]
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
