"""The commands for what a run left: `report` prints it, `chat` talks to it, `merge` makes one model of it. `push` has a file of its own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rlhf.cli.common import Debug, console, reported
from rlhf.errors import RecipeError


class Dtype(StrEnum):
    """Of `merge`."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def report_command(
    evaluations: Annotated[
        list[Path],
        typer.Argument(
            metavar="EVALUATION...", help="Output folders of `rlhf eval`, or their report.json.", show_default=False
        ),
    ],
    debug: Debug = False,
) -> None:
    """Print finished evaluations as a Markdown table with findings; of several runs, the means and ranges."""
    with reported(debug):
        from rlhf.evaluate.spread import as_markdown, read_reports

        typer.echo(as_markdown(read_reports(evaluations)), nl=False)


def merge_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A LoRA run's folder.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write the whole model.", show_default=False),
    ],
    dtype: Annotated[Dtype, typer.Option(help="The precision of the stored weights.")] = Dtype.bfloat16,
    debug: Debug = False,
) -> None:
    """Write base and adapters as one model, for tools that take no adapters; says what that costs."""
    with reported(debug):
        from rlhf.models.merge import describe, merge

        typer.echo(describe(merge(run, output, dtype.value)))


def chat_command(
    model: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder or a model.", show_default=False)
    ],
    debug: Debug = False,
) -> None:
    """Talk to a trained model."""
    with reported(debug):
        from rlhf.cli.check.paths import look_for_model

        reason, certain = look_for_model("model", model)
        if reason is not None and certain:
            raise RecipeError(f"{reason} (has the run that makes it finished?)")
        from rlhf.models.lineage import problem_with_policy

        if problem := problem_with_policy(model):
            raise RecipeError(problem)
        from rlhf.generation.chat import chat

        try:
            chat(model, console())
        except RecipeError as error:  # nobody wrote a recipe, so no key of one is at fault
            raise RecipeError([problem.removeprefix("model.name_or_path: ") for problem in error.problems]) from error
