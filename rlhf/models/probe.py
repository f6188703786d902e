"""Whether a loaded model is the function that was trained: a few rows, and what the trained module made of them.

`final/probe.json` holds the rows and the numbers. Whoever loads the folder computes them again. A hand-over that loses what
was learnt (weights rounded, quantised again, put on another base, a head left out) is an error there, and not a worse model
that nobody notices.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf.errors import CheckpointError
from rlhf.tokens.segments import Segment, SegmentBatch, collate

if TYPE_CHECKING:
    from rlhf.models.policy import Policy
    from rlhf.models.scalar import ScalarModel

log = logging.getLogger(__name__)

NAME = "probe.json"
ROWS, TOKENS = 4, 128  # training rows, and tokens of each part of a row: enough to tell, quick to run
# The most that the numbers may differ. Log-probabilities are means over a row's tokens, in nats; scores are as they are.
EXACT = 1e-5  # relative, in float32 on both sides
SAME = {"logprobs": 2e-3, "scores": 2e-2}  # quantised or in bfloat16, on both sides alike
OTHER = {"logprobs": 3e-2, "scores": 2e-1}  # loaded in another precision than it was trained in


def write_probe(module: Policy | ScalarModel, segments: Sequence[Segment], folder: Path) -> None:
    """Run a few rows through the trained module and write them with its numbers."""
    rows = [_short(segment) for segment in segments]
    if not rows:
        return
    content = {
        "kind": _kind(module),
        "precision": _precision(module),
        "rows": [[list(s.prompt_ids), *map(list, s.completion_ids)] for s in rows],
        "values": _values(module, rows),
    }
    (folder / NAME).write_text(json.dumps(content) + "\n", encoding="utf-8")


def check_probe(module: Policy | ScalarModel, folder: Path) -> float | None:
    """The largest difference to what was written; None where there is nothing to compare: no probe, or another kind of
    model (a reward model that starts from a policy). Raises CheckpointError for a difference over the bound.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content["kind"] != (kind := _kind(module)):
        return None
    rows, written = content["rows"], torch.tensor(content["values"])
    difference = distance(module, path)
    same = content["precision"] == (precision := _precision(module))
    bound = SAME[kind] if same else OTHER[kind]
    if same and precision == "float32":
        bound = EXACT * max(1.0, float(written.abs().max()))
    if not difference <= bound:  # also where it is not a number
        raise CheckpointError(
            f"{folder}: as loaded here, this is not the model that was trained: its {kind} of {len(rows)} training rows are "
            f"off by up to {difference:.2g} (bound {bound:.2g}; it was trained in {content['precision']}, loaded in "
            f"{precision}). Load it with the base, dtype and quantization that {folder / 'lineage.json'} names"
        )
    if not same:
        log.warning("%s: trained in %s, loaded in %s: off by %.2g", folder, content["precision"], precision, difference)
    return difference


def distance(module: Policy | ScalarModel, probe: Path) -> float:
    """The largest difference between what the module makes of a probe's rows and what is written there."""
    content: dict[str, Any] = json.loads(probe.read_text(encoding="utf-8"))
    rows = [Segment(prompt, completions) for prompt, *completions in content["rows"]]
    found, written = torch.tensor(_values(module, rows)).double(), torch.tensor(content["values"]).double()
    return float((found - written).abs().max())


def _short(segment: Segment) -> Segment:
    """A row's beginning: the last tokens of its prompt and the first of its completions."""
    return Segment(segment.prompt_ids[-TOKENS:], [ids[:TOKENS] for ids in segment.completion_ids])


@torch.no_grad()
def _values(module: Policy | ScalarModel, rows: Sequence[Segment]) -> list[float]:
    """One number a completion: its mean log-probability a token, or its score."""
    training = module.training
    module.eval()
    batch: SegmentBatch = collate(rows).to(module.transformer.device)
    out = module(batch).float()
    module.train(training)
    if _kind(module) == "logprobs":
        out = batch.sum_rows(out) / batch.lengths
    return [float(value) for value in out.cpu()]


def _kind(module: Policy | ScalarModel) -> str:
    return "scores" if hasattr(module, "head") else "logprobs"


def _precision(module: Policy | ScalarModel) -> str:
    """What the numbers are computed in: the base's dtype, its quantisation, and the autocast."""
    config = module.transformer.config
    quantised = "4-bit on " if getattr(config, "quantization_config", None) is not None else ""
    return f"{quantised}{str(module.transformer.dtype).removeprefix('torch.')}{', bfloat16 autocast' if module.bf16 else ''}"
