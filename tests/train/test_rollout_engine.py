"""Rollouts by a server, over a real model: in step after every update, and stopped where they are not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.errors import RecipeError, RlhfError, SetupError
from rlhf.generation.rollouts import adapter_folder
from rlhf.losses import truncated_weights
from rlhf.recipe.loader import dump
from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.generation.lora_server import LoraServer, serving
from tests.train.conftest import metrics_of
from tests.train.ppo_support import LETTERS, iteration, stage_of
from tests.train.test_resume import SAVING, assert_same, state_of
from tests.two_processes import in_two

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
SMALL = 1e-4  # nats: far under what one step at the test's learning rate moves, far over float32's rounding


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for /dev/shm; whatever a test does, nothing may be left in it."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(adapter_folder, "MEMORY", folder)
    return folder


@pytest.fixture
def server(model_folder: Folders) -> Iterator[LoraServer]:
    with serving(model_folder("llama")) as server:
        yield server


@pytest.fixture
def recipe_for(recipe_of: Recipes, model_folder: Folders) -> Callable[..., TrainRecipe]:
    """A recipe whose rollouts come from a server: `recipe_for(server, rollouts={"max_gap": 1.0}, out="other")`."""

    def make(
        server: LoraServer, *, method: str = "ppo", base: str = "", rollouts: Any = None, **sections: Any
    ) -> TrainRecipe:
        asked = {"engine": "vllm_server", "base_url": server.base_url, "max_gap": SMALL, "max_retries": 1}
        section = {"rollouts": asked | (rollouts or {}), "rollout_batch_size": 4, "rewards": [LETTERS],
                   "sampling": {"max_new_tokens": 6, "n": 2, "temperature": 0.8}}  # fmt: skip
        return recipe_of(method, base or model_folder("llama"), **({"lora": LORA, method: section} | sections))

    return make


@pytest.mark.parametrize("method", ["ppo", "grpo", "online_dpo"])
def test_the_server_samples_from_the_newest_policy(
    method: str, recipe_for: Recipes, rows: dict[str, str], server: LoraServer, memory: Path
) -> None:
    rows |= {"grpo": rows["ppo"], "online_dpo": rows["ppo"]}
    recipe = recipe_for(server, method=method)
    train(recipe)
    lines = metrics_of(recipe)
    assert len(lines) == 4 and all(0 <= line["engine_gap"] <= line["engine_gap_max"] < SMALL for line in lines)
    assert lines[-1]["kl"] != 0.0  # the policy has moved, and the server with it
    assert len(server.loads) == len(set(server.loads)) == 4 and server.unloads == server.loads
    assert not server.adapters and not list(memory.iterdir()) and not (Path(recipe.output_dir) / "rollouts").exists()


def test_a_stale_adapter_is_noticed(recipe_for: Recipes, server: LoraServer, memory: Path) -> None:
    server.stale = True
    recipe = recipe_for(server)
    with pytest.raises(RlhfError, match=r"ppo\.rollouts\.max_gap: .* nats a token .*has not taken the adapter"):
        train(recipe)
    [first] = metrics_of(recipe)  # in the first iteration the adapter that it keeps is the policy's
    assert first["engine_gap"] < SMALL
    assert not server.adapters and not list(memory.iterdir())  # also after an error


def test_log_probabilities_before_the_temperature_are_noticed(recipe_for: Recipes, server: LoraServer) -> None:
    server.before_temperature = True
    with pytest.raises(RlhfError, match="--logprobs-mode processed_logprobs"):
        train(recipe_for(server))


def test_a_wider_bound_lets_a_coarse_engine_pass_and_weighs_it(recipe_for: Recipes, server: LoraServer) -> None:
    server.before_temperature = True
    recipe = recipe_for(server, rollouts={"max_gap": 10.0, "importance_sampling": {"cap": 1.0}})
    stage = stage_of(recipe)
    experiences = iteration(stage)
    assert stage.measured["engine_gap"] > 0.01
    said = torch.cat([e.engine_logprobs for e in experiences])
    old = torch.cat([e.old_logprobs for e in experiences])
    assert stage.measured["engine_capped"] == pytest.approx(float((old >= said).float().mean()))
    experience, count = experiences[0], torch.tensor(float(experiences[0].batch.num_targets))
    weighed = stage.policy_part(experience.old_logprobs, experience, count).loss
    weights = truncated_weights(experience.old_logprobs, experience.engine_logprobs, cap=1.0)
    torch.testing.assert_close(weighed, -(weights * experience.advantages).mean())
    assert (weights < 0.999).any()
    stage.engine.engine.close()


def test_weights_of_one_change_nothing(recipe_for: Recipes, server: LoraServer) -> None:
    """An engine that agrees to the last bit gives the very loss of a recipe without importance sampling."""
    stage = stage_of(recipe_for(server, rollouts={"importance_sampling": {"cap": 2.0}}))
    [experience, *_] = iteration(stage)
    exact = replace(experience, engine_logprobs=experience.old_logprobs.clone())
    count, moved = torch.tensor(float(exact.batch.num_targets)), exact.old_logprobs + 0.1
    with_weights = stage.policy_part(moved, exact, count).loss
    without = stage.policy_part(moved, replace(exact, engine_logprobs=None), count).loss
    assert torch.equal(with_weights, without)
    stage.engine.engine.close()


@pytest.mark.parametrize("start", ["continue", "fresh"])
def test_adapters_of_a_parent_go_to_the_server_too(
    start: str, recipe_of: Recipes, recipe_for: Recipes, model_folder: Folders, server: LoraServer
) -> None:
    """`fresh` stacks two adapters of other ranks and layers; vLLM takes one for each request."""
    parent = recipe_of("sft", model_folder("llama"), out="sft", lora={"r": 2, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj"]})  # fmt: skip
    train(parent)
    lora = {"start": start} | ({} if start == "continue" else LORA | {"lora_alpha": 9})
    recipe = recipe_for(server, base=f"{parent.output_dir}/final", lora=lora)
    train(recipe)
    assert all(line["engine_gap"] < SMALL for line in metrics_of(recipe))
    assert len(server.loads) == 4


def test_a_base_in_4_bits(recipe_for: Recipes, model_folder: Folders) -> None:
    """The server quantises the base itself; a server that does not is another model, and the gap says so."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32"}  # fmt: skip
    theirs = BitsAndBytesConfig(**nf4 | {"bnb_4bit_compute_dtype": torch.float32})
    with serving(model_folder("llama"), quantization=theirs) as server:
        recipe = recipe_for(server, quantization=nf4, out="nf4")
        train(recipe)
        assert all(line["engine_gap"] < SMALL for line in metrics_of(recipe))
    with (
        serving(model_folder("llama")) as server,
        pytest.raises(RlhfError, match="its base or its precision is another"),
    ):
        train(recipe_for(server, quantization=nf4, out="whole"))


def test_a_value_model_on_the_policys_base_is_not_sent(recipe_for: Recipes, server: LoraServer) -> None:
    recipe = recipe_for(server)
    stage = stage_of(recipe)
    iteration(stage)
    [path] = server.adapters.values()
    names = load_file(f"{path}/adapter_model.safetensors").keys()
    assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"} and len(names) == 2 * 2 * 2
    stage.engine.engine.close()


def test_a_run_that_was_cut_goes_on(recipe_for: Recipes, server: LoraServer, memory: Path) -> None:
    """On another server, the same prompts with the same seeds; these servers are exact, so the weights are the same too.
    What the killed run left, on the server and in memory, is gone after it.
    """
    whole = recipe_for(server, out="whole", checkpoint=SAVING)
    train(whole)
    with serving(server.root) as other:
        broken = recipe_for(other, out="broken", checkpoint=SAVING)
        shutil.copytree(whole.output_dir, broken.output_dir)
        shutil.rmtree(Path(broken.output_dir) / "checkpoints/step-000004")
        prefix = adapter_folder.AdapterFolder(Path(broken.output_dir), 0, in_memory=True).prefix
        left = memory / f"{prefix}-0" / f"{prefix}-0-dead-3"
        for folder in (left, memory.parent / "someone-elses"):
            shutil.copytree(Path(whole.output_dir) / "final", folder)
            other.load(folder.name, str(folder))
        train(broken)
        assert list(other.adapters) == ["someone-elses"] and not list(memory.iterdir())
    asked = [sorted((body["prompt"], body["seed"]) for body in bodies) for bodies in (server.bodies[-8:], other.bodies)]
    assert asked[0] == asked[1]  # two iterations of four
    ours, theirs = (state_of(Path(run.output_dir) / "checkpoints/step-000004") for run in (whole, broken))
    assert_same(ours, theirs)


def test_two_processes_share_the_server(recipe_for: Recipes, server: LoraServer) -> None:
    recipe = recipe_for(server, training={"max_steps": 2, "per_device_train_batch_size": 2})
    path = Path(f"{recipe.output_dir}.yaml")
    path.write_text(dump(recipe))  # type: ignore[arg-type]
    in_two("rlhf", "train", str(path))
    lines = metrics_of(recipe)
    assert len(lines) == 2 and all(line["engine_gap"] < SMALL for line in lines)
    assert len(server.loads) == 2 and server.unloads == server.loads
    assert len({(tuple(body["prompt"]), body["seed"]) for body in server.bodies}) == 8  # no prompt asked twice
    prefix = adapter_folder.AdapterFolder(Path(recipe.output_dir), 0, in_memory=False).prefix
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))


def test_a_server_of_another_model_is_refused(recipe_for: Recipes, model_folder: Folders, server: LoraServer) -> None:
    with pytest.raises(
        RecipeError, match=r"the server runs .*llama.*, and the policy's adapters belong on .*qwen2.*vllm serve"
    ):
        train(recipe_for(server, base=model_folder("qwen2")))


def test_a_server_with_another_tokenizer_is_refused(recipe_for: Recipes, server: LoraServer) -> None:
    server.tokenizer = lambda text, add_special_tokens: {"input_ids": [ord(letter) for letter in text]}
    with pytest.raises(RecipeError, match=r"ppo\.rollouts\.base_url: the server's tokenizer gives other ids"):
        train(recipe_for(server))


def test_a_server_that_has_forgotten_the_adapter(recipe_for: Recipes, server: LoraServer) -> None:
    """As one that was started again in between: never a sample of the base in the policy's name."""
    complete = server.complete

    def forgets(body: Any) -> Any:
        server.adapters.clear()
        return complete(body)

    server.complete = forgets  # type: ignore[method-assign]
    with pytest.raises(SetupError, match=r"/v1/completions was refused \(HTTP 404: The model .* does not exist"):
        train(recipe_for(server))


def test_a_copy_of_the_base_is_the_base(recipe_for: Recipes, server: LoraServer, tmp_path: Path) -> None:
    shutil.copytree(server.root, tmp_path / "copy")
    recipe = recipe_for(server, base=str(tmp_path / "copy"), training={"max_steps": 1})
    train(recipe)
    assert metrics_of(recipe)[0]["engine_gap"] < SMALL


def test_the_rank_must_fit(recipe_for: Recipes, model_folder: Folders) -> None:
    with serving(model_folder("llama"), max_lora_rank=2) as server:
        with pytest.raises(SetupError, match=r"LoRA rank 4 is greater than max_lora_rank 2\..*--max-lora-rank 8"):
            train(recipe_for(server))
        assert server.asked["/v1/load_lora_adapter"] == 1  # it is no fault that passes


def test_a_server_that_takes_no_adapters_at_run_time(recipe_for: Recipes, server: LoraServer) -> None:
    server.updates_at_runtime = False
    with pytest.raises(SetupError, match=r"takes no adapters while it runs .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        train(recipe_for(server))


@pytest.mark.parametrize("reads_key", [True, False])
def test_faults_that_pass_are_tried_again(
    reads_key: bool, recipe_for: Recipes, server: LoraServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.generation.engines.retry.FIRST_WAIT", 0.001)
    monkeypatch.setenv("SERVER_KEY", "very-secret")
    server.faults = lambda path, tried: {0: 503, 2: 0}.get(tried) if tried < 3 else None
    rollouts = {"max_retries": 5} | ({"api_key_env": "SERVER_KEY"} if reads_key else {})
    recipe = recipe_for(server, rollouts=rollouts, training={"max_steps": 2})
    train(recipe)
    assert all(line["engine_gap"] < SMALL for line in metrics_of(recipe))
    assert server.keys == ({"Bearer very-secret"} if reads_key else {""})


def test_a_server_that_is_gone_ends_the_run(
    recipe_for: Recipes, server: LoraServer, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.generation.engines.retry.FIRST_WAIT", 0.001)
    server.faults = lambda path, tried: 0 if path == "/v1/completions" and tried > 5 else None
    with pytest.raises(SetupError, match=r"ppo\.rollouts\.base_url: http.*no answer to /v1/completions after 2 tries"):
        train(recipe_for(server))
    assert not list(memory.iterdir())


@pytest.mark.parametrize("part", ["token_ids", "logprobs"])
def test_a_server_without_token_ids_is_refused(part: str, recipe_for: Recipes, server: LoraServer) -> None:
    server.drops = (part,)
    with pytest.raises(SetupError, match="no token ids, or not one log-probability for each"):
        train(recipe_for(server))


def test_no_vllm_there(recipe_for: Recipes, server: LoraServer) -> None:
    server.owned_by = "someone"
    with pytest.raises(SetupError, match="no server of vLLM's"):
        train(recipe_for(server))


def test_held_out_prompts_are_sampled_by_the_engine_too(
    recipe_for: Recipes, rows: dict[str, str], server: LoraServer
) -> None:
    recipe = recipe_for(server, training={"max_steps": 2, "eval_steps": 1})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": recipe.data.train})})
    train(recipe)
    assert [line["eval/length"] > 0 for line in metrics_of(recipe)] == [True] * 3
    assert len(server.loads) == 2 + 3
