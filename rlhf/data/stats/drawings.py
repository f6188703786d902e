"""The figures of a data report: lengths by side, length differences of pairs, margins, scripts. Only the page imports this module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from rlhf.data.stats.console import percent
from rlhf.display.figures import BAD, GOOD, INK, NEUTRAL, PALETTE, canvas

SIZE = (5.6, 3.1)  # inches
MOST = 8  # scripts drawn; the table lists all
COLOURS = {"prompt": NEUTRAL, "chosen": GOOD, "rejected": BAD, "completion": PALETTE[0], "completions": PALETTE[0]}


def figures(split: Mapping[str, Any], unit: str, limit: int | None) -> Iterator[tuple[str, Markup]]:
    """(caption, SVG) of each figure that a split has data for."""
    sides = {name: d for name, d in split["lengths"].items() if name != "row"}
    if sides:
        yield f"Length in {unit}, by side", lengths(sides, unit)
    if "row" in split["lengths"] and limit is not None:
        yield "Prompt and longest completion, against max_length", rows(split["lengths"]["row"], limit)
    if bias := split["length_bias"]:
        yield f"Length of the preferred answer minus the other, in {unit}", differences(bias, unit)
    if margins := split["labels"]["margins"]:
        yield "Score margins", histogram(margins["histogram"], "margin", PALETTE[3])
    if split["kinds"]:
        yield "Scripts", scripts(split["scripts"])


def lengths(sides: Mapping[str, Any], unit: str) -> Markup:
    """Each side's histogram as an outline. They show shares, because the sides may have different numbers of texts."""
    with canvas(*SIZE) as (axes, out):
        for name, d in sides.items():
            edges, counts = d["histogram"]["edges"], d["histogram"]["counts"]
            width = edges[1] - edges[0]
            density = [n / (d["count"] * width) for n in counts]
            label = f"{name} (median {d['p50']})"
            axes.stairs(density, edges, color=COLOURS[name], linewidth=1.8, label=label, fill=False)
            axes.stairs(density, edges, color=COLOURS[name], alpha=0.12, fill=True)
        axes.set_xlim(left=0)
        axes.set_yticks([])
        axes.set_xlabel(f"length ({unit}); the last bin also holds everything longer")
        axes.set_ylabel("share")
        axes.legend(loc="upper right")
    return out[0]


def rows(d: Mapping[str, Any], limit: int) -> Markup:
    """The lengths that are compared with max_length, and a line at max_length."""
    with canvas(*SIZE) as (axes, out):
        axes.stairs(d["histogram"]["counts"], d["histogram"]["edges"], color=PALETTE[0], fill=True, alpha=0.75)
        axes.axvline(limit, color=BAD, linewidth=1.8, linestyle=(0, (4, 3)), label=f"limit {limit}")
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens of a row")
        axes.set_ylabel("rows")
        axes.legend(loc="upper right")
    return out[0]


def differences(bias: Mapping[str, Any], unit: str) -> Markup:
    """Pairs by length difference. Right of zero, the longer answer is preferred."""
    edges, counts = bias["histogram"]["edges"], bias["histogram"]["counts"]
    with canvas(*SIZE) as (axes, out):
        centres = [(a + b - 1) / 2 for a, b in pairwise(edges)]
        colours = [GOOD if c > 0 else BAD if c < 0 else NEUTRAL for c in centres]
        axes.bar(centres, counts, width=0.92 * (edges[1] - edges[0]), color=colours, alpha=0.85)
        axes.axvline(0, ymax=0.78, color=INK, linewidth=1, alpha=0.6)  # below the legend
        if wins := bias["longer_wins"]:
            share, low, high = (100 * wins[k] for k in ("value", "low", "high"))
            axes.plot([], [], color=GOOD, linewidth=5, label=f"longer wins: {share:.1f}% [{low:.1f}, {high:.1f}]")
            axes.plot([], [], color=BAD, linewidth=5, label=f"shorter wins: {100 - share:.1f}%")
            axes.legend(loc="upper left", handlelength=0.8)
            axes.set_ylim(0, 1.28 * max(counts))
        axes.set_xlabel(f"length of the preferred answer minus that of the other ({unit})")
        axes.set_ylabel("pairs")
    return out[0]


def histogram(h: Mapping[str, Any], x: str, colour: str) -> Markup:
    """One histogram from its edges and counts."""
    with canvas(*SIZE) as (axes, out):
        axes.stairs(h["counts"], h["edges"], color=colour, fill=True, alpha=0.8)
        axes.set_xlabel(x)
        axes.set_ylabel("pairs")
    return out[0]


def scripts(found: Mapping[str, Any]) -> Markup:
    """Shares of scripts, prompts beside completions."""
    names = list(dict.fromkeys([*found["prompts"], *found["completions"]]))[:MOST]
    sides = [side for side in ("prompts", "completions") if found[side]]
    with canvas(SIZE[0], max(SIZE[1], 0.9 + 0.42 * len(names))) as (axes, out):
        height = 0.8 / max(len(sides), 1)
        for k, side in enumerate(sides):
            places = [i - 0.4 + height * (k + 0.5) for i in range(len(names))]
            values = [found[side].get(name, {"share": 0.0})["share"] for name in names]
            colour = COLOURS["prompt"] if side == "prompts" else COLOURS["completions"]
            axes.barh(places, values, height=0.86 * height, color=colour, label=side)
            for place, value in zip(places, values, strict=True):
                axes.text(value + 0.012, place, percent(value), va="center", fontsize=7.5, color=INK)
        _shares(axes)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(max(len(names), 3) - 0.4, -0.6)
        axes.legend(loc="lower right")
    return out[0]


def _shares(axes: Axes) -> None:
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", visible=False)
