"""Whether a loaded model is the function that was trained: a few rows, and what the trained module made of them.

`final/probe.json` holds the rows and the numbers. Whoever loads the folder computes them again. A hand-over that loses what
was learnt (weights rounded, quantised again, put on another base, a head left out) is an error there, and not a worse model
that nobody notices.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlhf.errors import CheckpointError
from rlhf.models.adapters import combine, is_stacked
from rlhf.models.batching import evaluating
from rlhf.tokens.segments import Segment, SegmentBatch, collate

if TYPE_CHECKING:
    from rlhf.models.policy import Policy
    from rlhf.models.scalar import ScalarModel

log = logging.getLogger(__name__)

NAME = "probe.json"
ROWS, TOKENS = 4, 128  # training rows, and tokens of each part of a row: enough to tell, quick to run
# The most that a number may differ. Log-probabilities are means over a row's tokens, in nats; scores are as they are.
EXACT = 1e-5  # relative, in float32 on both sides
SAME = {"logprobs": 2e-3, "scores": 2e-2}  # quantised or in bfloat16, on both sides alike
# of the mean over the rows, loaded in another dtype or on another kind of device than it was trained on
OTHER = {"logprobs": 3e-2, "scores": 2e-1}


@dataclass(frozen=True)
class Probe:
    """A few rows, and what the trained module made of them."""

    kind: str  # logprobs or scores
    precision: str  # of the base, and the kind of device
    bf16: bool  # whether under bfloat16 autocast
    rows: list[list[list[int]]]  # each a prompt and its completions, as ids
    values: list[float]  # one a completion, in order

    @property
    def segments(self) -> list[Segment]:
        return [Segment(prompt, completions) for prompt, *completions in self.rows]


def write_probe(module: Policy | ScalarModel, segments: Sequence[Segment], folder: Path) -> None:
    """Run a few rows through the trained module and write them with its numbers."""
    rows = [_short(segment) for segment in segments]
    if not rows:
        return
    ids = [[list(s.prompt_ids), *map(list, s.completion_ids)] for s in rows]
    probe = Probe(_kind(module), _precision(module), module.bf16, ids, values_of(module, rows))
    (folder / NAME).write_text(json.dumps(asdict(probe)) + "\n", encoding="utf-8")


def read_probe(folder: Path) -> Probe | None:
    """The probe of a `final/`; None for a folder without one."""
    path = folder / NAME
    return Probe(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def check_probe(module: Policy | ScalarModel, folder: Path, *, rounded: bool = False) -> float | None:
    """The difference to what was written; None where there is nothing to compare: no probe, or another kind of
    model (a reward model that starts from a policy). `rounded`: the weights were stored in another dtype than they had.

    The rows run under the autocast that the model was trained under, so that a caller without it can compare exactly.
    Raises CheckpointError for a difference over the bound.
    """
    probe = read_probe(folder)
    if probe is None or probe.kind != _kind(module):
        return None
    written, precision = torch.tensor(probe.values, dtype=torch.float64), _precision(module)
    own, module.bf16 = module.bf16, probe.bf16
    try:
        found = torch.tensor(values_of(module, probe.segments), dtype=torch.float64)
    finally:
        module.bf16 = own
    same, exact = probe.precision == precision, precision.startswith("float32") and not probe.bf16
    same = same and not rounded
    # another precision rounds each row in its own way, by up to a tenth of a nat in bf16; a loss of the model moves all rows
    difference = float((found - written).abs().max() if same else (found - written).mean().abs())
    bound = SAME[probe.kind] if same else OTHER[probe.kind]
    if same and exact:
        bound = EXACT * max(1.0, float(written.abs().max()))
    if not difference <= bound:  # also where it is not a number
        raise CheckpointError(
            f"{folder}: as loaded here, this is not the model that was trained: its {probe.kind} of {len(probe.rows)} training "
            f"rows are off by {difference:.2g} (bound {bound:.2g}; it was trained in {probe.precision}, loaded in "
            f"{precision}). Load it with the base, dtype and quantization that {folder / 'lineage.json'} names"
        )
    if not same and not rounded:
        log.warning("%s: trained in %s, loaded in %s: off by %.2g", folder, probe.precision, precision, difference)
    return difference


def combine_adapters(module: Policy | ScalarModel, segments: Sequence[Segment]) -> None:
    """Make one adapter of stacked ones (rlhf.models.adapters.combine); nothing for other modules.

    Raises CheckpointError where that changes the function. In float32 the bound is for each row. Otherwise the two sum in
    another order and each row has rounding of its own, so the mean over the rows is compared.
    """
    if not (module.has_adapters and is_stacked(module.model)) or not segments:
        return
    rows = [_short(segment) for segment in segments]
    before = torch.tensor(values_of(module, rows), dtype=torch.float64)
    combine(module.model)
    difference = torch.tensor(values_of(module, rows), dtype=torch.float64) - before
    exact = _precision(module).startswith("float32") and not module.bf16
    off = float(difference.abs().max() if exact else difference.mean().abs())
    bound = EXACT * max(1.0, float(before.abs().max())) if exact else OTHER[_kind(module)]
    if not off <= bound:
        raise CheckpointError(f"stacked adapters and one of both differ by {off:.2g} (bound {bound:.2g})")


@torch.no_grad()
def values_of(module: Policy | ScalarModel, rows: Sequence[Segment]) -> list[float]:
    """One number a completion: its mean log-probability a token, or its score."""
    batch: SegmentBatch = collate(rows).to(module.transformer.device)
    with evaluating(module):
        out = module(batch).float()
    if _kind(module) == "logprobs":
        out = batch.sum_rows(out) / batch.lengths
    return [float(value) for value in out.cpu()]


def _short(segment: Segment) -> Segment:
    """A row's beginning: the last tokens of its prompt and the first of its completions."""
    return Segment(segment.prompt_ids[-TOKENS:], [ids[:TOKENS] for ids in segment.completion_ids])


def _kind(module: Policy | ScalarModel) -> str:
    return "scores" if hasattr(module, "head") else "logprobs"


def _precision(module: Policy | ScalarModel) -> str:
    """What decides the last digits beside the autocast: the base's quantisation and dtype, and the kind of device."""
    network = module.transformer
    quantised = "4-bit " if getattr(network.config, "quantization_config", None) is not None else ""
    return f"{quantised}{str(network.dtype).removeprefix('torch.')} on {network.device.type}"
