"""The curves of each kind of run, as figures. If a run did not log a curve, the report says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rlhf.evaluate import plots
from rlhf.evaluate.plots import BAD, GOOD, INK, NEUTRAL
from rlhf.evaluate.runs import Run
from rlhf.recipe.schema import METHODS, samples

OWN = "own"  # the run's own colour


@dataclass(frozen=True)
class Panel:
    """One figure: its title, its y axis, and its lines as (label, metric, colour)."""

    title: str
    y: str
    lines: tuple[tuple[str, str, str], ...]
    share: bool = False
    zero: bool = False


def _train_and_held_out(title: str, y: str, metric: str, *, share: bool = False, zero: bool = False) -> Panel:
    held_out = ("held-out", f"eval/{metric}", INK)
    return Panel(title, y, (("training", metric, OWN), held_out), share, zero)


def _line(title: str, y: str, metric: str, *, share: bool = False, zero: bool = False) -> Panel:
    return Panel(title, y, (("", metric, OWN),), share, zero)


def _two_sides(title: str, y: str, prefix: str, *, zero: bool = True) -> Panel:
    sides = (("chosen", f"{prefix}/chosen", GOOD), ("rejected", f"{prefix}/rejected", BAD))
    return Panel(title, y, sides, zero=zero)


_OPTIMISER = (_line("Gradient norm", "norm before clipping", "grad_norm"),)
_SAMPLES = (
    _train_and_held_out("Score of the rollouts", "reward", "score"),
    _line("KL to the reference", "nats per completion", "kl", zero=True),
    _train_and_held_out("Length", "tokens per completion", "length"),
    _line("Completions that end by themselves", "EOS rate", "eos_rate", share=True),
    _line("Entropy", "nats per token", "entropy"),
    _line("Clipped policy updates", "share of tokens", "policy/clip_fraction", share=True),
)
_COEFFICIENT = _line("KL coefficient", "β", "kl_coef")
PANELS: dict[str, tuple[Panel, ...]] = {
    "sft": (_train_and_held_out("Loss", "nats per token", "loss"), *_OPTIMISER),
    "reward": (
        _train_and_held_out("Loss", "nats per comparison", "loss"),
        _train_and_held_out("Accuracy", "pairs ordered correctly", "accuracy", share=True),
        _train_and_held_out("Margin", "score(chosen) − score(rejected)", "margin", zero=True),
        _two_sides("Scores of both sides", "score", "score"),
        *_OPTIMISER,
    ),
    "dpo": (
        _train_and_held_out("Loss", "nats per pair", "loss"),
        _train_and_held_out("Accuracy of the implicit reward", "pairs ordered correctly", "accuracy", share=True),
        _train_and_held_out("Margin of the implicit reward", "β × nats", "margin", zero=True),
        _two_sides("Implicit rewards of both sides", "β × nats", "reward"),
        _two_sides("Drift from the reference", "Δ log-probability (nats)", "drift"),
        *_OPTIMISER,
    ),
    "ppo": (
        *_SAMPLES,
        _line("Value model", "explained variance", "value/explained_variance", zero=True),
        _COEFFICIENT,
        *_OPTIMISER,
    ),
    **dict.fromkeys(("rloo", "grpo", "reinforce_pp"), (*_SAMPLES, _COEFFICIENT, *_OPTIMISER)),
    "online_dpo": (
        *_SAMPLES,
        _line("Margin of the implicit reward", "β × nats", "margin", zero=True),
        _two_sides("Implicit rewards of both sides", "β × nats", "reward"),
        *_OPTIMISER,
    ),
}


def figures(run: Run, colour: str) -> tuple[list[tuple[str, Markup]], list[str]]:
    """The run's figures with their titles, and the titles of figures for which it logged nothing."""
    drawn, missing = [], []
    for panel in PANELS.get(run.method or "", (_train_and_held_out("Loss", "loss", "loss"),)):
        curves, marks = {}, set()
        for label, metric, tint in panel.lines:
            steps, values = run.series(metric)
            if values:
                curves[label] = (steps, values, colour if tint == OWN else tint)
                marks |= {label} if metric.startswith("eval/") else set()
        if not curves:
            missing.append(panel.title)
            continue
        x = "iteration" if _samples(run) else "optimizer step"
        figure = plots.lines(curves, x=x, y=panel.y, share=panel.share, zero=panel.zero, marks=frozenset(marks))
        drawn.append((panel.title, figure))
    return drawn, missing


def frontiers(
    models: Sequence[Mapping[str, Any]], scorers: Sequence[str], runs: Sequence[Run], tint: Mapping[str, str]
) -> list[tuple[str, Markup]]:
    """Reward against KL: one figure for each scorer, with one point for each model.

    A run that trained on this scorer by its own samples (`score/NAME` in its metrics) shows its iterations in the same figure. Another such run
    has its reward on another scale, so it gets a figure of its own.
    """
    placed = [model for model in models if model["kl"] is not None]
    found, used = [], set()
    for name in scorers if len(placed) > 1 else ():
        trails = []
        for run in runs:
            if _samples(run) and (trail := _trail(run, f"score/{name}")) is not None:
                trails.append((f"iterations of {run.title}", *trail, tint.get(run.owner, NEUTRAL)))
                used.add(run.folder)
        points = [(m["name"], m["kl"], m["scores"][name]["mean"], tint[m["name"]]) for m in placed]
        found.append((f"{name} against KL", plots.frontier(points, trails, f"mean {name}")))
    for run in runs:
        if _samples(run) and run.folder not in used and (trail := _trail(run, "score")) is not None:
            trails = [("iterations", *trail, tint.get(run.owner, NEUTRAL))]
            found.append((f"{run.title}: training reward against KL", plots.frontier([], trails, "mean reward")))
    return found


def _samples(run: Run) -> bool:
    """Whether the run trained on its own samples."""
    return run.method in METHODS and samples(run.method)


def _trail(run: Run, metric: str) -> tuple[list[float], list[float]] | None:
    """KL and score of every iteration that logged both."""
    points = [
        (row["kl"], row[metric]) for row in run.metrics if row.get("kl") is not None and row.get(metric) is not None
    ]
    return ([kl for kl, _ in points], [score for _, score in points]) if points else None
