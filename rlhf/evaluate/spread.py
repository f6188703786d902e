"""`rlhf report RUN [RUN ...]`: finished evaluations as one Markdown table with its findings. Several runs of one recipe, with other
seeds for instance, become one table of means and ranges.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import RecipeError
from rlhf.evaluate.console import percent, plus_minus, preference_lines
from rlhf.evaluate.findings import Model, Report, findings, findings_of_runs

NOT_APPLICABLE = ""


def read_reports(paths: Sequence[Path]) -> list[Report]:
    """The report.json of each evaluation's folder, or a report.json itself. Raises RecipeError, also for runs of unlike recipes."""
    reports = [_read(path) for path in paths]
    first = _shape(reports[0])
    for path, report in zip(paths, reports, strict=True):
        if _shape(report) != first:
            raise RecipeError(
                f"{path}: is not comparable with {paths[0]}: models and scorers are {_shape(report)}, there they are {first}"
            )
    return reports


def _read(path: Path) -> Report:
    file = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read: {error.strerror}; name the output_dir of an evaluation") from error
    except ValueError as error:
        raise RecipeError(f"{file}: is not JSON: {error}") from error
    if not {"models", "scorers", "prompts"} <= report.keys():
        raise RecipeError(f"{file}: is not the report of an evaluation (method: eval)")
    return report


def _shape(report: Report) -> str:
    names = [model["name"] for model in report["models"]]
    return f"{', '.join(names)} by {', '.join(report['scorers'])}"


def as_markdown(reports: Sequence[Report]) -> str:
    """The table, what it is a table of, and the findings."""
    first = reports[0]
    names = [model["name"] for model in first["models"]]
    columns = _columns(first, names[0])
    rows = [[name, *(cells([r["models"][i] for r in reports]) for _, cells in columns)] for i, name in enumerate(names)]
    head = ["", *(title for title, _ in columns)]
    lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
    count = first["prompts"]["count"]
    if len(reports) > 1:
        lines += [
            f"{len(reports)} runs, {count} prompts each: the mean, and in brackets the lowest and the highest.",
            "",
        ]
        accuracies = [r["preferences"]["accuracy"]["value"] for r in reports if r["preferences"]]
        lines += [f"Reward model on held-out pairs: accuracy {_share(accuracies)}.", ""] if accuracies else []
        said = findings_of_runs(reports)
    else:
        lines += [f"{count} prompts; 95% intervals.", ""]
        lines += [text for line in preference_lines(first) for text in (f"{line}.", "")]
        said = findings(first["models"], first["scorers"][0])
    return "\n".join([*lines, *(f"- {sentence}" for sentence in said)]) + "\n"


Cells = Callable[[Sequence[Model]], str]


def _columns(report: Report, reference: str) -> list[tuple[str, Cells]]:
    """Each column's title, and what makes a cell of one model's entries, one a run."""
    columns: list[tuple[str, Cells]] = []
    for scorer in report["scorers"]:
        columns.append((scorer.replace("_", " "), lambda own, s=scorer: _mean([m["scores"][s]["mean"] for m in own])))  # type: ignore[misc]
    headline = report["scorers"][0]
    if len(report["models"]) > 1:
        columns.append(
            (f"wins against {reference}", lambda own: _rate([m["scores"][headline]["win_rate"] for m in own]))
        )
    return [
        *columns,
        ("KL, nats", lambda own: _mean([m["kl"] for m in own])),
        ("tokens", lambda own: _mean([m["length"]["mean"] for m in own])),
        ("ends by itself", lambda own: _rate([m["eos_rate"] for m in own])),
    ]


def _mean(estimates: Sequence[Any]) -> str:
    if None in estimates:
        return NOT_APPLICABLE
    values = [estimate["value"] for estimate in estimates]
    if len(values) == 1:
        return plus_minus(estimates[0])
    return f"{sum(values) / len(values):.2f} [{min(values):.2f}, {max(values):.2f}]".replace("-", "\u2212")


def _rate(estimates: Sequence[Any]) -> str:
    if None in estimates:
        return NOT_APPLICABLE
    return percent(estimates[0]) if len(estimates) == 1 else _share([estimate["value"] for estimate in estimates])


def _share(values: Sequence[float]) -> str:
    mean, low, high = (100 * v for v in (sum(values) / len(values), min(values), max(values)))
    return f"{mean:.0f}% [{low:.0f}, {high:.0f}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
