"""`rlhf merge RUN -o FOLDER`: base and adapters as one whole model, for tools that do not take adapters.

The way out of the house: a run's own later stages take its `final/` as it is. The base is loaded as it was trained on (4-bit
weights dequantised), the adapters are added in float32, and the result is stored in `dtype`. The merged model is loaded again
and held against the adapters on a few rows: what the merge costs is measured, and a merge that loses the model is refused.
A reward model is held against them as transformers' classifier too.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rlhf.errors import RecipeError, RlhfError
from rlhf.models.classifier import classifier_scores, how_to_score, is_classifier
from rlhf.models.lineage import NAME as LINEAGE
from rlhf.models.lineage import adapter_lineage, is_reward_model
from rlhf.models.load import load_policy, load_scalar_model
from rlhf.models.probe import read_probe, values_of
from rlhf.models.save import save_standalone
from rlhf.recipe.sections import ModelSection, QuantizationSection
from rlhf.runs.manifest import atomic_folder
from rlhf.tokens.tokenizer import find_model, load_tokenizer

Precision = Literal["float32", "bfloat16", "float16"]
BOUNDS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 2e-2}  # nats a token, or score: rounding, and not more


@dataclass(frozen=True)
class Merged:
    """What the merge costs, by the probe rows: of the merge itself, and of loading it in 4 bits later."""

    folder: Path
    off_by: float
    off_by_in_4bit: float | None  # None without bitsandbytes
    use: str | None  # of a reward model: what transformers makes of it


def merge(run: str, output: Path, dtype: Precision) -> Merged:
    """Write the whole model to `output`. Raises RecipeError for a run without adapters, RlhfError where the result is off."""
    folder = Path(find_model(run))
    lineage = adapter_lineage(folder)
    if lineage is None:
        raise RecipeError(f"{run}: holds no adapters of a LoRA run; there is nothing to merge")
    probe = read_probe(folder)
    if probe is None:
        raise RecipeError(f"{run}: has no probe.json to hold a merged model against; train the run again")
    load: Any = load_scalar_model if is_reward_model(run) else load_policy
    trained = load(ModelSection(name_or_path=run, dtype=lineage.base.dtype))  # type: ignore[arg-type]
    with atomic_folder(output) as final:
        save_standalone(trained, load_tokenizer(run), final, getattr(torch, dtype))
        (final / LINEAGE).write_bytes((folder / LINEAGE).read_bytes())
        expected = values_of(trained.float(), probe.segments)
        # both compute in float32, whatever is stored; only 4-bit layers go on computing as they were told to
        whole = load(ModelSection(name_or_path=str(final)))
        off_by = _largest(values_of(whole, probe.segments), expected)
        if is_reward_model(run) and is_classifier(final):
            off_by = max(off_by, _largest(classifier_scores(final, probe.segments), expected))
        computed = (lineage.base.quantization or {}).get("bnb_4bit_compute_dtype", "float32")
        bound = max(BOUNDS[dtype], BOUNDS[computed])
        if not off_by <= bound:
            raise RlhfError(
                f"{run}: merged in {dtype}, the model is off by {off_by:.2g} on its probe rows (bound {bound:g}); "
                "try --dtype float32"
            )
        off_by_in_4bit = None
        if importlib.util.find_spec("bitsandbytes") is not None:
            small = load(ModelSection(name_or_path=str(final)), quantization=QuantizationSection())
            off_by_in_4bit = _largest(values_of(small, probe.segments), expected)
        use = how_to_score(final) if is_reward_model(run) else None
    return Merged(output, off_by, off_by_in_4bit, use)


def _largest(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def describe(merged: Merged) -> str:
    """The cost in a sentence."""
    text = f"{merged.folder}: off by at most {merged.off_by:.2g} from the adapters on their base"
    if merged.off_by_in_4bit is not None:
        text += f"; loaded in 4 bits it would be off by {merged.off_by_in_4bit:.2g} (train on with the run's own final/ instead)"
    return text if merged.use is None else f"{text}\n{merged.use}"
