"""`rlhf train RECIPE`: load what the recipe names, run the loop, write `final/`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from rlhf import __version__
from rlhf.data.rows import text_of
from rlhf.embedded import resolve
from rlhf.errors import SetupError
from rlhf.models.save import save_final
from rlhf.recipe.schema import DpoRecipe, PpoRecipe, TrainRecipe
from rlhf.runs.manifest import atomic_folder
from rlhf.tokens.dataset import KINDS, prompts, tokenize
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.checkpoint import Checkpoints
from rlhf.train.dpo import Dpo
from rlhf.train.loop import fit
from rlhf.train.ppo import Ppo
from rlhf.train.reward import Reward
from rlhf.train.rollout import Prompt
from rlhf.train.setup import Setup
from rlhf.train.sft import Sft

STAGES: dict[str, Any] = {"sft": Sft, "reward": Reward, "dpo": Dpo, "ppo": Ppo}


@dataclass(frozen=True)
class Rows:
    """Tokenised rows for either kind of stage, their report, and a hash of their tokens."""

    train: Sequence[Any]
    held_out: Sequence[Any]
    report: dict[str, Any]
    digest: str


def train(recipe: TrainRecipe) -> dict[str, Any]:
    """Train one stage to the end and write its `final/`; returns the last metrics and what became of the rows.

    Goes on from the newest whole checkpoint (`checkpoint.resume`). Raises the errors of rlhf.errors.
    """
    folder = Path(recipe.output_dir)
    accelerator = make_accelerator(recipe)
    set_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    rows = load_rows(recipe, tokenizer)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data.json").write_text(
            json.dumps(rows.report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    setup = Setup(recipe, accelerator, tokenizer, rows.train, rows.held_out)
    stage = STAGES[recipe.method](recipe, setup)
    checkpoints = Checkpoints(
        folder / "checkpoints", _identity(recipe, rows.digest), recipe.checkpoint.save_total_limit
    )
    accelerator.init_trackers("rlhf")
    metrics = fit(stage, recipe, checkpoints, accelerator, title=f"{recipe.method} {folder.name}")
    if accelerator.is_main_process:
        with atomic_folder(folder / "final") as final:
            lineage = _lineage(recipe, rows.digest, stage.total_steps, accelerator.num_processes)
            dtype = getattr(torch, recipe.model.dtype)
            save_final(getattr(stage, "policy", stage.module), tokenizer, final, dtype=dtype, lineage=lineage)
    accelerator.wait_for_everyone()
    accelerator.end_training()  # last: it takes the process group down
    return {"metrics": metrics, "rows": rows.report, "final": str(folder / "final")}


def make_accelerator(recipe: TrainRecipe) -> Accelerator:
    """Accelerate for devices, processes and trackers; precision and accumulation are the recipe's, in one place."""
    try:
        return Accelerator(
            mixed_precision="no", log_with=list(recipe.logging.report_to) or None, project_dir=recipe.output_dir
        )
    except (ImportError, ValueError) as error:
        raise SetupError(f"logging.report_to: {error}") from error


def load_rows(recipe: TrainRecipe, tokenizer: Any) -> Rows:
    """The recipe's rows as tokens. Prompts for PPO, segments for the others."""
    if isinstance(recipe, PpoRecipe):
        longest = recipe.data.max_length - recipe.ppo.sampling.max_new_tokens
        overflow = "error" if recipe.data.on_overflow == "error" else "drop"  # a prompt is never cut
        sides = [
            prompts(sources, tokenizer, recipe.data.template, longest, overflow, seed=recipe.seed)
            for sources in (recipe.data.train, recipe.data.eval)
        ]
        train, held_out = [[Prompt(text_of(text), ids) for text, ids in side] for side in sides]
        return Rows(
            train, held_out, {"train": sides[0].report, "eval": sides[1].report}, _digest([p.ids for p in train])
        )
    kinds = KINDS[recipe.method]
    parts = [tokenize(recipe.data, tokenizer, kinds, which, seed=recipe.seed) for which in ("train", "eval")]
    report = {"train": parts[0].report, "eval": parts[1].report}
    return Rows(parts[0].segments, parts[1].segments, report, parts[0].fingerprint)


def _identity(recipe: TrainRecipe, data: str) -> dict[str, str]:
    """What may not change under a resumed run: how many steps, where it writes and what it logs may."""
    content = recipe.model_dump(exclude={"output_dir", "checkpoint", "logging"})
    for key in ("max_steps", "num_train_epochs", "eval_steps", "per_device_eval_batch_size"):
        content["training"].pop(key)
    others = [reference for reference in _other_models(recipe) if reference not in (None, "initial")]
    return {
        "recipe": _digest(content),
        "data": data,
        "model": _model_identity(recipe.model.name_or_path),
        "other models": _digest([_model_identity(name) for name in others if name is not None]),
    }


def _other_models(recipe: TrainRecipe) -> list[str | None]:
    """What else a method loads: references, reward models, a value model."""
    if isinstance(recipe, DpoRecipe):
        return [recipe.dpo.reference]
    if isinstance(recipe, PpoRecipe):
        return [recipe.ppo.reference, recipe.ppo.value_model, *(reward.model for reward in recipe.ppo.rewards)]
    return []


def _model_identity(name_or_path: str) -> str:
    """The base by its manifest where it has one, else by its files' names and sizes; a hub name as it is."""
    path = Path(resolve(name_or_path))
    if (path / "manifest.json").is_file():
        return _digest(json.loads((path / "manifest.json").read_text())["files"])
    if path.is_dir():
        return _digest(sorted((p.name, p.stat().st_size) for p in path.iterdir() if p.is_file()))
    return name_or_path


def _lineage(recipe: TrainRecipe, data: str, steps: int, processes: int) -> dict[str, Any]:
    """Where `final/` came from, and the template it was trained with."""
    return {
        "rlhf": __version__,
        "method": recipe.method,
        "base": recipe.model.name_or_path,
        "base_identity": _model_identity(recipe.model.name_or_path),
        "data": data,
        "steps": steps,
        "processes": processes,
        "template": recipe.data.template.model_dump(),
    }


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
