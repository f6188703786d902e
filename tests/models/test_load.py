"""In which precision, in how many bits and by which way a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.models.lineage import trained_dtype
from rlhf.models.load import load_policy
from rlhf.recipe.sections import ModelSection, QuantizationSection, StoredModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.train.conftest import model_folder, recipe_of, rows

__all__ = ["model_folder", "recipe_of", "rows"]
Folders = Callable[[str], str]


@pytest.fixture
def stored(model_folder: Folders, tmp_path: Path) -> Callable[[torch.dtype], str]:
    """The tiny Llama as it would lie on disk in a dtype."""

    def folder(dtype: torch.dtype) -> str:
        path = tmp_path / str(dtype)
        AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=dtype).save_pretrained(path)
        for file in Path(model_folder("llama")).glob("tokenizer*"):
            (path / file.name).write_bytes(file.read_bytes())
        return str(path)

    return folder


@pytest.mark.parametrize(
    ("on_disk", "loaded"),
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.bfloat16), (torch.float32, torch.float32)],
)
def test_a_model_that_is_only_run_is_loaded_as_it_is_stored(
    on_disk: torch.dtype, loaded: torch.dtype, stored: Callable[[torch.dtype], str]
) -> None:
    name = stored(on_disk)
    assert load_policy(StoredModelSection(name_or_path=name)).transformer.dtype == loaded
    asked = StoredModelSection(name_or_path=name, dtype="float32")
    assert load_policy(asked).transformer.dtype == torch.float32
    assert load_policy(ModelSection(name_or_path=name)).transformer.dtype == torch.float32  # one that trains


def test_a_config_without_a_dtype_means_float32(stored: Callable[[torch.dtype], str], tmp_path: Path) -> None:
    path = Path(stored(torch.bfloat16), "config.json")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "dtype"}))
    assert trained_dtype(str(path.parent)) == "float32"
    assert trained_dtype(str(tmp_path / "nowhere")) == "float32"


@pytest.mark.parametrize(
    ("dtype", "lora"),
    [("float32", None), ("float32", {"r": 2}), ("bfloat16", {"r": 2})],
    ids=["whole", "adapters", "adapters in bf16"],
)
def test_a_final_is_loaded_as_it_was_trained(
    dtype: str, lora: Any, recipe_of: Callable[..., TrainRecipe], stored: Callable[[torch.dtype], str]
) -> None:
    """A base that is stored in bfloat16, whichever way it was trained."""
    recipe = recipe_of("sft", stored(torch.bfloat16), model={"dtype": dtype}, lora=lora)
    train(recipe)
    section = StoredModelSection(name_or_path=recipe.output_dir)
    assert load_policy(section).transformer.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
@pytest.mark.parametrize("bits", [False, True], ids=["dense", "nf4"])
def test_weights_go_straight_to_the_device(
    device: str, bits: bool, model_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options alone: there is no GPU here."""
    pytest.importorskip("bitsandbytes")
    asked: dict[str, Any] = {}

    def from_pretrained(path: str, **options: Any) -> Any:
        asked.update(options)
        raise OSError("no such device")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    quantization = QuantizationSection() if bits else None
    with pytest.raises(Exception, match="no such device"):
        load_policy(ModelSection(name_or_path=model_folder("llama")), quantization=quantization, device=device)
    assert ("quantization_config" in asked) == bits
    if device == "cpu" and not bits:
        assert "device_map" not in asked
    else:
        assert asked["device_map"] == {"": torch.device(device)}
