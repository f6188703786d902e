"""`rlhf generate RECIPE`: sample completions of prompts, score them, and write rows that the next stages read.

With scorers, the samples of a prompt become a ranking, `{prompt, completions, scores}`. Without scorers, each sample becomes a
demonstration, `{prompt, completion}`. Each row says which of its completions ended by themselves. A sample without text is of
no use: it is left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf.data.parquet_rows import write_rows
from rlhf.data.rows import Row, Text
from rlhf.display.progress import ProgressBar
from rlhf.generation.context import check_context, config_context
from rlhf.generation.engine import Completion, Engine
from rlhf.generation.in_process import InProcessEngine, default_device
from rlhf.generation.reward_scorer import Sample, check_template, load_reward_model
from rlhf.generation.scorers import load_scorers, mean_of, total_scores
from rlhf.generation.text_engine import as_completion
from rlhf.models.load import load_policy
from rlhf.models.precision import settled
from rlhf.recipe.schema import GenerateRecipe
from rlhf.runs.manifest import atomic_folder
from rlhf.tokens.recipe_rows import sampling_prompts, with_template
from rlhf.tokens.tokenizer import load_tokenizer


def generate(recipe: GenerateRecipe) -> dict[str, Any]:
    """Sample, score, and write `train/` and `report.json` under `output_dir`; returns the report.

    Raises RecipeError for a prompt that is too long, before the model is loaded.
    """
    console = Console(stderr=True)
    device = default_device()
    recipe = with_template(recipe)
    model = recipe.model.name_or_path
    tokenizer = load_tokenizer(model)
    prompts = sampling_prompts(recipe, tokenizer)
    check_context(max(len(prompt.ids) for prompt in prompts), recipe.sampling.max_new_tokens, config_context(model))
    for section in recipe.scorers:
        check_template(section, recipe.template)
    policy = load_policy(recipe.model, quantization=recipe.quantization, device=device)
    dtype = recipe.model.dtype and settled(recipe.model.dtype, device)
    load = partial(load_reward_model, dtype=dtype, device=device, quantization=recipe.quantization)
    scorers = load_scorers(recipe.scorers, tokenizer, load, prompts.columns)
    engine: Engine = InProcessEngine(policy, tokenizer)
    with ProgressBar("generate", len(prompts) * recipe.sampling.n, console) as bar:
        groups = engine.generate(
            [prompt.ids for prompt in prompts], recipe.sampling, seed=recipe.seed, progress=bar.advance
        )

    samples = [
        Sample(prompt.text, prompt.ids, completion, prompt.columns)
        for prompt, group in zip(prompts, groups, strict=True)
        for completion in group
    ]
    scores, parts = total_scores(scorers, samples)
    rows, dropped = _rows([prompt.content for prompt in prompts], groups, scores if scorers else None)
    means = {name: mean_of(values) for name, values in parts.items()}
    report = {
        "prompts": prompts.report,
        "rows_in": len(prompts),
        "rows_out": len(rows),
        "dropped": dropped,
        "samples": len(samples),
        "tokens": sum(len(s.completion.ids) for s in samples),
        "ended": sum(s.completion.ended for s in samples) / len(samples),
        "mean_score": {name: mean if share else None for name, (mean, share) in means.items()},
    }
    with atomic_folder(Path(recipe.output_dir) / "train") as folder:
        write_rows(folder / "part-0.parquet", rows)
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    (Path(recipe.output_dir) / "report.json").write_text(text, encoding="utf-8")
    console.print(
        f"{len(rows)} rows of {report['samples']} samples in {recipe.output_dir}; dropped: {dropped or 'none'}"
    )
    return report


def _rows(
    prompts: Sequence[Text], groups: Sequence[Sequence[Completion]], scores: Sequence[float] | None
) -> tuple[list[Row], dict[str, int]]:
    """(rows of one kind, how many samples and prompts were left out, by reason)."""
    rows: list[Row] = []
    dropped = {"empty samples": 0, "prompts with fewer than two samples to compare": 0}
    left = iter(scores or ())
    for prompt, group in zip(prompts, groups, strict=True):
        scored = [(c, next(left) if scores is not None else None) for c in group]
        kept = [(as_completion(prompt, c.text), c.ended, score) for c, score in scored if c.text.strip()]
        dropped["empty samples"] += len(group) - len(kept)
        if scores is None:
            rows += [{"prompt": prompt, "completion": text, "ended": ended} for text, ended, _ in kept]
        elif len(kept) < 2:
            dropped["prompts with fewer than two samples to compare"] += 1
        else:
            texts, ended, numbers = (list(column) for column in zip(*kept, strict=True))
            rows.append({"prompt": prompt, "completions": texts, "scores": numbers, "ended": ended})
    return rows, {reason: count for reason, count in dropped.items() if count}
