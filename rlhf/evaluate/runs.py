"""What training runs left in their folders: metrics.jsonl, status.json, recipe.yaml. The report names what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf.recipe.schema import METHODS, EvalRecipe, trains
from rlhf.runs.status import read_status


@dataclass(frozen=True)
class Run:
    """One run's folder. `model` is the evaluated model that the run trained, if the recipe says so."""

    folder: str
    model: str | None
    method: str | None
    recipe: str | None  # the resolved recipe, as YAML
    status: dict[str, Any]
    metrics: list[dict[str, Any]]  # one for each logged step, in order
    missing: tuple[str, ...]  # sentences for the report

    @property
    def owner(self) -> str:
        """The name that gives the curves their colour: the model's, else the folder's."""
        return self.model or self.folder

    @property
    def title(self) -> str:
        """What the report calls the run: its model, with the method if the name does not contain it."""
        name = self.model or Path(self.folder).name
        return name if self.method is None or self.method in name.lower() else f"{name} ({self.method})"

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, without steps where it is missing or null (not finite)."""
        points = [(row["step"], row[name]) for row in self.metrics if row.get(name) is not None]
        return [float(step) for step, _ in points], [float(value) for _, value in points]

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What the training doctor said, in the order of the steps (`rlhf.train.doctor`)."""
        return [found for row in self.metrics for found in row.get("findings", [])]

    def as_dict(self) -> dict[str, Any]:
        """For report.json: the stage's time and memory, its last metrics, and what is missing."""
        return {
            "folder": self.folder,
            "model": self.model,
            "method": self.method,
            "state": self.status.get("state"),
            "wall_seconds": self.status.get("wall_seconds"),
            "peak_rss_mib": self.status.get("peak_rss_mib"),
            "steps": self.metrics[-1]["step"] if self.metrics else None,
            "last": self.metrics[-1] if self.metrics else {},
            "findings": self.findings,
            "missing": list(self.missing),
        }


def runs_of(recipe: EvalRecipe) -> list[Run]:
    """The runs that the recipe lists, and those of its models; each once."""
    named = [(folder, None) for folder in recipe.runs]
    named += [(m.run, m.name) for m in recipe.models if m.run is not None]  # type: ignore[misc]
    owners: dict[str, str | None] = {}
    for folder, model in named:
        owners[folder] = owners.get(folder) or model
    return [read_run(folder, model) for folder, model in owners.items()]


def read_run(folder: str, model: str | None = None) -> Run:
    """A run's folder, with whatever there is in it; never raises."""
    path, missing = Path(folder), []
    if not path.is_dir():
        return Run(folder, model, None, None, {}, [], (f"{folder}: there is no such folder.",))
    status, recipe = read_status(path) or {}, _text(path / "recipe.yaml")
    if not status:
        missing.append(f"{folder}: no status.json, so its time and memory are unknown.")
    elif status.get("state") != "done":
        missing.append(f"{folder}: the run is not done, it is {status.get('state')}; its curves may be incomplete.")
    if recipe is None:
        missing.append(f"{folder}: no recipe.yaml.")
    method = status.get("method") or _method(recipe)
    metrics, broken = _metrics(path / "metrics.jsonl")
    if broken:
        missing.append(f"{folder}: {broken} of the lines of metrics.jsonl cannot be read; they are left out.")
    if not metrics and (method not in METHODS or trains(method)):
        missing.append(f"{folder}: no metrics.jsonl, so there are no curves.")
    return Run(folder, model, method, recipe, status, metrics, tuple(missing))


def training_findings(runs: Sequence[Run]) -> list[str]:
    """What went wrong in training, beside the verdicts on what came of it."""
    return [
        f"In the training of {run.title}, step {found['step']}: {found['evidence']}."
        for run in runs
        for found in run.findings
    ]


def notes_of(runs: Sequence[Run]) -> list[str]:
    """What is missing, in the order of the runs."""
    return [sentence for run in runs for sentence in run.missing]


def _metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines in order of their steps, and how many could not be read."""
    rows, broken = [], 0
    for line in (_text(path) or "").splitlines():
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError
            rows.append(row)
        except (ValueError, KeyError, TypeError):
            broken += 1
    return sorted(rows, key=lambda row: row["step"]), broken


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _method(recipe: str | None) -> str | None:
    try:
        method = yaml.safe_load(recipe or "")["method"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    return method if isinstance(method, str) else None
