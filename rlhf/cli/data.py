"""`rlhf data ...`: make datasets, and tell what is in them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf.cli.common import Debug, Overrides, RecipeFile, carry_out, console, example, reported
from rlhf.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console


class Engine(StrEnum):
    """Of `dedup`."""

    fast = "fast"
    exact = "exact"
    datasketch = "datasketch"
    ray = "ray"


class Keep(StrEnum):
    """Which of two alike stays."""

    first = "first"
    longest = "longest"


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


@data_app.command("build", epilog=example("rlhf data build recipes/stack_llama_2/0_data.yaml"))
def data_build(
    recipe: RecipeFile,
    overrides: Overrides = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")] = False,
    debug: Debug = False,
) -> None:
    """Build a dataset: rankings to pairs, near-duplicates out, train and test apart."""
    carry_out(("data", "build"), recipe, [*(overrides or ()), *(["strict=true"] if strict else [])], debug)


@data_app.command("dedup", epilog=example("rlhf data dedup rows.jsonl -o outputs/rows --column prompt"))
def data_dedup(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, a folder, a glob.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to.", show_default=False)],
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the source, e.g. columns.prompt=Q", show_default=False),
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="What is compared (repeat it for several).")] = None,
    engine: Annotated[Engine, typer.Option(help="How near-duplicates are found.")] = Engine.fast,
    threshold: Annotated[float, typer.Option(min=0.01, max=1, help="Jaccard similarity that counts as alike.")] = 0.8,
    num_perm: Annotated[int, typer.Option(min=1, help="Values of a text's sketch, at most.")] = 256,
    shingle_size: Annotated[int, typer.Option(min=1, help="Characters of a shingle.")] = 5,
    max_chars: Annotated[int, typer.Option(min=0, help="Characters compared; 0 compares whole texts.")] = 500,
    keep: Annotated[Keep, typer.Option(help="Which of those alike stays.")] = Keep.first,
    against: Annotated[
        list[str] | None, typer.Option(help="Take out what is like a row of this file instead.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Near-duplicates out, each with its witness in removed.jsonl: `data build` with that one step.

    With --against, rows that are like one of another set (an evaluation set) go, and only those.
    """
    with reported(debug):
        from rlhf.data.stats.inputs import target_of
        from rlhf.recipe.schema import DataRecipe
        from rlhf.runs.start import run_recipe, stop_on_sigterm

        splits = target_of(path, keys or ()).splits
        if len(splits) > 1:
            raise RecipeError(f"{path} holds {', '.join(splits)}; say which, for example: split={next(iter(splits))}")
        (sources,) = splits.values()
        match = {
            "column": column or ["prompt"],
            "engine": engine.value,
            "threshold": threshold,
            "num_perm": num_perm,
            "shingle_size": shingle_size,
            "max_chars": max_chars or None,
        }
        others = {"against": [{"path": other} for other in against or ()]}
        step = {"decontaminate": match | others} if against else {"dedup": match | {"keep": keep.value}}
        recipe = {
            "method": "data",
            "output_dir": str(output),
            "sources": sources,
            "steps": [step],
        }
        stop_on_sigterm()
        run_recipe(DataRecipe.model_validate(recipe))
        typer.echo(f"done: {output}")


@data_app.command("cache", epilog=example("rlhf data cache --clean --older-than 30"))
def data_cache(
    clean: Annotated[bool, typer.Option("--clean", help="Remove what is listed.")] = False,
    older_than: Annotated[float, typer.Option(min=0, metavar="DAYS", help="Only what is older.")] = 0,
    debug: Debug = False,
) -> None:
    """List the tokenised rows that training has kept, or remove them."""
    with reported(debug):
        from rlhf.tokens import cache as token_cache

        for entry in (found := list(token_cache.entries(older_than))):
            typer.echo(f"{entry.path.name}  {entry.rows:10,} rows  {entry.bytes / 1e6:10,.1f} MB  {entry.about}")
        size = sum(entry.bytes for entry in found) / 1e6
        if clean:
            token_cache.clean(older_than)
        typer.echo(f"{'removed ' if clean else ''}{len(found)} in {token_cache.root()}, {size:,.1f} MB")


@data_app.command("stats", epilog=example("rlhf data stats rows.jsonl --html stats.html"))
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
        from rlhf.data.stats.console import print_stats

        print_stats(report, screen)
        _write(report, json, html)


@data_app.command("lint", epilog=example("rlhf data lint rows.jsonl"))
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
        from rlhf.data.lint.findings import as_json, lint
        from rlhf.data.stats.console import print_findings

        findings = lint(report)
        print_findings(report, findings, screen)
        _write(report | {"findings": as_json(findings)}, json, html)
        if any(finding.severity == "error" for finding in findings):
            raise typer.Exit(3)


def _measured(
    target: str, overrides: list[str] | None, tokenizer: str | None, max_length: int | None
) -> tuple[dict[str, Any], Console]:
    from rlhf.data.stats.inputs import target_of

    found = target_of(target, overrides or ())
    from rlhf.data.stats.console import progress, wide
    from rlhf.data.stats.measure import measure
    from rlhf.tokens.lengths import counting

    found, counted = counting(found, tokenizer, max_length)
    screen = wide(console())
    with progress() as on_rows:
        return measure(found, counted, on_rows), screen


def _write(report: dict[str, Any], json: Path | None, html: Path | None) -> None:
    from rlhf.runs.manifest import write_atomically

    for path in filter(None, (json, html)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if json is not None:
        from json import dumps

        write_atomically(json, dumps(report, ensure_ascii=False, indent=2) + "\n")
    if html is not None:
        from rlhf.data.stats.page import render

        write_atomically(html, render(report))
