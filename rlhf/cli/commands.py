"""The `rlhf` command: parse, call, map errors to exit codes. The `data` commands are in `rlhf.cli.data`, those for finished runs in
`rlhf.cli.results` and `push`, those that print what is shipped in `rlhf.cli.reference`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from rlhf import __version__
from rlhf.cli import push, reference, results
from rlhf.cli.common import Debug, Overrides, RecipeFile, carry_out, console, example, refuse_other_methods, reported
from rlhf.cli.data import data_app
from rlhf.errors import RecipeError

if TYPE_CHECKING:
    from rlhf.recipe.schema import AnyRecipe, GenerateRecipe

app = typer.Typer(
    help="From human rankings to a preference-tuned model: data, SFT, reward, PPO, DPO, evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point of the console script and of `python -m rlhf`."""
    app(prog_name="rlhf")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlhf {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.", show_default=False)
]

Compare = Annotated[
    str | None,
    typer.Option(
        "--compare",
        metavar="NAMES",
        help="Print what the first prompts give by these strategies: "
        "greedy,beam:4,sample,topk:50,topp:0.9,minp:0.05,penalty,norepeat",
        show_default=False,
    ),
]


@app.callback()
def options(version: Version = False, debug: Debug = False) -> None:
    """Options before the command."""
    if debug:
        os.environ["RLHF_DEBUG"] = "1"


@app.command(
    epilog=example(
        "rlhf train recipes/quickstart/1_sft.yaml",
        "rlhf train dpo.yaml training.learning_rate=1e-5 output_dir=outputs/second",
    )
)
def train(recipe: RecipeFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Train a model: sft, reward, ppo or dpo."""
    carry_out(("train",), recipe, overrides, debug)


@app.command(
    "generate",
    epilog=example(
        "rlhf generate recipes/quickstart/2_generate.yaml",
        "rlhf generate g.yaml --compare greedy,topp:0.9",
    ),
)
def generate_command(
    recipe: RecipeFile, overrides: Overrides = None, compare: Compare = None, debug: Debug = False
) -> None:
    """Sample completions of prompts and score them; or compare decoding strategies, and write nothing."""
    if compare is None:
        carry_out(("generate",), recipe, overrides, debug)
        return
    with reported(debug):
        from rlhf.recipe.loader import read

        loaded = read(recipe, overrides or ())
        refuse_other_methods(("generate",), recipe, loaded)
        from rlhf.generation.compare import compare as compare_strategies

        compare_strategies(compare, cast("GenerateRecipe", loaded.recipe), console())


@app.command(
    "eval",
    epilog=example(
        "rlhf eval recipes/quickstart/7_eval.yaml",
    ),
)
def eval_command(recipe: RecipeFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Compare models and write a report."""
    carry_out(("eval",), recipe, overrides, debug)


@app.command(
    "run",
    epilog=example(
        "rlhf run recipes/quickstart",
    ),
)
def run_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of numbered recipes.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Run a folder's numbered recipes in order.

    Finished stages are skipped; one that broke goes on from its last checkpoint.
    """
    with reported(debug, writes=True):
        from rlhf.cli.folder import run_folder
        from rlhf.runs.start import stop_on_sigterm

        stop_on_sigterm()
        run_folder(folder)


@app.command(
    epilog=example(
        "rlhf check recipes/quickstart/5_dpo.yaml",
    )
)
def check(recipe: RecipeFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Check a recipe without running it.

    Keys, values, files and callables; what earlier stages will make may be missing.
    """
    with reported(debug):
        from rlhf.cli.check import read_and_check

        loaded, findings = read_and_check(recipe, overrides or ())
        if findings.problems:
            raise RecipeError(findings.problems)
        typer.echo(f"ok: {recipe} ({loaded.recipe.method})")
        for fact in _facts(loaded.recipe):
            typer.echo(f"  {fact}")
        for note in findings.notes:
            typer.echo(f"  note: {note}")


@app.command(
    "inspect",
    epilog=example(
        "rlhf inspect recipes/quickstart/1_sft.yaml --rows 20",
    ),
)
def inspect_command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows to show, in the order of training.")] = 4,
    debug: Debug = False,
) -> None:
    """Show the rows and tokens that a recipe would train on, and check every row."""
    with reported(debug):
        from rlhf.recipe.loader import load

        loaded = load(recipe, overrides or ())
        from rlhf.tokens.inspect import inspect

        inspect(loaded, console(), rows)


@app.command(
    "doctor",
    epilog=example(
        "rlhf doctor",
    ),
)
def doctor_command(debug: Debug = False) -> None:
    """Tell what this machine can do, and what it lacks."""
    with reported(debug):
        from rlhf.cli.doctor import doctor

        doctor(console())


def _facts(recipe: AnyRecipe) -> Iterator[str]:
    """The few resolved settings that a glance should confirm."""
    yield f"output_dir: {recipe.output_dir}, seed: {recipe.seed}"
    if recipe.method == "data":
        yield f"sources: {', '.join(source.path for source in recipe.sources)}"
        steps = [step.name for step in recipe.steps]
        yield f"steps: {', '.join(steps) or 'none'}"
    elif recipe.method == "generate":
        yield f"model: {recipe.model.name_or_path}"
        yield f"{_counted(recipe.sampling.n, 'completion')} for each prompt of {', '.join(source.path for source in recipe.prompts)}"
    elif recipe.method == "eval":
        yield f"models: {', '.join(model.name for model in recipe.models)} (the first is the reference)"
        yield f"scorers: {', '.join(scorer.label for scorer in recipe.scorers)}"
    else:
        rank = f" r {recipe.lora.r}" if recipe.lora and recipe.lora.r else ""
        adapters = f", lora{rank}" if recipe.lora else ""
        bits = ", 4-bit" if recipe.quantization and recipe.quantization.load_in_4bit else ""
        yield f"model: {recipe.model.name_or_path} ({recipe.model.dtype}{adapters}{bits})"
        yield f"data: {', '.join(source.path for source in recipe.data.train)}, max_length {recipe.data.max_length}"
        training = recipe.training
        epochs = training.num_train_epochs
        length = _counted(training.max_steps, "step") if training.max_steps else _counted(epochs, "epoch")
        batch = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps}"
        yield f"training: {length}, batch {batch} on each device, learning_rate {training.learning_rate:g}"


def _counted(count: float, word: str) -> str:
    return f"{count:g} {word}{'' if count == 1 else 's'}"


# After the commands of this file, in the order in which `rlhf --help` lists them.
app.command(
    "report", epilog=example("rlhf report outputs/quickstart/eval", "rlhf report seed-0/eval seed-1/eval seed-2/eval")
)(results.report_command)
app.command("merge", epilog=example("rlhf merge outputs/quickstart/dpo -o merged --dtype bfloat16"))(
    results.merge_command
)
app.command("chat", epilog=example("rlhf chat outputs/quickstart/dpo"))(results.chat_command)
app.command("push", epilog=example("rlhf push outputs/quickstart/dpo me/my-model --private"))(push.push)
app.command("init", epilog=example("rlhf init dpo > dpo.yaml"))(reference.init)
app.command("recipes", epilog=example("rlhf recipes", "rlhf recipes quickstart --to my_recipes"))(reference.recipes)
app.command("schema", epilog=example("rlhf schema > recipe.schema.json"))(reference.schema)
app.command("docs", epilog=example("rlhf docs", "rlhf docs recipes"))(reference.docs)
