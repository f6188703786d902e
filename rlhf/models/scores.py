"""The scale of a reward model's scores: what it gave the completions that it was held against, and whether all of those ended.

A reward model learns differences, so the level and the spread of its scores are arbitrary: one run's 0.4 is another's 3. The
reward stage measures both and writes them beside the head (`scores.json`). Whoever asks the model, PPO first of all, then speaks
of standard deviations, and `kl_coef` means the same with every reward model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf.errors import CheckpointError
from rlhf.models.batching import evaluating
from rlhf.tokens.segments import Segment, collate

if TYPE_CHECKING:
    from rlhf.models.scalar import ScalarModel

NAME = "scores.json"
ROWS, BATCH = 256, 16  # rows that are scored, and rows in a forward pass
FEW = 0.01  # a model that saw fewer completions without an end does not know them


@dataclass(frozen=True)
class ScoreScale:
    """Mean and standard deviation of the scores of `completions` completions, and the share of the training completions that
    were cut off.
    """

    mean: float
    std: float
    completions: int
    unfinished: float

    @property
    def knows_unfinished(self) -> bool:
        """Whether the model was trained on completions without an end, too."""
        return self.unfinished >= FEW

    def write(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def read_scale(folder: Path) -> ScoreScale | None:
    """The scale that the reward stage left in a folder; None for a reward model from before it did so."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        return ScoreScale(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: is not the scale of a reward model's scores: {error}") from error


@torch.no_grad()
def measure_scale(model: ScalarModel, segments: Sequence[Segment], report: dict[str, Any]) -> ScoreScale:
    """The scale over the first rows of `segments`. `report`: what became of the training rows (rlhf.tokens.dataset)."""
    device = model.transformer.device
    rows = [segments[i] for i in range(min(ROWS, len(segments)))]
    with evaluating(model):
        parts = [model(collate(rows[i : i + BATCH]).to(device)).double().cpu() for i in range(0, len(rows), BATCH)]
    scores = torch.cat(parts)
    unfinished = (report["unfinished"] + report["truncated"]) / max(report["completions"], 1)
    return ScoreScale(float(scores.mean()), max(float(scores.std(correction=0)), 1e-6), len(scores), unfinished)
