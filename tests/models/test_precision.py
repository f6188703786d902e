"""`auto` is bfloat16 only where the processor has instructions for it, and is settled before anything records it."""

from __future__ import annotations

import pytest
import torch

from rlhf.models import precision
from rlhf.models.precision import has_bf16, settled, warning_for, with_precision
from rlhf.recipe.schema import RECIPE
from rlhf.recipe.training import TrainRecipe


def recipe(**sections: object) -> TrainRecipe:
    content = {
        "method": "sft",
        "output_dir": "out",
        "model": {"name_or_path": "m", "dtype": "auto"},
        "data": {"train": [{"path": "rows.jsonl"}]},
        "training": {"bf16": "auto"},
    }
    made = RECIPE.validate_python(content | sections)
    assert isinstance(made, TrainRecipe)
    return made


@pytest.mark.parametrize(("able", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_follows_the_processor(able: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: able)
    found = with_precision(recipe(), "cpu")
    assert (found.model.dtype, found.training.bf16) == (dtype, able)
    assert settled("auto", "cpu") == dtype and settled("float32", "cpu") == "float32"
    said = {"model": {"name_or_path": "m", "dtype": "bfloat16"}, "training": {"bf16": True}}
    kept = with_precision(recipe(**said), "cpu")
    assert (kept.model.dtype, kept.training.bf16) == ("bfloat16", True), "what is stated stays"
    assert (warning_for(kept, "cpu") is None) == able
    assert warning_for(found, "cpu") is None


def test_the_processor_is_asked() -> None:
    assert has_bf16("cpu") == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not has_bf16("mps")
