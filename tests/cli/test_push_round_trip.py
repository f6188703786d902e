"""What was pushed is what others load: adapters and a merged model, to a hub and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from rlhf.models.load import load_policy
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.run import train
from tests.cli.hub import Hub, hub
from tests.cli.support import rlhf
from tests.cli.test_push import contents, push
from tests.train.conftest import model_folder, recipe_of, rows

__all__ = ["model_folder", "recipe_of", "rows"]
BATCH = collate([Segment([5, 6, 7], [[8, 9, 10], [11]])])


def fetched(server: Hub, name: str, folder: Path) -> Path:
    """The repository's files in a folder, as a download leaves them."""
    for file, content in server.files[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    return folder


def test_adapters_and_a_merged_model_to_a_hub_and_back(
    recipe_of: Callable[..., TrainRecipe], model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    base = model_folder("llama")
    recipe = recipe_of("sft", base, lora={"r": 4}, training={"max_steps": 6, "learning_rate": 3e-2})
    train(recipe)
    run, whole = recipe.output_dir, tmp_path / "whole"
    assert rlhf("merge", run, "-o", str(whole), "--dtype", "float32").exit_code == 0
    with hub() as server:
        adapters = push(server, run, "me/adapters")
        merged = push(server, str(whole), "me/merged")
    assert (adapters.code, merged.code) == (0, 0), adapters.err + merged.err
    assert f"note: the adapters belong on {base}, a folder of this machine" in adapters.out
    assert "note:" not in merged.out
    assert server.files["me/adapters"] == contents(Path(run) / "final")
    assert server.files["me/merged"].pop("README.md").startswith(b"---\nlibrary_name: transformers\n")
    assert server.files["me/merged"] == contents(whole)
    with torch.no_grad():
        trained = load_policy(ModelSection(name_or_path=run))(BATCH)
        untrained = load_policy(ModelSection(name_or_path=base))(BATCH)
        back = load_policy(ModelSection(name_or_path=str(fetched(server, "me/adapters", tmp_path / "a"))))(BATCH)
        plain = AutoModelForCausalLM.from_pretrained(fetched(server, "me/merged", tmp_path / "m"))
        logits = plain(torch.tensor([[5, 6, 7, 11]])).logits.log_softmax(-1)
    assert torch.equal(back, trained) and not torch.allclose(trained, untrained, atol=1e-2)
    torch.testing.assert_close(logits[0, 2, 11], trained[3], rtol=1e-4, atol=1e-4)
