"""What a run says while it trains: metrics.jsonl, trackers, and a progress bar."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

HEADLINES = (
    "loss",
    "accuracy",
    "margin",
    "score",
    "kl",
    "eval/loss",
    "eval/accuracy",
    "eval/score",
    "tokens_per_second",
)
QUIET_SECONDS = 10.0  # between lines where there is no terminal to draw a bar on


class MetricsLog:
    """One JSON object a logged step in metrics.jsonl (rank 0), the same to Accelerate's trackers, and a progress bar."""

    def __init__(self, folder: Path, title: str, total_steps: int, start: int, accelerator: Accelerator) -> None:
        self.path = folder / "metrics.jsonl"
        self._accelerator = accelerator
        self._main = accelerator.is_main_process
        self._console = Console(stderr=True)
        self._total, self._title, self._said = total_steps, title, 0.0
        if self._main:
            folder.mkdir(parents=True, exist_ok=True)
            self._keep_until(start)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[headline]}"),
            console=self._console,
            disable=not (self._main and self._console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=start, headline="")

    def __enter__(self) -> MetricsLog:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def advance(self, step: int, metrics: Mapping[str, float], *, write: bool) -> None:
        """Step `step` (1-based) is done; `write` puts its metrics on file and to the trackers."""
        if not self._main:
            return
        headline = "  ".join(f"{name} {metrics[name]:.4g}" for name in HEADLINES if name in metrics)
        self._bar.update(self._task, completed=step, headline=headline)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said > QUIET_SECONDS or step == self._total):
            self._said = now
            self._console.print(f"{self._title} {step}/{self._total}  {headline}", highlight=False, soft_wrap=True)
        if write:
            self.write(step, metrics)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; a value that is not finite is written as null, since JSON has no word for it."""
        if not self._main:
            return
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._accelerator.log(dict(metrics), step=step)

    def _keep_until(self, step: int) -> None:
        """A resumed run forgets the lines that the lost steps wrote."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # a line cut off by a kill
        self.path.write_text("".join(kept), encoding="utf-8")
