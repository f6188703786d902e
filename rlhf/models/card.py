"""The model card of a run's `final/`: a README.md that says what was trained, on what, how, and how to load it."""

from __future__ import annotations

from typing import Any

from rlhf.embedded import PREFIX, hub_name
from rlhf.models.lineage import Lineage
from rlhf.recipe.loader import dump
from rlhf.recipe.training import TrainRecipe


def model_card(
    recipe: TrainRecipe, lineage: Lineage, report: dict[str, Any], metrics: dict[str, Any], scoring: str | None = None
) -> str:
    """The card as Markdown, with the header that model hubs read.

    report: what became of the rows (data.json); scoring: what transformers makes of a whole reward model.
    """
    base = hub_name(lineage.base.name_or_path)
    name = recipe.output_dir.rstrip("/").rsplit("/", 1)[-1]
    kind = "reward model" if recipe.method == "reward" else "language model"
    trained = "LoRA adapters, which are what lies here" if recipe.lora else "every weight"
    steps, processes = lineage.steps, lineage.processes
    lines = [
        *_header(recipe, base),
        f"# {name}",
        "",
        f"A {kind}: `{base}` trained with `method: {recipe.method}` by rlhf {lineage.rlhf} for {steps} "
        f"step{'' if steps == 1 else 's'} in {processes} process{'' if processes == 1 else 'es'}; trained: {trained}.",
        "",
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
        *_use(recipe, base, scoring),
        "",
        "## Recipe",
        "",
        "```yaml",
        dump(recipe).rstrip(),  # type: ignore[arg-type]
        "```",
    ]
    return "\n".join(lines) + "\n"


def _header(recipe: TrainRecipe, base: str) -> list[str]:
    task = "text-classification" if recipe.method == "reward" else "text-generation"
    is_hub_name = not base.startswith((PREFIX, ".", "/", "~")) and base.count("/") == 1
    named = [f"base_model: {base}"] if is_hub_name else []
    return [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        *named,
        f"tags: [rlhf, {recipe.method}]",
        "---",
        "",
    ]


def _data(report: dict[str, Any]) -> list[str]:
    return [
        f"- {part}: `{source['path']}` ({source['format']}), {source['rows_out']:,} of {source['rows_in']:,} rows usable"
        for part in ("train", "eval")
        for source in report[part]["sources"]
    ] or ["- none"]


def _use(recipe: TrainRecipe, base: str, scoring: str | None) -> list[str]:
    if recipe.method == "reward":
        in_recipe = "In a recipe, name this folder as a scorer's `model:`."
        for_others = (
            "`rlhf merge RUN -o FOLDER` makes a classifier of base, adapters and head, which transformers loads."
        )
        return [f"{in_recipe} {for_others if scoring is None else f'For other tools: {scoring}.'}"]
    load = ['model = AutoModelForCausalLM.from_pretrained("path/to/final")']
    if recipe.lora:
        load = [
            f'base = AutoModelForCausalLM.from_pretrained("{base}")  # in the precision that lineage.json names',
            'model = PeftModel.from_pretrained(base, "path/to/final")',
        ]
    return [
        "```python",
        *(["from peft import PeftModel"] if recipe.lora else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        *load,
        'tokenizer = AutoTokenizer.from_pretrained("path/to/final")',
        "```",
        "",
        f"It was trained with prompts in this form (`kind: {recipe.data.template.kind}`): "
        f"`{recipe.data.template.prompt!r}`.",
    ]
