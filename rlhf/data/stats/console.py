"""The measures and the findings in the terminal: plain tables. In a pipe, lines are long and no value is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rlhf.data.lint.finding import Finding, counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
PIPE_WIDTH = 160  # columns if there is no terminal; longer values are folded, not cut


def wide(console: Console) -> Console:
    """The console; in a pipe it is made wide, because 80 columns would fold nearly every line."""
    import os

    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def print_stats(report: Mapping[str, Any], console: Console) -> None:
    """One table for each split, then the prompts that two splits share."""
    from rich.markup import escape

    for name, split in report["splits"].items():
        table = _table(f"{report['target']}, {name}: {counted(split['rows'], 'row')}")
        for label, value in lines(split, report["unit"]):
            table.add_row(label, escape(value))
        console.print(table)
        if split["lengths"]:
            console.print(_lengths(split["lengths"], report))
    for pair, leak in report["leakage"].items():
        a, b = pair.split("/")
        found = f"{counted(leak['prompts'], 'prompt')} of {b} also in {a} ({percent(leak['share'])} of its rows)"
        console.print(f"leakage: {found}", highlight=False, markup=False)


def print_findings(report: Mapping[str, Any], findings: Sequence[Finding], console: Console) -> None:
    """One block for each finding: severity, split, how many rows, what, where, what to do. Then the count of each severity."""
    from rich.text import Text

    for finding in findings:
        line = Text(f"{finding.severity}", style=COLOURS[finding.severity])
        line.append(f": {finding.split}: {_sentence(finding)}", style="not bold default")
        if finding.example:
            line.append(f"\n    at {finding.example}", style="not bold default")
        line.append(f"\n    {finding.advice}", style="not bold dim")
        console.print(line, soft_wrap=True, highlight=False)
    rows = sum(split["rows"] for split in report["splits"].values())
    console.print(
        f"{_counted(findings)} in {counted(rows, 'row')} of {report['target']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _sentence(finding: Finding) -> str:
    return f"{finding.count} of {finding.total} ({percent(finding.share)}): {finding.what}"


def _counted(findings: Sequence[Finding]) -> str:
    counts = {s: sum(f.severity == s for f in findings) for s in COLOURS}
    said = [counted(n, s) for s, n in counts.items() if n]
    return ", ".join(said) or "nothing found"


def percent(share: float) -> str:
    """A share in per cent. Small shares have more digits."""
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{100 * share:.1f}%" if share >= 0.001 else f"{100 * share:.2g}%"


def _table(title: str) -> Table:
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=SIMPLE, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _lengths(lengths: Mapping[str, Any], report: Mapping[str, Any]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    unit = report["unit"] if report["tokenizer"] is None else f"tokens of {report['tokenizer']}"
    table = Table(title=escape(f"length in {unit}"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", style="bold", no_wrap=True)
    for name in ("count", "mean", "p50", "p95", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("longest", overflow="fold")
    for side, d in lengths.items():
        numbers = (str(d["count"]), f"{d['mean']:.1f}", str(d["p50"]), str(d["p95"]), str(d["p99"]), str(d["max"]))
        table.add_row("row (prompt + longest)" if side == "row" else side, *numbers, escape(d["longest"]))
    return table


def lines(split: Mapping[str, Any], unit: str) -> Iterator[tuple[str, str]]:
    """A split's measures as (label, value), in words. The page shows the same lines."""
    yield "rows in", f"{split['rows_in']}, usable {split['rows']}"
    for source in split["sources"]:
        recognised = ", recognised" if source["recognised"] else ""
        yield (
            "source",
            f"{source['path']} ({source['format']}{recognised}): {source['rows_out']} of {source['rows_in']}",
        )
    for reason, found in split["dropped"].items():
        where = f" (as {found['example']})" if found["example"] else ""
        yield "set aside", f"{found['rows']} {reason}{where}"
    yield "kinds", ", ".join(f"{n} {kind}" for kind, n in split["kinds"].items()) or "none"
    for change, n in split["converted"].items():
        yield "trained as", f"{n} {change}"
    repeats = split["repeats"]
    for name in ("prompts", "rows"):
        r = repeats[name]
        most = f", one of them {r['largest']} times" if r["repeats"] else ""
        yield name, f"{r['distinct']} different, {counted(r['repeats'], 'repeat')}{most}"
    if split["kinds"].get("preference"):
        yield "contradictory", f"{counted(repeats['contradictory']['pairs'], 'pair')} preferred both ways"
        yield (
            "nearly identical",
            f"{split['labels']['nearly_identical']['rows']} pairs differ only in case and white space",
        )
    shared = repeats["shared_answers"]
    yield (
        "shared answers",
        f"{shared['completions']} ({percent(shared['share'])}) are the very same answer to 5 prompts or more",
    )
    if bias := split["length_bias"]:
        yield from _bias(bias, unit)
    for name in ("prompts", "completions"):
        found = ", ".join(f"{s} {percent(v['share'])}" for s, v in split["scripts"][name].items())
        if found:
            yield f"script, {name}", found
    yield "script differs", counted(split["scripts"]["different"]["rows"], "row")
    if (over := split["over_length"]) is not None:
        yield (
            "over max_length",
            f"{over['rows']} rows ({percent(over['share'])}) over {over['limit']}; longest {over['longest']}",
        )
    flaws = ", ".join(f"{name.replace('_', ' ')} {found['rows']}" for name, found in split["texts"].items())
    yield "rows with", flaws
    yield from _labels(split["labels"])


def _bias(bias: Mapping[str, Any], unit: str) -> Iterator[tuple[str, str]]:
    wins = bias["longer_wins"]
    said = "all of equal length"
    if wins:
        said = f"longer wins {wins['value']:.1%} [{wins['low']:.1%}, {wins['high']:.1%}]"
    d = "" if bias["cohens_d"] is None else f", Cohen's d of log length {bias['cohens_d']:+.2f}"
    yield "length bias", f"{said} of {counted(bias['pairs'] - bias['ties'], 'pair')}, {counted(bias['ties'], 'tie')}{d}"
    yield (
        "",
        f"baseline accuracy {bias['baseline_accuracy']:.1%}, mean difference {bias['mean_difference']:+.1f} {unit}",
    )


def _labels(labels: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if rankings := labels["rankings"]:
        for n, places in rankings["best"].items():
            best = ", ".join(f"{p['index']}: {p['share']['value']:.1%}" for p in places)
            yield f"best of {n}", f"{best} (by chance {1 / int(n):.1%})"
        yield "ties", f"{rankings['with_ties']} rankings, {rankings['best_tied']} for the best"
    if m := labels["margins"]:
        spread = f"p50 {m['p50']:.3g}, p95 {m['p95']:.3g}, max {m['max']:.3g}"
        yield "margins", f"{m['count']}, mean {m['mean']:.3g}, {spread}, {m['zero']} are 0"
    if unpaired := labels["unpaired"]:
        yield "labels", ", ".join(f"{name} {v['count']} ({percent(v['share'])})" for name, v in unpaired.items())


@contextmanager
def progress() -> Iterator[Callable[[int], None]]:
    """A line on standard error that counts rows while they are read. Without a terminal there is no line."""
    from rich.console import Console as RichConsole

    with RichConsole(stderr=True).status("reading") as status:
        seen = 0

        def on_rows(n: int) -> None:
            nonlocal seen
            seen += n
            status.update(f"{seen} rows")

        yield on_rows
