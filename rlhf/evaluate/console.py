"""The result in the terminal: one row for each model, and how well held-out preferences are predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

NOTHING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A number with these significant digits and without an exponent; a dash if there is no value."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}g}"
    return text.replace("-", "\u2212") if "e" not in text else f"{value:.0f}".replace("-", "\u2212")


def plus_minus(estimate: Mapping[str, Any] | None) -> str:
    """`1.23 ± 0.04`, both with the same decimals; for symmetric intervals."""
    if estimate is None:
        return NOTHING
    value, high = estimate["value"], estimate["high"]
    if high is None or high == value:
        return number(value)
    half = high - value
    decimals = 2 if half >= 0.01 or half == 0 else 4
    return f"{value:.{decimals}f} ± {half:.{decimals}f}".replace("-", "\u2212")


def percent(estimate: Mapping[str, Any] | None) -> str:
    """`71% [64, 77]`; for shares, because their intervals are not symmetric."""
    if estimate is None:
        return NOTHING
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.0f}% [{low:.0f}, {high:.0f}]"


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the table of models, the lines about preferences, and the notes."""
    models = report["models"]
    reference = models[0]["name"]
    scorers, pair_judges = list(models[0]["scores"]), report["pair_judges"] if len(models) > 1 else []
    below = f"; below each mean, how often it wins against {escape(reference)}" if len(models) > 1 else ""
    table = Table(
        title=f"{report['prompts']['count']} prompts{below}; 95% intervals",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", style="bold", min_width=min(16, max(len(model["name"]) for model in models)))
    for name in (*scorers, *pair_judges, "KL, nats", "tokens", "EOS"):
        table.add_column(escape(name.replace("_", "\n")), justify="right", no_wrap=True, overflow="fold")
    for model in models:
        cells = [
            *(_score_cell(model["scores"][name]) for name in scorers),
            *(percent(model["pair_judges"].get(name, {}).get("win_rate")) for name in pair_judges),
            plus_minus(model["kl"]),
            number(model["length"]["mean"]["value"]),
            f"{100 * model['eos_rate']['value']:.0f}%",
        ]
        table.add_row(escape(model["name"]), *cells)
    console.print(table)
    for line in preference_lines(report):
        console.print(line, markup=False, highlight=False)
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)


def _score_cell(score: Mapping[str, Any]) -> str:
    """The mean, and below it the win rate if there is one: side by side, they are too wide for a terminal."""
    rate = score["win_rate"]
    return plus_minus(score["mean"]) + (f"\n{percent(rate)}" if rate else "")


def preference_lines(report: Mapping[str, Any]) -> list[str]:
    """How well held-out preferences are predicted: by the reward model, by length, by each policy."""
    lines, found = [], report["preferences"]
    if found is not None:
        lines.append(
            f"reward model on {found['pairs']} held-out pairs: accuracy {percent(found['accuracy'])}; "
            f"length baseline {percent(found['length_baseline'])}"
        )
    lines += [
        f"implicit reward of {model['name']}: accuracy {percent(model['implicit_accuracy'])}"
        for model in report["models"]
        if model["implicit_accuracy"] is not None
    ]
    return lines
