"""What comes with the program, on the command line: the pages of docs/, the recipes, starters, the recipe's schema.

In a checkout the files lie beside the package, in a wheel inside it (see setup.py).
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from rlhf.cli.common import Debug, reported
from rlhf.errors import RecipeError

T = TypeVar("T")
PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """The folder `docs` or `recipes`: in the package, or beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def pages() -> dict[str, Path]:
    """The pages by name, in the order of the alphabet."""
    return {path.stem: path for path in sorted(shipped("docs").glob("*.md"))}


def recipe_folders() -> dict[str, Path]:
    """The shipped folders of recipes by name."""
    return {path.name: path for path in sorted(shipped("recipes").iterdir()) if any(path.glob("*.yaml"))}


def complete_page(incomplete: str) -> list[str]:
    """The pages that begin with what was typed, for the shell."""
    return [name for name in pages() if name.startswith(incomplete)]


def complete_recipe_folder(incomplete: str) -> list[str]:
    """The recipe folders that begin with what was typed, for the shell."""
    return [name for name in recipe_folders() if name.startswith(incomplete)]


def docs(
    page: Annotated[
        str | None, typer.Argument(metavar="[PAGE]", show_default=False, autocompletion=complete_page)
    ] = None,
    debug: Debug = False,
) -> None:
    """List the documentation's pages, or print one: for people and for coding assistants."""
    with reported(debug):
        if page is None:
            for name, path in pages().items():
                typer.echo(f"{name:<14} {_title(path)}")
            return
        typer.echo(_named(page.removesuffix(".md"), pages(), "page").read_text(encoding="utf-8"), nl=False)


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", show_default=False, autocompletion=complete_recipe_folder)
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="Copy them to this new folder.")] = None,
    debug: Debug = False,
) -> None:
    """List the recipes that come with rlhf, or the files of one; --to copies them, for you to change."""
    with reported(debug):
        if name is None:
            if to is not None:
                raise RecipeError("--to needs the name of a recipe folder; list them with: rlhf recipes")
            for folder_name, folder in recipe_folders().items():
                typer.echo(f"{folder_name:<24} {', '.join(sorted(path.name for path in folder.glob('*.yaml')))}")
            return
        folder = _named(name, recipe_folders(), "recipe folder")
        if to is None:
            for path in sorted(folder.iterdir()):
                typer.echo(str(path))
            return
        if to.exists():
            raise RecipeError(f"{to} is there already; give a new folder to --to")
        shutil.copytree(folder, to, ignore=shutil.ignore_patterns("__pycache__"))
        typer.echo(f"copied to {to}; the recipes write under outputs/: change output_dir: to keep runs apart")


def init(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD", help="As a recipe's method: sft, reward, ppo, grpo, dpo, data ...", show_default=False
        ),
    ],
    debug: Debug = False,
) -> None:
    """Print a recipe to start from, with comments."""
    with reported(debug):
        from rlhf.cli.starters import starter
        from rlhf.recipe.schema import METHODS

        typer.echo(starter(method, _named(method, METHODS, "method").command), nl=False)


def schema(debug: Debug = False) -> None:
    """Print the recipes' JSON schema, for editors that complete and check YAML."""
    with reported(debug):
        import json

        from rlhf.recipe.schema import RECIPE

        typer.echo(json.dumps(RECIPE.json_schema(), indent=2))


def _named(name: str, there: Mapping[str, T], what: str) -> T:
    if name in there:
        return there[name]
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(there)}"
    raise RecipeError(f"no {what} {name!r}; {hint}")


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
