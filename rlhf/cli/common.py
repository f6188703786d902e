"""What the commands of `rlhf` share: their arguments, and how an exception becomes one message and an exit code.

Used by every command. Everything heavy is imported inside the commands, after the recipe was found to be good, so that a
typo is answered in a fraction of a second. Exit codes: 0 done; 1 failed at run time; 2 recipe or usage; 3 data; 4 environment
or memory; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf.errors import DataError, RecipeError
from rlhf.runs.failure import explain, is_main_process

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf.recipe.loader import Loaded


RANK_0_FIRST = 5.0  # seconds: a launcher ends the other processes within one


def complete_recipe(incomplete: str) -> list[str]:
    """The YAML files, and the folders to look into, that begin with what was typed, for the shell."""
    folder, _, start = incomplete.rpartition("/")
    inside = Path(folder or (".", "/")[incomplete.startswith("/")])
    entries = sorted(entry for entry in inside.iterdir() if entry.name.startswith(start)) if inside.is_dir() else []
    prefix = incomplete[: len(incomplete) - len(start)]
    return [
        f"{prefix}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if (entry.is_dir() and not entry.name.startswith(".")) or entry.suffix in (".yaml", ".yml")
    ]


def example(*lines: str) -> str:
    """The examples at the end of a command's --help; `\\b` keeps the lines as they are."""
    return "\b\nExample" + ("s" if len(lines) > 1 else "") + ":\n" + "\n".join(f"  {line}" for line in lines)


RecipeFile = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.", show_default=False, autocompletion=complete_recipe),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to it, e.g. training.learning_rate=1e-5", show_default=False
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", show_default=False)]


def carry_out(command: tuple[str, ...], path: Path, overrides: list[str] | None, debug: bool) -> None:
    with reported(debug, writes=True):
        from rlhf.recipe.loader import read
        from rlhf.runs.start import run_recipe, stop_on_sigterm

        loaded = read(path, overrides or ())
        refuse_other_methods(command, path, loaded)
        from rlhf.cli.check import refuse_absent

        refuse_absent(loaded)
        stop_on_sigterm()
        run_recipe(loaded.recipe, loaded)
        if is_main_process():
            typer.echo(f"done: {loaded.recipe.output_dir}")


def refuse_other_methods(command: tuple[str, ...], path: Path, loaded: Loaded) -> None:
    """Raise RecipeError for a recipe that another command runs; it says which."""
    method, right = loaded.recipe.method, loaded.recipe.command
    if right != command:
        place = loaded.place(("method",))
        wrong, right_words = " ".join(command), " ".join(right)
        raise RecipeError(
            f"{place}: method: rlhf {wrong} does not run {method} recipes; use: rlhf {right_words} {path}"
        )


@contextmanager
def reported(debug: bool, *, writes: bool = False) -> Iterator[None]:
    """Turn an exception into one message on standard error and the exit code that belongs to it.

    Where all processes of a launch fail, rank 0 alone speaks. Another one speaks late, for what it alone has met.

    A reader of the output that goes away, as `| head` does, ends a command early. That is an error only where the command
    `writes` files, which are then not finished.
    """
    debug = debug or os.environ.get("RLHF_DEBUG") == "1"
    if debug:
        os.environ["RLHF_DEBUG"] = "1"  # for the processes that `rlhf run` starts
    try:
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        # rich turns a reader that went away into a SystemExit
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1 if writes else 0) from None
        failure = explain(error)
        if debug:
            traceback.print_exc()
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        if not is_main_process() and not stopped and not debug:
            time.sleep(RANK_0_FIRST)  # if rank 0 has failed too, the launcher ends this process meanwhile
        if is_main_process() or not stopped or debug:
            hint = "" if failure.foreseen or debug else " (--debug shows where)"
            prefix = "" if isinstance(error, RecipeError | DataError) else "error: "  # those begin with file:line
            typer.echo(f"{prefix}{failure.message}{hint}", err=True)
        raise typer.Exit(failure.exit_code) from None


def console() -> Console:
    from rich.console import Console

    return Console()
