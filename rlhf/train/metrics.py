"""What a run says while it trains: metrics.jsonl, trackers, and a progress bar."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console

from rlhf.display.progress import ProgressBar
from rlhf.train.doctor import Finding

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


class MetricsLog:
    """One JSON object a logged step in metrics.jsonl (rank 0), the same to Accelerate's trackers, and a progress bar."""

    def __init__(self, folder: Path, title: str, total_steps: int, start: int, accelerator: Accelerator) -> None:
        self.path = folder / "metrics.jsonl"
        self._accelerator = accelerator
        self._main = accelerator.is_main_process
        self._bar = ProgressBar(title, total_steps, Console(stderr=True), done=start, enabled=self._main)
        if self._main:
            folder.mkdir(parents=True, exist_ok=True)
            self._keep_until(start)

    def __enter__(self) -> MetricsLog:
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (1-based) is done."""
        headline = "  ".join(f"{name} {metrics[name]:.4g}" for name in HEADLINES if name in metrics)
        self._bar.update(step, headline)

    def write(self, step: int, metrics: Mapping[str, float], found: Sequence[Finding] = ()) -> None:
        """Append one line, with what the doctor found; a value that is not finite is null, since JSON has no word for it."""
        if not self._main:
            return
        line: dict[str, Any] = {"step": step}
        line |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        if found:
            line["findings"] = [finding.as_dict() for finding in found]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._accelerator.log(dict(metrics), step=step)
        for finding in found:
            self._bar.say(f"warning: {finding}")

    def lines(self) -> list[dict[str, Any]]:
        """What is on file, in the order of the steps; every rank has them from rank 0, so that all judge alike."""
        found = [self.path.read_text(encoding="utf-8").splitlines() if self._main and self.path.exists() else []]
        return [json.loads(line) for line in broadcast_object_list(found)[0]]

    def _keep_until(self, step: int) -> None:
        """A resumed run forgets the lines that the lost steps wrote; a fresh one, all that an earlier run wrote."""
        if step == 0:
            self.path.unlink(missing_ok=True)
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
