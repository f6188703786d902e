"""Checkpoints: everything a run needs to go on bitwise equal, in safetensors and JSON, whole or not there.

    checkpoints/step-000010/  model.safetensors      the parameters that train (a frozen base is not copied)
                              optimizer.safetensors  its tensors, by parameter name
                              rng-0.safetensors      torch's generators, one file a rank
                              state.json             step, optimizer scalars, python's and numpy's generators, stage state
                              manifest.json          sizes and SHA-256, written last

The learning rate and the data position are functions of the step, so they need no state. No pickle anywhere.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.errors import CheckpointError
from rlhf.runs.identity import changes
from rlhf.runs.manifest import TEMPORARY, atomic_folder, problems

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run folder. `identity` holds what must not change under a resumed run."""

    folder: Path
    identity: dict[str, Any]
    limit: int | None

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any],
        accelerator: Accelerator,
    ) -> None:
        """Write step-N, then remove the oldest beyond the limit. Every rank calls it; rank 0 writes."""
        generators = gather_object([_generator_state()])
        if accelerator.is_main_process:
            with atomic_folder(self.folder / f"step-{step:06d}") as folder:
                save_file(_trained(module), folder / "model.safetensors")
                tensors, scalars = _optimizer_state(optimizer, module)
                save_file(tensors, folder / "optimizer.safetensors")
                states = []
                for rank, (torch_state, other) in enumerate(generators):
                    save_file(torch_state, folder / f"rng-{rank}.safetensors")
                    states.append(other)
                state = {
                    "step": step,
                    "identity": self.identity,
                    "optimizer": scalars,
                    "generators": states,
                    "stage": extra,
                }
                (folder / "state.json").write_text(json.dumps(state) + "\n")
            for old in self._steps()[self.limit or None :] if self.limit else []:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def newest(self, resume: str) -> Path | None:
        """The checkpoint to go on from: `auto` the newest whole one, `never` none, else that very folder.

        A broken one is named in the log and the one before it taken. Raises CheckpointError for a named folder that is
        broken, and where every checkpoint is.
        """
        if resume == "never":
            return None
        if resume != "auto":
            path = Path(resume)
            if broken := problems(path):
                raise CheckpointError(f"checkpoint.resume: {path}: {'; '.join(broken)}")
            return path
        candidates = self._steps()
        for path in candidates:
            broken = problems(path)
            if not broken:
                return path
            log.warning("checkpoint %s is broken (%s); trying the one before it", path, "; ".join(broken))
        if candidates:
            raise CheckpointError(
                f"{self.folder}: every checkpoint is broken; start afresh with checkpoint.resume=never, which removes them"
            )
        return None

    def load(
        self, path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
    ) -> tuple[int, dict[str, Any]]:
        """Put a checkpoint back; returns the number of finished steps and the stage's own state."""
        state = json.loads((path / "state.json").read_text())
        if "identity" not in state:
            raise CheckpointError(
                f"{path} was written by an older rlhf, which did not record what the run was trained with; choose another "
                "output_dir, or start afresh with checkpoint.resume=never, which removes the checkpoints"
            )
        if differences := [line.removeprefix("recipe.") for line in changes(state["identity"], self.identity)]:
            raise CheckpointError(
                f"{path} belongs to another run:\n  " + "\n  ".join(differences) + "\nput that back, choose another "
                "output_dir, or start afresh with checkpoint.resume=never, which removes the checkpoints"
            )
        if len(state["generators"]) != accelerator.num_processes:
            raise CheckpointError(
                f"{path}: written by {len(state['generators'])} processes, resumed by {accelerator.num_processes}; use the same number"
            )
        _load_trained(module, load_file(path / "model.safetensors"), path)
        _load_optimizer(optimizer, module, load_file(path / "optimizer.safetensors"), state["optimizer"])
        rank = accelerator.process_index
        _set_generators(load_file(path / f"rng-{rank}.safetensors"), state["generators"][rank])
        return state["step"], state["stage"]

    def clear(self) -> None:
        """Remove every checkpoint: the run starts afresh."""
        for path in self._steps():
            log.warning("starting afresh: removing %s", path)
            shutil.rmtree(path)

    def abandon_after(self, step: int) -> None:
        """Rename the checkpoints past `step`: the run goes on from there, and must not find them again."""
        for path in self._steps():
            if int(path.name[5:]) > step:
                aside = path.with_name(f"abandoned-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                log.warning("going on from step %d: %s is now %s", step, path, aside.name)
                path.rename(aside)

    def sweep(self) -> None:
        """Remove what a killed save left behind."""
        for path in self.folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _steps(self) -> list[Path]:
        """Newest first."""
        return sorted(
            (p for p in self.folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()),
            key=lambda p: int(p.name[5:]),
            reverse=True,
        )


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in module.named_parameters() if p.requires_grad}


def _load_trained(module: nn.Module, saved: dict[str, Tensor], path: Path) -> None:
    mine = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if mine.keys() != saved.keys():
        odd = sorted(mine.keys() ^ saved.keys())
        raise CheckpointError(f"{path}: {len(odd)} parameters do not match this recipe, the first is {odd[0]}")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(saved[name])


def _names(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[str]:
    """Parameter names in the order of the optimizer's own numbering."""
    names = {id(p): name for name, p in module.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    names = _names(optimizer, module)
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in _flat(entries, names[index]):
            if isinstance(value, Tensor):
                tensors[key] = value.detach().cpu().clone()
            else:
                scalars[key] = value
    return tensors, scalars


def _flat(entries: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Leaves by path, `name/key` or `name/key/key`: 8-bit optimizers keep their quantisation in a dict of its own."""
    for key, value in entries.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}/{key}")
        else:
            yield f"{prefix}/{key}", value


def _load_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor], scalars: dict[str, Any]
) -> None:
    numbers = {name: i for i, name in enumerate(_names(optimizer, module))}
    state: dict[int, dict[str, Any]] = {}
    for path, value in (tensors | scalars).items():
        name, *outer, key = path.split("/")
        entries = state.setdefault(numbers[name], {})
        for step in outer:
            entries = entries.setdefault(step, {})
        entries[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _generator_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return tensors, {
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def _set_generators(tensors: dict[str, Tensor], other: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    kind, keys, position, has_gauss, gauss = other["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = other["python"]
    random.setstate((version, tuple(internal), gauss_next))
