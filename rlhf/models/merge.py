"""`rlhf merge RUN -o FOLDER`: base and adapters as one whole model, for tools that do not take adapters.

The way out of the house: a run's own later stages take its `final/` as it is. The base is loaded as it was trained on (4-bit
weights dequantised), the adapters are added in float32, and the result is stored in `dtype`. The merged model is loaded again
and held against the adapters on a few rows: what the merge costs is measured, and a merge that loses the model is refused.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rlhf.errors import RecipeError, RlhfError
from rlhf.models.lineage import NAME as LINEAGE
from rlhf.models.lineage import adapter_lineage
from rlhf.models.load import is_reward_model, load_policy, load_scalar_model
from rlhf.models.probe import NAME as PROBE
from rlhf.models.probe import distance
from rlhf.models.save import save_head, save_whole
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


def merge(run: str, output: Path, dtype: Precision) -> Merged:
    """Write the whole model to `output`. Raises RecipeError for a run without adapters, RlhfError where the result is off."""
    folder = Path(find_model(run))
    lineage = adapter_lineage(folder)
    if lineage is None:
        raise RecipeError(f"{run}: holds no adapters of a LoRA run; there is nothing to merge")
    section = ModelSection(name_or_path=run, dtype=lineage.base.dtype)  # type: ignore[arg-type]
    reward = is_reward_model(run)
    load = load_scalar_model if reward else load_policy
    trained = load(section)
    with atomic_folder(output) as final:
        save_whole(trained.transformer, final, getattr(torch, dtype))
        save_head(trained, final)
        load_tokenizer(run).save_pretrained(final)
        (final / LINEAGE).write_bytes((folder / LINEAGE).read_bytes())
        whole = ModelSection(name_or_path=str(final), dtype="float32" if dtype == "float32" else "bfloat16")
        off_by = distance(load(whole), folder / PROBE)
        if not off_by <= BOUNDS[dtype]:
            raise RlhfError(
                f"{run}: merged in {dtype}, the model is off by {off_by:.2g} on its probe rows (bound {BOUNDS[dtype]:g}); "
                "try --dtype float32"
            )
        in_4bit = _in_4bit(load, whole, folder / PROBE)
    return Merged(output, off_by, in_4bit)


def _in_4bit(load: object, section: ModelSection, probe: Path) -> float | None:
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    return distance(load(section, quantization=QuantizationSection()), probe)  # type: ignore[operator]


def describe(merged: Merged) -> str:
    """The cost in a sentence."""
    text = f"{merged.folder}: off by at most {merged.off_by:.2g} from the adapters on their base"
    if merged.off_by_in_4bit is not None:
        text += f"; loaded in 4 bits it would be off by {merged.off_by_in_4bit:.2g} (train on with the run's own final/ instead)"
    return text
