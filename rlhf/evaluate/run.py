"""`rlhf eval RECIPE`: compare models on held-out prompts, and show how the runs that made them went.

sample     every model answers every prompt, with the same random numbers  sampling
judge      scorers on each answer; pair judges compare with the first      judges, compare
measure    win rate, KL, length, diversity, with intervals                 measures, summary
prefer     the reward model and the policies on held-out pairs             preferences
report     report.json, report.html, samples.jsonl, a table                console, plots, report
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf import __version__
from rlhf.display.progress import say
from rlhf.evaluate.console import print_report
from rlhf.evaluate.findings import findings
from rlhf.evaluate.judges import Judges, compare_all, load_judges, score_all
from rlhf.evaluate.preferences import Pairs, reward_accuracy
from rlhf.evaluate.report import write_html
from rlhf.evaluate.runs import notes_of, runs_of, training_findings
from rlhf.evaluate.sampling import Answers, answers, load_reference
from rlhf.evaluate.summary import sample_rows, summarise
from rlhf.generation.in_process import default_device
from rlhf.recipe.schema import EvalRecipe
from rlhf.runs.manifest import write_atomically
from rlhf.tokens.recipe_rows import with_template


def evaluate(recipe: EvalRecipe) -> dict[str, Any]:
    """Write `report.json`, `report.html` and `samples.jsonl` under `output_dir`; returns the content of report.json.

    Raises RecipeError and DataError before anything is sampled, RlhfError for a judge that gives no usable answer.
    """
    began, folder = time.perf_counter(), Path(recipe.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = with_template(recipe)
    device = default_device()
    console = Console(stderr=True)
    reference = load_reference(recipe, device, console)
    tokenizer, prompts, pairs = reference.tokenizer, reference.prompts, reference.pairs
    say(console, "loading the judges")
    judges = load_judges(recipe, tokenizer, prompts.columns)
    everyone = list(answers(recipe, reference, device, console))
    del reference
    gc.collect()  # the policies are no longer needed: their memory is for the reward models

    say(console, f"scoring with {', '.join(s.label for s in judges.scorers)}")
    scores = score_all(judges, everyone, tokenizer, dtype=recipe.dtype, quantization=recipe.quantization, device=device)
    if judges.pair_judges:
        say(console, f"comparing with {', '.join(judges.pair_judges)}")
    verdicts = compare_all(judges, everyone)
    models = summarise(everyone, scores, verdicts, pairs)
    preferences = None
    if recipe.reward_model is not None and recipe.preferences:
        say(console, f"measuring {recipe.reward_model} on the held-out pairs")
        preferences = reward_accuracy(
            recipe.reward_model,
            recipe.preferences,
            recipe.template,
            seed=recipe.seed,
            dtype=recipe.dtype,
            quantization=recipe.quantization,
            device=device,
        )
    runs = runs_of(recipe)
    report = {
        "rlhf": __version__,
        "output_dir": recipe.output_dir,
        "seed": recipe.seed,
        "dtype": recipe.dtype or "dtype as trained or stored",
        "quantization": None if recipe.quantization is None else recipe.quantization.model_dump(),
        "sampling": recipe.sampling.model_dump(),
        "template": recipe.template.model_dump(),
        "prompts": {"count": len(prompts)} | prompts.report,
        "findings": findings(models, recipe.scorers[0].label) + training_findings(runs),
        "models": models,
        "scorers": list(scores),
        "pair_judges": list(verdicts),
        "judges": judges.describe(recipe),
        "preferences": preferences,
        "runs": [run.as_dict() for run in runs],
        "notes": _notes(recipe, judges, everyone, pairs, preferences) + notes_of(runs),
        "seconds": round(time.perf_counter() - began, 3),
    }
    rows = sample_rows(everyone, scores)
    write_atomically(folder / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_atomically(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_html(folder / "report.html", report, rows, runs)
    console = Console()
    print_report(report, console)
    console.print(f"report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return report


def _notes(
    recipe: EvalRecipe, judges: Judges, everyone: list[Answers], pairs: Pairs | None, preferences: dict[str, Any] | None
) -> list[str]:
    """What a reader must know before trusting the numbers."""
    notes = [note for answers_ in everyone for note in answers_.notes]
    sampling = recipe.sampling
    if sampling.temperature > 0 and (sampling.top_k or sampling.top_p < 1) and len(recipe.models) > 1:
        notes.append(
            f"Samples are drawn with top_k {sampling.top_k} and top_p {sampling.top_p:g}, not from the whole "
            "distribution, so the KL is a biased estimate of KL(model || reference)."
        )
    if recipe.preferences and recipe.reward_model is None:
        notes.append("preferences: there is no reward_model, so they measure only the policies' implicit rewards.")
    if recipe.reward_model is not None and not recipe.preferences:
        notes.append("reward_model: there are no preferences, so its accuracy on held-out pairs is not measured.")
    dropped = (preferences or {}).get("rows", pairs.report if pairs else {}).get("dropped")
    if dropped:
        notes.append("Held-out pairs left out: " + ", ".join(f"{n} x {why}" for why, n in dropped.items()) + ".")
    return notes
