"""The model card: a README.md that says what was trained, on what, how, and how to load it. A run's `final/` has one."""

from __future__ import annotations

from typing import Any

from rlhf.embedded import hub_name
from rlhf.models.lineage import Lineage
from rlhf.recipe.loader import dump
from rlhf.recipe.training import TrainRecipe

ADAPTERS = "LoRA adapters, which are what lies here"


def model_card(
    recipe: TrainRecipe, lineage: Lineage, report: dict[str, Any], metrics: dict[str, Any], scoring: str | None = None
) -> str:
    """The card as Markdown, with the header that model hubs read.

    report: what became of the rows (data.json); scoring: what transformers makes of a whole reward model.
    """
    name = recipe.output_dir.rstrip("/").rsplit("/", 1)[-1]
    lines = [
        *_opening(lineage, name, f"trained: {ADAPTERS if recipe.lora else 'every weight'}"),
        "## Data",
        "",
        *_data(report),
        "",
        "## Last metrics",
        "",
        *[f"- {key}: {value:.6g}" for key, value in metrics.items() if isinstance(value, int | float)],
        "",
        "## Use",
        "",
        *_use(lineage, adapters=recipe.lora is not None, scoring=scoring),
        "",
        "## Recipe",
        "",
        "```yaml",
        dump(recipe).rstrip(),  # type: ignore[arg-type]
        "```",
    ]
    return "\n".join(lines) + "\n"


def short_card(lineage: Lineage, name: str, *, adapters: bool, scoring: str | None = None) -> str:
    """The card of a folder without one, as `rlhf merge` leaves it: what its lineage tells. `scoring` as in `model_card`."""
    what = f"trained: {ADAPTERS}" if adapters else "the whole model lies here"
    lines = [*_opening(lineage, name, what), "## Use", "", *_use(lineage, adapters=adapters, scoring=scoring)]
    return "\n".join(lines) + "\n"


def _opening(lineage: Lineage, name: str, what: str) -> list[str]:
    """The header, and a sentence on how the model came about."""
    is_reward_model = lineage.method == "reward"
    kind = "reward model" if is_reward_model else "language model"
    steps, processes = lineage.steps, lineage.processes
    return [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'text-classification' if is_reward_model else 'text-generation'}",
        *([f"base_model: {lineage.base.hub_name}"] if lineage.base.hub_name else []),
        f"tags: [rlhf, {lineage.method}]",
        "---",
        "",
        f"# {name}",
        "",
        f"A {kind}: `{hub_name(lineage.base.name_or_path)}` trained with `method: {lineage.method}` by rlhf "
        f"{lineage.rlhf} for {steps} step{'' if steps == 1 else 's'} in {processes} "
        f"process{'' if processes == 1 else 'es'}; {what}.",
        "",
        *_roles(lineage),
    ]


def _roles(lineage: Lineage) -> list[str]:
    """What the run asked beside the model that it trained: reward models, references, functions, servers."""
    if not lineage.roles:
        return []
    named = [f"- `{key}`: `{hub_name(role['name'])}`" for key, role in lineage.roles.items()]
    return ["Beside it the run asked:", "", *named, ""]


def _data(report: dict[str, Any]) -> list[str]:
    return [
        f"- {part}: `{source['path']}` ({source['format']}), {source['rows_out']:,} of {source['rows_in']:,} rows usable"
        for part, of_part in report.items()
        for source in of_part["sources"]
    ] or ["- none"]


def _use(lineage: Lineage, *, adapters: bool, scoring: str | None) -> list[str]:
    if lineage.method == "reward":
        in_recipe = "In a recipe, name this folder as a scorer's `model:`."
        for_others = (
            "`rlhf merge RUN -o FOLDER` makes a classifier of base, adapters and head, which transformers loads."
        )
        return [f"{in_recipe} {for_others if scoring is None else f'For other tools: {scoring}.'}"]
    load = ['model = AutoModelForCausalLM.from_pretrained("path/to/final")']
    if adapters:
        base = hub_name(lineage.base.name_or_path)
        load = [
            f'base = AutoModelForCausalLM.from_pretrained("{base}")  # in the precision that lineage.json names',
            'model = PeftModel.from_pretrained(base, "path/to/final")',
        ]
    kind, prompt = lineage.template["kind"], lineage.template["prompt"]
    return [
        "```python",
        *(["from peft import PeftModel"] if adapters else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        *load,
        'tokenizer = AutoTokenizer.from_pretrained("path/to/final")',
        "```",
        "",
        f"It was trained with prompts in this form (`kind: {kind}`): `{prompt!r}`.",
    ]
