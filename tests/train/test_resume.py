"""A run that was killed goes on as if it had not been; a checkpoint that is broken is named, never used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.errors import CheckpointError
from rlhf.recipe.loader import dump
from rlhf.recipe.training import TrainRecipe
from rlhf.runs.manifest import atomic_folder, problems
from rlhf.train.run import train
from tests.train.conftest import metrics_of

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
SAVING = {"save_steps": 2, "save_total_limit": None}
LORA = {"r": 4, "lora_dropout": 0.2}  # dropout, so that the generators' state matters


def state_of(folder: Path) -> dict[str, Any]:
    """Everything in a checkpoint, as values."""
    tensors = {
        f"{p.stem}/{k}": v.clone() for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()
    }
    return tensors | {"state": json.loads((folder / "state.json").read_text())}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


def quiet(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in {"seconds", "tokens_per_second"}} for line in lines]


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_resuming_is_bitwise_equal(method: str, lora: Any, recipe_of: Recipes, model_folder: Folders) -> None:
    if method == "ppo":
        lora = {"r": 4} if lora else None
    options: dict[str, Any] = {"lora": lora, "checkpoint": SAVING, "training": {"max_steps": 6, "warmup_steps": 3, "lr_scheduler_type": "cosine", "gradient_accumulation_steps": 2 if method != "ppo" else 1, "per_device_train_batch_size": 2}}  # fmt: skip
    if method == "ppo":
        options["ppo"] = {"rollout_batch_size": 4, "num_ppo_epochs": 2, "adaptive_kl": {"target": 0.1, "horizon": 20},
                          "sampling": {"max_new_tokens": 6, "n": 2}, "rewards": [{"callable": "tests.train.rewards:count_letters"}]}  # fmt: skip
    whole = recipe_of(method, model_folder("llama"), out="whole", **options)
    broken = recipe_of(method, model_folder("llama"), out="broken", **options)
    train(whole)
    shutil.copytree(whole.output_dir, broken.output_dir)
    checkpoints = Path(broken.output_dir) / "checkpoints"
    for step in (4, 6):
        shutil.rmtree(checkpoints / f"step-{step:06d}")
    torch.manual_seed(123)  # whatever state this process is in, the checkpoint's counts
    train(broken)
    assert_same(state_of(Path(whole.output_dir) / "checkpoints/step-000006"), state_of(checkpoints / "step-000006"))
    name = "model.safetensors" if lora is None else "adapter_model.safetensors"
    ours, theirs = (load_file(Path(r.output_dir) / "final" / name) for r in (whole, broken))
    assert_same(ours, theirs)
    assert quiet(metrics_of(whole)) == quiet(metrics_of(broken))


def trained(recipe_of: Recipes, model_folder: Folders, **options: Any) -> TrainRecipe:
    recipe = recipe_of("sft", model_folder("llama"), lora=LORA, checkpoint=SAVING, training={"max_steps": 6}, **options)
    train(recipe)
    return recipe


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "one bit": (lambda f: _flip(f / "model.safetensors"), "model.safetensors is damaged"),
    "optimizer gone": (lambda f: (f / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
    "generators gone": (lambda f: (f / "rng-0.safetensors").unlink(), "rng-0.safetensors is missing"),
    "cut off": (lambda f: os.truncate(f / "optimizer.safetensors", 100), "optimizer.safetensors has 100 bytes"),
    "never finished": (lambda f: (f / "manifest.json").unlink(), "never finished"),
    "manifest cut off": (lambda f: os.truncate(f / "manifest.json", 30), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_newest_checkpoint_is_named_and_the_one_before_taken(
    damage: str, recipe_of: Recipes, model_folder: Folders, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    recipe = trained(recipe_of, model_folder)
    folder = Path(recipe.output_dir) / "checkpoints"
    before = state_of(folder / "step-000006")
    act, message = DAMAGE[damage]
    act(folder / "step-000006")
    train(recipe)
    assert "step-000006 is broken" in caplog.text and message in caplog.text
    assert f"resumed from {folder / 'step-000004'}" in capsys.readouterr().out
    assert_same(before, state_of(folder / "step-000006"))
    assert problems(folder / "step-000006") == []


def test_nothing_whole_is_an_error_not_a_fresh_start(recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = trained(recipe_of, model_folder)
    for path in (Path(recipe.output_dir) / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint is broken"):
        train(recipe)
    never = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"resume": "never"})})
    train(never)
    assert [line["step"] for line in metrics_of(recipe)] == [1, 2, 3, 4, 5, 6]


def test_changed_data_recipe_or_base_is_refused(
    recipe_of: Recipes, model_folder: Folders, rows: dict[str, str]
) -> None:
    recipe = trained(recipe_of, model_folder)
    with pytest.raises(CheckpointError, match=r"\n  training\.learning_rate: 0\.01 then, 0\.0001 now"):
        train(recipe_of("sft", model_folder("llama"), lora=LORA, checkpoint=SAVING, training={"learning_rate": 1e-4}))
    path = Path(rows["sft"])
    path.write_text(path.read_text().replace("good", "great"))
    with pytest.raises(CheckpointError, match="rows: its content has changed"):
        train(recipe)


def test_a_checkpoint_of_an_older_version_is_refused_in_words(recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = trained(recipe_of, model_folder)
    for folder in (Path(recipe.output_dir) / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text())
        del state["identity"]
        with atomic_folder(folder) as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
            (partial / "manifest.json").unlink()
            (partial / "state.json").write_text(json.dumps(state | {"fingerprint": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"step-000006 was written by an older rlhf.*checkpoint\.resume=never"):
        train(recipe)


def test_more_steps_may_be_asked_for(recipe_of: Recipes, model_folder: Folders) -> None:
    trained(recipe_of, model_folder)
    longer = recipe_of("sft", model_folder("llama"), lora=LORA, checkpoint=SAVING, training={"max_steps": 8})
    train(longer)
    assert [line["step"] for line in metrics_of(longer)] == list(range(1, 9))


def test_the_limit_keeps_the_newest(recipe_of: Recipes, model_folder: Folders) -> None:
    saving = {"save_steps": 1, "save_total_limit": 2}
    recipe = recipe_of("sft", model_folder("llama"), checkpoint=saving, training={"max_steps": 5})
    train(recipe)
    names = sorted(p.name for p in (Path(recipe.output_dir) / "checkpoints").iterdir())
    assert names == ["step-000004", "step-000005"]
    assert not [p for p in Path(recipe.output_dir).rglob("*") if p.suffix in {".pt", ".bin", ".pkl", ".pth"}]


def test_sigkill_while_saving(recipe_of: Recipes, model_folder: Folders, tmp_path: Path) -> None:
    """A run that saves at every step, killed three times as it goes, ends where an undisturbed one ends."""
    options = {"checkpoint": {"save_steps": 1, "save_total_limit": 2}, "training": {"max_steps": 60}}
    whole = recipe_of("sft", model_folder("llama"), out="whole", **options)
    killed = recipe_of("sft", model_folder("llama"), out="killed", **options)
    train(whole)
    path = tmp_path / "killed.yaml"
    path.write_text(dump(killed))
    command = [sys.executable, "-m", "rlhf", "train", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the sum's order depends on it
    folder = Path(killed.output_dir) / "checkpoints"
    for goal in (5, 20, 40):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not any(int(p.name[5:]) >= goal for p in folder.glob("step-*")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    train(killed)
    assert_same(state_of(Path(whole.output_dir) / "checkpoints/step-000060"), state_of(folder / "step-000060"))
    assert not list(folder.glob(".tmp-*"))


def test_going_on_from_an_older_checkpoint_puts_the_newer_ones_aside(recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = trained(recipe_of, model_folder)
    folder = Path(recipe.output_dir) / "checkpoints"
    older = recipe.checkpoint.model_copy(update={"resume": str(folder / "step-000002"), "save_total_limit": 1})
    train(recipe.model_copy(update={"checkpoint": older}))
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["abandoned-step-000004", "abandoned-step-000006", "step-000006"]


def test_a_checkpoint_past_the_recipes_end_is_refused(recipe_of: Recipes, model_folder: Folders) -> None:
    trained(recipe_of, model_folder)
    shorter = recipe_of("sft", model_folder("llama"), lora=LORA, checkpoint=SAVING, training={"max_steps": 3})
    with pytest.raises(CheckpointError, match="step-000006 is past this recipe's 3 steps"):
        train(shorter)


def test_another_reward_model_under_a_resumed_ppo_run_is_refused(recipe_of: Recipes, model_folder: Folders) -> None:
    reward = recipe_of("reward", model_folder("llama"), out="rm")
    train(reward)
    ppo = {"rewards": [{"model": f"{reward.output_dir}/final"}]}
    recipe = recipe_of("ppo", model_folder("llama"), ppo=ppo, checkpoint=SAVING)
    train(recipe)
    train(recipe_of("reward", model_folder("llama"), out="rm", training={"max_steps": 5}))
    with pytest.raises(CheckpointError, match=r"models\.ppo\.rewards\.0\.model: its content has changed"):
        train(recipe)


def test_a_changed_reward_function_under_a_resumed_ppo_run_is_refused(
    recipe_of: Recipes, model_folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its source: the recipe still names the same function."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "my_reward.py"
    source.write_text("def score(prompts, completions):\n    return [float(len(c)) for c in completions]\n")
    ppo = {"rewards": [{"callable": "my_reward:score"}]}
    recipe = recipe_of("ppo", model_folder("llama"), ppo=ppo, checkpoint=SAVING)
    train(recipe)
    source.write_text(source.read_text().replace("float(len(c))", "-float(len(c))"))
    with pytest.raises(CheckpointError, match=r"callables\.ppo\.rewards\.0\.callable: its content has changed"):
        train(recipe)
