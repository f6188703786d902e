"""`rlhf train RECIPE`: load what the recipe names, run the loop, write `final/`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from rlhf import __version__
from rlhf.embedded import resolve
from rlhf.errors import RecipeError, SetupError
from rlhf.models.card import model_card
from rlhf.models.classifier import how_to_score
from rlhf.models.lineage import Base, Lineage, is_reward_model, read_lineage
from rlhf.models.load import source_of
from rlhf.models.policy import Policy
from rlhf.models.precision import warning_for, with_precision
from rlhf.models.probe import ROWS as PROBE_ROWS
from rlhf.models.probe import combine_adapters, write_probe
from rlhf.models.save import save_final
from rlhf.models.scalar import ScalarModel
from rlhf.models.scores import measure_scale
from rlhf.recipe.scorers import HOW_TO_ASK
from rlhf.recipe.training import TrainRecipe
from rlhf.runs.identity import of_callable, of_model
from rlhf.runs.launch import refuse_rival_processes
from rlhf.runs.manifest import atomic_folder, write_atomically
from rlhf.runs.start import imported
from rlhf.tokens.dataset import TokenizedRows
from rlhf.tokens.recipe_rows import given_rows, probe_rows, training_rows, with_template
from rlhf.tokens.segments import Segment
from rlhf.tokens.tokenizer import find_model, load_tokenizer
from rlhf.train.checkpoint import Checkpoints
from rlhf.train.loop import Stage, fit
from rlhf.train.setup import Setup

# keys of `training` that a resumed run may change: they move no number that was already computed
MAY_CHANGE = ("max_steps", "num_train_epochs", "eval_steps", "per_device_eval_batch_size")
# and of `rollouts`: where the engine is and how it is run
ENGINE_MAY_CHANGE = (
    "base_url", "api_key_env", "concurrency", "timeout", "max_retries", "max_gap", "gpu_memory_utilization", "sleep",
    "enforce_eager",
)  # fmt: skip


def train(recipe: TrainRecipe) -> dict[str, Any]:
    """Train one stage to the end and write its `final/`; returns the last metrics and what became of the rows.

    Goes on from the newest whole checkpoint (`checkpoint.resume`). Raises the errors of rlhf.errors.
    """
    folder = Path(recipe.output_dir)
    accelerator = make_accelerator(recipe)
    if problem := recipe.problem_with(accelerator.num_processes):
        raise RecipeError(": ".join(problem))
    set_seed(recipe.seed)
    recipe = with_precision(with_template(recipe), accelerator.device)
    if warning := warning_for(recipe, accelerator.device):
        accelerator.print(warning)
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    rows, held_out = (training_rows(recipe, tokenizer, which) for which in ("train", "eval"))
    given = given_rows(recipe, tokenizer)
    report = {"train": rows.report, "eval": held_out.report} | ({"ptx": given.report} if recipe.given else {})
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "data.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    setup = Setup(recipe, accelerator, tokenizer, rows.items, held_out.items, given.items)
    stage: Stage[Any] = imported(recipe.stage)(recipe, setup)
    seed_rank(recipe.seed, accelerator.process_index)  # last: what is drawn at the start is the same on every rank
    identity = run_identity(recipe, rows.fingerprint, given.fingerprint)
    lineage = _lineage(recipe, identity, stage.total_steps, accelerator.num_processes)
    checkpoints = Checkpoints(folder / "checkpoints", identity, recipe.checkpoint.save_total_limit)
    accelerator.init_trackers("rlhf")
    with setup.opened:  # an engine of vLLM is closed, also after an error
        metrics = fit(stage, recipe, checkpoints, accelerator, title=f"{recipe.method} {folder.name}")
    if accelerator.is_main_process:
        accelerator.free_memory()  # the optimizer's: room to load what is saved
        scored = held_out if len(held_out.items) else rows
        if isinstance(stage.model, ScalarModel) and isinstance(scored, TokenizedRows):
            stage.model.scale = measure_scale(stage.model, scored.segments, rows.report)
        samples = probe_rows(rows, PROBE_ROWS)
        with atomic_folder(folder / "final") as final:
            _write_final(stage.model, setup, samples, final, lineage)
            scoring = how_to_score(final) if is_reward_model(str(final)) and recipe.lora is None else None
            (final / "README.md").write_text(model_card(recipe, lineage, report, metrics, scoring), encoding="utf-8")
        _, lost = setup.load_again(stage.model, folder / "final")  # after it is there: what fails here is not lost
        accelerator.print(f"final/ gives what it should: off by at most {lost:.1g} on {PROBE_ROWS} rows")
    accelerator.wait_for_everyone()
    accelerator.end_training()  # last: it takes the process group down
    return {"metrics": metrics, "rows": report, "final": str(folder / "final")}


def _write_final(
    model: Policy | ScalarModel, setup: Setup, samples: Sequence[Segment], folder: Path, lineage: Lineage
) -> None:
    """The model and its probe. What storing it in another dtype loses is measured and said; the probe is then of what is stored."""
    recipe = setup.recipe
    stored = recipe.checkpoint.final_dtype or recipe.model.dtype
    combine_adapters(model, samples)
    save_final(model, setup.tokenizer, folder, dtype=getattr(torch, stored), lineage=lineage)
    write_probe(model, samples, folder)
    if stored != recipe.model.dtype:
        rounded, lost = setup.load_again(model, folder, rounded=True)
        setup.accelerator.print(
            f"stored in {stored}, trained in {recipe.model.dtype}: off by {lost:.2g} on {PROBE_ROWS} rows"
        )
        write_probe(rounded, samples, folder)


def make_accelerator(recipe: TrainRecipe) -> Accelerator:
    """Accelerate for devices, processes and trackers; precision and accumulation are the recipe's, in one place."""
    try:
        accelerator = Accelerator(
            mixed_precision="no", log_with=list(recipe.logging.report_to) or None, project_dir=recipe.output_dir
        )
    except (ImportError, ValueError) as error:
        raise SetupError(f"logging.report_to: {error}") from error
    refuse_rival_processes(accelerator.num_processes)
    return accelerator


def seed_rank(seed: int, rank: int) -> None:
    """Give every rank but 0 random generators of its own, so that no two ranks drop the same activations.

    Rank 0 goes on with the generators that drew the new weights, as a run of one process does.
    """
    if rank:
        set_seed(int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]))


def run_identity(recipe: TrainRecipe, rows: str, given: str = "") -> dict[str, Any]:
    """What may not change under a resumed run: how many steps it makes, where it writes and what it logs may."""
    content = recipe.model_dump(mode="json", exclude={"output_dir", "checkpoint", "logging", "doctor"})
    for key in MAY_CHANGE:
        content["training"].pop(key)
    for reward in content.get(recipe.method, {}).get("rewards", ()):
        for key in HOW_TO_ASK:
            reward.pop(key)
    for key in ENGINE_MAY_CHANGE:
        (content.get(recipe.method, {}).get("rollouts") or {}).pop(key, None)
    models = {"model.name_or_path": recipe.model.name_or_path} | recipe.other_models()
    return {
        "recipe": content,
        "rows": rows,
        **({"given": given} if given else {}),
        "models": {key: of_model(resolve(name)) for key, name in models.items()},
        "callables": {key: of_callable(name) for key, name in recipe.callables().items()},
    }


def _lineage(recipe: TrainRecipe, identity: dict[str, Any], steps: int, processes: int) -> Lineage:
    """Where `final/` comes from. The base is the parent's where the parent is adapters, else the model itself."""
    name = recipe.model.name_or_path
    parent = read_lineage(Path(find_model(name)))
    source = source_of(name, recipe.quantization)
    quantization = None if source.quantization is None else source.quantization.model_dump()
    own = Base(name, identity["models"]["model.name_or_path"], recipe.model.dtype, quantization)
    parents = (
        () if parent is None else (*parent.parents, {"path": name, "method": parent.method, "identity": own.identity})
    )
    return Lineage(
        method=recipe.method,
        base=own if parent is None or source.parent is None else replace(parent.base, dtype=recipe.model.dtype),
        parents=parents,
        template=recipe.data.template.model_dump(),
        rows=identity["rows"],
        steps=steps,
        processes=processes,
        rlhf=__version__,
        roles=_roles(recipe, identity),
    )


def _roles(recipe: TrainRecipe, identity: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What the run asked beside the model that it trained; the content of a server is not known."""
    models, functions = recipe.other_models(), recipe.callables()
    servers = {f"{recipe.method}.rewards.{i}.url": s.url for i, s in enumerate(recipe.scorers) if s.url is not None}
    return (
        {key: {"name": name, "identity": identity["models"][key]} for key, name in models.items()}
        | {key: {"name": name, "identity": identity["callables"][key]} for key, name in functions.items()}
        | {key: {"name": name} for key, name in servers.items()}
    )
