"""A frozen reference's log-probabilities, computed once for each row and kept on disk.

    rows of the token cache -> parts of 1,024 rows -> the reference, a batch at a time in file order -> one float32 a token

A part's name is a hash of all that its numbers depend on: the tokens, the model, how it is loaded and run, the size of a batch, and the
code. So runs with other seeds, betas and learning rates share it, and whether it was there changes no number. The processes of a run
share the parts. A run that was killed while it made them goes on with the next part. They lie beside the tokens (`rlhf data cache`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from rlhf import __version__
from rlhf.data.origins import OnDemand
from rlhf.models.batching import evaluating
from rlhf.models.policy import Policy
from rlhf.runs import cache
from rlhf.runs.identity import digest
from rlhf.tokens.cache import code_of, root, versions_of
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.store import Segments

PART = 1024  # rows
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class ReferenceModel:
    """A frozen policy, its content, and how it runs. `batch_size`: rows of one forward pass, which no gradient follows."""

    policy: Policy
    name: str
    content: dict[str, Any]
    batch_size: int


class Referenced(OnDemand[Segment]):
    """The rows, each with its reference's log-probabilities."""

    def __init__(self, segments: Sequence[Segment], model: ReferenceModel, accelerator: Accelerator) -> None:
        assert isinstance(segments, Segments), "rows of the token cache"
        self._segments = segments
        key = {"rows": segments.fingerprint, "batch": [PART, model.batch_size]} | model.content | _program(accelerator)
        part = partial(_part, digest(key), segments, model)
        numbers = range(-(-len(segments) // PART))
        for number in numbers[accelerator.process_index :: accelerator.num_processes]:
            part(number)
        accelerator.wait_for_everyone()
        # a rank that does not see another's files makes them again
        self._values = [np.load(part(number) / "logprobs.npy", mmap_mode="r") for number in numbers]
        self._trained = segments.trained_tokens
        starts_in_all = np.cumsum(self._trained) - self._trained
        self._starts = starts_in_all - np.repeat(starts_in_all[::PART], PART)[: len(segments)]  # each in its own part

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def lengths(self) -> Any:
        """Tokens of each segment."""
        return self._segments.lengths

    def _at(self, index: int) -> Segment:
        start = int(self._starts[index])
        values = self._values[index // PART][start : start + int(self._trained[index])]
        return replace(self._segments[index], ref_logprobs=values)


def _part(key: str, segments: Segments, model: ReferenceModel, number: int) -> Path:
    """The folder of one part, made if it is not there."""

    def make(folder: Path) -> None:
        rows = segments[number * PART : (number + 1) * PART]
        np.save(folder / "logprobs.npy", torch.cat(list(_logprobs(model, rows))).numpy())
        report = {"rows_out": len(rows), "sources": [{"path": f"log-probabilities by {model.name}"}]}
        (folder / "report.json").write_text(json.dumps({"report": report}, indent=1) + "\n", encoding="utf-8")

    return cache.folder(f"{key}-{number:05d}", __version__, make, parent=root(), variable="RLHF_TOKENS", quiet=True)


def _logprobs(model: ReferenceModel, rows: Sequence[Segment]) -> Iterator[torch.Tensor]:
    """Of the trained tokens, row by row; on the host."""
    policy = model.policy
    with evaluating(policy), torch.no_grad():
        for start in range(0, len(rows), model.batch_size):
            batch = collate(rows[start : start + model.batch_size]).to(policy.transformer.device)
            yield policy(batch).float().cpu()


def _program(accelerator: Accelerator) -> dict[str, Any]:
    """The code and the kind of machine that compute the numbers."""
    device = accelerator.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "rlhf": __version__,
        "code": code_of("models", "tokens"),
        "libraries": versions_of(LIBRARIES),
        "device": f"{device.type} {kind}",
    }
