"""The evaluation report's figures, drawn on the canvas of `rlhf.display.figures`. A model has the same colour in all of them.

A smoothed line always has the raw line faintly behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlhf.display.figures import BAD, GOOD, GRID, INK, NEUTRAL, PALETTE, canvas

__all__ = ["BAD", "GOOD", "GRID", "INK", "NEUTRAL"]
RAW_ALPHA, SMOOTHING_FROM = 0.28, 24  # a line with fewer points is not smoothed


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour for each name, in order."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], str]],
    *,
    x: str,
    y: str,
    share: bool = False,
    marks: frozenset[str] = frozenset(),
    zero: bool = False,
) -> Markup:
    """Curves by label: (x, y, colour). Those in `marks` show each point, because they have few (held-out measurements)."""
    with canvas(4.2, 2.7) as (axes, out):
        if zero:
            axes.axhline(0, color=GRID, linewidth=1.2)
        for label, (steps, values, colour) in curves.items():
            if label in marks:
                axes.plot(
                    steps, values, color=colour, marker="o", markersize=4, linewidth=1.2, label=label, linestyle="--"
                )
                continue
            smooth = smoothed(values)
            if smooth is not None:
                axes.plot(steps, values, color=colour, alpha=RAW_ALPHA, linewidth=0.9)
            single = "o" if len(steps) == 1 else None
            axes.plot(
                steps, values if smooth is None else smooth, color=colour, linewidth=1.8, label=label, marker=single
            )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        if len(curves) > 1:
            axes.legend(loc="best")
    return out[0]


def smoothed(values: Sequence[float]) -> np.ndarray | None:
    """A centred running mean over a twelfth of the line; None for a short line."""
    if len(values) < SMOOTHING_FROM:
        return None
    width = max(3, len(values) // 12) | 1
    kernel = np.ones(width)
    weights = np.convolve(np.ones(len(values)), kernel, mode="same")
    return np.convolve(np.asarray(values, dtype=float), kernel, mode="same") / weights


def frontier(
    points: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any], str]],
    trails: Sequence[tuple[str, Sequence[float], Sequence[float], str]],
    y: str,
) -> Markup:
    """Reward against KL: models with their intervals (name, KL, score, colour), and PPO's iterations as small dots behind."""
    with canvas(5.6, 3.7) as (axes, out):
        for label, kls, scores, colour in trails:
            axes.plot(kls, scores, color=colour, alpha=0.25, linewidth=0.8)
            axes.scatter(kls, scores, s=13, color=colour, alpha=0.5, linewidths=0, label=label)
        for name, kl, score, colour in points:
            sides: dict[str, Any] = {"xerr": _bars(kl), "yerr": _bars(score)}
            style: dict[str, Any] = {
                "color": colour,
                "markersize": 8,
                "elinewidth": 1.3,
                "linestyle": "none",
                "label": name,
            }
            axes.errorbar([kl["value"]], [score["value"]], marker="o", **sides, **style)
        axes.set_xlabel("KL to the reference (nats per completion)")
        axes.set_ylabel(y)
        axes.margins(0.08)
        axes.legend(loc="best")
    return out[0]


def forest(rows: Sequence[tuple[str, Mapping[str, Any], str]], x: str) -> Markup:
    """Win rates as dots with intervals, one on each line, beside the line of no difference: (label, estimate, colour)."""
    with canvas(5.6, max(3.7, 0.9 + 0.34 * len(rows))) as (axes, out):
        axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
        for line, (_, estimate, colour) in enumerate(rows):
            style: dict[str, Any] = {"color": colour, "markersize": 7, "elinewidth": 2, "capsize": 0}
            axes.errorbar([estimate["value"]], [line], xerr=_bars(estimate), marker="o", **style)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x)
    return out[0]


def lengths(values: Mapping[str, Sequence[float]], tint: Mapping[str, str]) -> Markup:
    """The distribution of completion lengths for each model: the share of completions up to each length."""
    with canvas(5.6, 3.7) as (axes, out):
        for name, tokens in values.items():
            ordered = np.sort(np.asarray(tokens, dtype=float))
            shares = np.arange(len(ordered) + 1) / len(ordered)
            axes.step([0, *ordered], shares, where="post", color=tint[name], linewidth=1.8, label=name)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("length (tokens)")
        axes.set_ylabel("share of completions up to this length")
        axes.legend(loc="best")
    return out[0]


def _bars(estimate: Mapping[str, Any]) -> list[list[float]] | None:
    """matplotlib's error bars: distances below and above; None if there is no interval."""
    if estimate["low"] is None:
        return None
    return [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]
