"""report.html: one file with the numbers, the curves and the texts on which the verdict rests. It needs no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlhf.evaluate import curves, plots
from rlhf.evaluate.console import NOTHING, number, percent, plus_minus
from rlhf.evaluate.page import PAGE
from rlhf.evaluate.runs import Run
from rlhf.runs.manifest import write_atomically

SAMPLES = 12
EXTREMES = 3  # so many of the largest gains, and so many of the largest losses


def write_html(path: Path, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> None:
    """Write the page. `report` is the content of report.json, `rows` that of samples.jsonl."""
    write_atomically(path, render(report, rows, runs))


def render(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> str:
    """The whole page."""
    models = report["models"]
    alone = [run.owner for run in runs if run.model is None and run.metrics]
    tint = plots.colours([*(m["name"] for m in models), *alone])
    headline = report["scorers"][0]
    caption = (
        f"{min(SAMPLES, len(rows))} of {len(rows)}. Those marked gain or loss are the extremes by {headline}; "
        "the others are spread evenly over the rest."
    )
    return PAGE.render(
        title=_title(models),
        subtitle=_subtitle(report),
        report=report,
        models=models,
        reference=models[0]["name"],
        compared=len(models) > 1,
        tint=tint,
        overview=_overview(report, rows, runs, tint),
        preferences_table=_preferences(report),
        samples=choose_samples(rows, [m["name"] for m in models], headline),
        samples_caption=caption,
        runs=[_run(run, tint) for run in runs],
        settings=json.dumps({k: report[k] for k in ("sampling", "template", "prompts")}, indent=2, ensure_ascii=False),
        plus_minus=plus_minus,
        percent=percent,
        number=number,
        rate=_rate,
        signed=_signed,
        duration=_duration,
        memory=_memory,
        card=_card,
    )


def choose_samples(rows: Sequence[Mapping[str, Any]], models: Sequence[str], scorer: str) -> list[dict[str, Any]]:
    """The best and the worst samples, then others. A sample is good if the other models score higher than the reference.

    If there is only one model, its own score decides.
    """

    def lead(row: Mapping[str, Any]) -> float:
        scores: list[float] = [row["models"][name]["scores"][scorer] for name in models]
        return scores[0] if len(scores) == 1 else sum(scores[1:]) / (len(scores) - 1) - scores[0]

    order = sorted(range(len(rows)), key=lambda i: -lead(rows[i]))
    up, down = ("highest score", "lowest score") if len(models) == 1 else ("large gain", "large loss")
    best, worst = order[:EXTREMES], order[EXTREMES:][-EXTREMES:]
    rest = sorted(order[EXTREMES : len(order) - len(worst)])
    wanted = max(0, SAMPLES - len(best) - len(worst))
    spread = [rest[i * len(rest) // wanted] for i in range(wanted)] if len(rest) > wanted else rest
    tags = [(i, up) for i in best] + [(i, down) for i in reversed(worst)] + [(i, "") for i in spread]
    return [{**rows[i], "tag": f"{tag} ({_signed(lead(rows[i]))})" if tag else ""} for i, tag in tags]


def _title(models: Sequence[Mapping[str, Any]]) -> str:
    names = [m["name"] for m in models]
    return f"{names[0]}: evaluation" if len(names) == 1 else f"{', '.join(names[1:])} against {names[0]}"


def _subtitle(report: Mapping[str, Any]) -> str:
    sampling = report["sampling"]
    samples = f"{sampling['n']} completions each" if sampling["n"] > 1 else "one completion each"
    filters = [f"{key} {sampling[key]:g}" for key, off in (("top_k", 0), ("top_p", 1.0)) if sampling[key] != off]
    how = ", ".join(
        [f"temperature {sampling['temperature']:g}", *filters, f"at most {sampling['max_new_tokens']} tokens"]
    )
    return (
        f"{report['prompts']['count']} held-out prompts, {samples}, the same random numbers for every model; "
        f"{how}; seed {report['seed']}; {report['dtype']}; rlhf {report['rlhf']}."
    )


def _overview(
    report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], runs: Sequence[Run], tint: Mapping[str, str]
) -> list[tuple[str, Markup]]:
    models = report["models"]
    found = curves.frontiers(models, report["scorers"], runs, tint)
    rates = [
        (f"{m['name']} · {name}", judged[name]["win_rate"], tint[m["name"]])
        for m in models[1:]
        for judged in (m["scores"], m["pair_judges"])
        for name in judged
    ]
    if rates:
        title = f"Win rate against {models[0]['name']}"
        found.insert(0, (title, plots.forest(rates, "share of prompts won, with 95% interval")))
    tokens = {m["name"]: [row["models"][m["name"]]["tokens"] for row in rows] for m in models}
    return [*found, ("Length of completions", plots.lengths(tokens, tint))]


def _preferences(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], int]]:
    rows, found = [], report["preferences"]
    if found is not None:
        rows = [
            (f"reward model {found['model']}", found["accuracy"], found["pairs"]),
            ("baseline: the longer completion", found["length_baseline"], found["pairs"]),
        ]
        if found["accuracy_chosen_shorter"]:
            count = found["pairs_chosen_shorter"]
            rows.append(("reward model, where the chosen one is shorter", found["accuracy_chosen_shorter"], count))
    for model in report["models"]:
        if model["implicit_accuracy"] is not None:
            rows.append((f"implicit reward of {model['name']}", model["implicit_accuracy"], model["implicit_pairs"]))
    return rows


def _run(run: Run, tint: Mapping[str, str]) -> dict[str, Any]:
    drawn, lacking = curves.figures(run, tint.get(run.owner, plots.NEUTRAL)) if run.metrics else ([], [])
    return {
        **run.as_dict(),
        "title": run.title,
        "recipe": run.recipe,
        "metrics": bool(run.metrics),
        "figures": drawn,
        "lacking": ", ".join(lacking),
    }


def _rate(estimate: Mapping[str, Any] | None) -> Markup:
    """A win rate. It has a colour if its whole interval lies on one side of one half."""
    if estimate is None:
        return Markup("")
    tone = "up" if estimate["low"] > 0.5 else "down" if estimate["high"] < 0.5 else "even"
    return Markup('<span class="rate {}">{}</span>').format(tone, percent(estimate))


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def _memory(mib: float | None) -> str:
    return NOTHING if mib is None else f"{mib / 1024:.2f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def _card(card: Mapping[str, Any] | None) -> str:
    if card is None:
        return "no card"
    plain = {k: v for k, v in card.items() if isinstance(v, int | float | str)}
    return "; ".join(
        f"{k.replace('_', ' ')} {v:.3f}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}"
        for k, v in plain.items()
    )
