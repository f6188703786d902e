"""`rlhf data ...`: make datasets, and tell what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_common import Debug, Overrides, RecipeFile, carry_out, console, reported

if TYPE_CHECKING:
    from rich.console import Console

data_app = typer.Typer(help="Make datasets, and tell what is in them.", no_args_is_help=True)

Target = Annotated[
    str,
    typer.Argument(
        metavar="PATH_OR_RECIPE",
        help="A built folder, a file, embedded:NAME, or any recipe.",
        show_default=False,
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Changes to the recipe, or keys of a source: format=hh columns.prompt=question",
        show_default=False,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="NAME_OR_PATH", help="Count in this model's tokens, not in characters.", show_default=False),
]
MaxLength = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Tokens that a row may have.", show_default=False)
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all of it as JSON.", show_default=False)
]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as one page.", show_default=False)]


@data_app.command("build")
def data_build(recipe: RecipeFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Build a dataset: rankings to pairs, near-duplicates out, train and test apart."""
    carry_out(("data", "build"), recipe, overrides, debug)


@data_app.command("stats")
def data_stats(
    target: Target,
    overrides: Changes = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    json: Json = None,
    html: Html = None,
    debug: Debug = False,
) -> None:
    """Measure a dataset: lengths, length bias, repeats, leakage, scripts, labels, odd texts."""
    with reported(debug):
        report, screen = _measured(target, overrides, tokenizer, max_length)
        from .data.stats.console import print_stats

        print_stats(report, screen)
        _write(report, json, html)


@data_app.command("lint")
def data_lint(
    target: Target,
    overrides: Changes = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    json: Json = None,
    html: Html = None,
    debug: Debug = False,
) -> None:
    """Find what is wrong with a dataset, and say what to do; exit code 3 where an error is found."""
    with reported(debug):
        report, screen = _measured(target, overrides, tokenizer, max_length)
        from .data.lint.findings import as_json, lint
        from .data.stats.console import print_findings

        findings = lint(report)
        print_findings(report, findings, screen)
        _write(report | {"findings": as_json(findings)}, json, html)
        if any(finding.severity == "error" for finding in findings):
            raise typer.Exit(3)


def _measured(
    target: str, overrides: list[str] | None, tokenizer: str | None, max_length: int | None
) -> tuple[dict[str, Any], Console]:
    from .data.stats.inputs import target_of

    found = target_of(target, overrides or ())
    from .data.stats.console import progress, wide
    from .data.stats.measure import counting, measure

    found, counted = counting(found, tokenizer, max_length)
    screen = wide(console())
    with progress() as on_rows:
        return measure(found, counted, on_rows), screen


def _write(report: dict[str, Any], json: Path | None, html: Path | None) -> None:
    from .status import write_atomically

    if json is not None:
        from json import dumps

        write_atomically(json, dumps(report, ensure_ascii=False, indent=2) + "\n")
    if html is not None:
        from .data.stats.page import render

        write_atomically(html, render(report))
