"""Where the adapter of a policy lies for its engine, and what vLLM is told in process; vLLM itself is in tests/vllm."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf.errors import SetupError
from rlhf.generation.rollouts import adapter_folder
from rlhf.generation.rollouts.adapter_folder import AdapterFolder
from rlhf.generation.rollouts.vllm_in_process import VllmInProcess
from rlhf.models.load import load_policy
from rlhf.models.policy import Policy
from rlhf.recipe.rollouts import VllmRollouts
from rlhf.recipe.sections import LoraSection, ModelSection, SamplingSection
from rlhf.tokens.segments import Segment, collate
from tests.tiny import tiny_tokenizer

EOS = tiny_tokenizer().eos_token_id
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(adapter_folder, "MEMORY", folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tiny_tokenizer()), num_key_value_heads=2, eos_token_id=EOS, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def policy(base: str) -> Policy:
    lora = LoraSection(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"])
    policy = load_policy(ModelSection(name_or_path=base), lora=lora, trains=True)
    change(policy)
    return policy


def change(policy: Policy) -> None:
    """As training does: the adapters' weights are others."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


def test_what_is_written_is_the_policy_to_peft(policy: Policy, base: str, tmp_path: Path, memory: Path) -> None:
    place = AdapterFolder(tmp_path / "run", 0, in_memory=True)
    folder = place.write(policy)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    ids = [5, 6, 7, 8, 9, 10]
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0, 2:-1].log_softmax(-1)
        ours = policy(collate([Segment(ids[:3], [ids[3:]])]))
    torch.testing.assert_close(logits.gather(1, torch.tensor(ids[3:])[:, None]).squeeze(1), ours, rtol=0, atol=1e-5)


def test_each_adapter_is_new_and_the_last_alone_is_kept(policy: Policy, tmp_path: Path, memory: Path) -> None:
    place = AdapterFolder(tmp_path / "run", 0, in_memory=True)
    first = place.write(policy)
    before = load_file(first / "adapter_model.safetensors")
    change(policy)
    second = place.write(policy)
    after = load_file(second / "adapter_model.safetensors")
    assert first.name != second.name and [path.name for path in second.parent.iterdir()] == [second.name]
    assert {n for n in after if not torch.equal(before[n], after[n])} == {n for n in after if "lora_B" in n}
    place.close()
    assert not list(memory.iterdir())


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_a_killed_run_left_is_removed_and_its_names_are_not_used_again(
    in_memory: bool, policy: Policy, tmp_path: Path, memory: Path
) -> None:
    places = [
        AdapterFolder(tmp_path / name, rank, in_memory=in_memory)
        for name, rank in (("run", 0), ("run", 1), ("other", 0))
    ]
    killed, second, other = (place.write(policy) for place in places)
    again = AdapterFolder(tmp_path / "run", 0, in_memory=in_memory)
    assert not killed.exists() and not second.exists() and other.exists()
    assert again.write(policy).name != killed.name and killed.name.startswith(again.prefix)


def test_a_small_shared_memory_is_left_alone(
    policy: Policy, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's default is 64 MB. The adapter then lies in the run's folder, which is as clean afterwards."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**16, 0, 2**16))
    place = AdapterFolder(tmp_path / "run", 0, in_memory=True)
    folder = place.write(policy)
    assert folder.is_relative_to(tmp_path / "run/rollouts") and not list(memory.iterdir())
    place.close()
    assert not (tmp_path / "run/rollouts").exists()


def test_a_server_elsewhere_reads_the_runs_folder(policy: Policy, tmp_path: Path, memory: Path) -> None:
    place = AdapterFolder(tmp_path / "run", 0, in_memory=False)
    folder = place.write(policy)
    assert folder.is_dir() and folder.is_relative_to(tmp_path / "run/rollouts") and not list(memory.iterdir())


class FakeLlm:
    """What vLLM is told, in order; each prompt is answered with a fixed completion of two tokens."""

    said: list[Any]

    def __init__(self, **options: Any) -> None:
        type(self).said = [options]
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: self.said.append("shut down")))

    def sleep(self, level: int) -> None:
        self.said.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.said.append("wake up")

    def generate(self, prompts: Any, params: Any, *, lora_request: Any, use_tqdm: bool) -> Any:
        names = sorted(path.name for path in Path(lora_request.path).iterdir())
        self.said.append((prompts, [p.seed for p in params], names, lora_request.number))
        scored = [{6: SimpleNamespace(logprob=-0.5)}, {EOS: SimpleNamespace(logprob=-1.25)}]
        sample = SimpleNamespace(index=0, token_ids=(6, EOS), logprobs=scored, finish_reason="stop")
        return [SimpleNamespace(outputs=[sample]) for _ in prompts]


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.inputs", "vllm.lora", "vllm.lora.request")}
    modules["vllm"].__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    modules["vllm"].LLM = FakeLlm  # type: ignore[attr-defined]
    modules["vllm"].SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    modules["vllm.inputs"].tokens_input = list  # type: ignore[attr-defined]
    modules["vllm.lora.request"].LoRARequest = namedtuple("LoRARequest", ["name", "number", "path"])  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def engine(policy: Policy, tmp_path: Path, section: dict[str, Any], **options: Any) -> VllmInProcess:
    given = {"model": "base", "max_model_len": 64} | options
    rollouts = VllmRollouts.model_validate({"engine": "vllm"} | section)
    return VllmInProcess(
        policy, tiny_tokenizer(), rollouts, key="ppo.rollouts", options=given, output_dir=tmp_path / "run", rank=0
    )


def test_vllm_sleeps_while_the_policy_trains(policy: Policy, tmp_path: Path, memory: Path, fake_vllm: None) -> None:
    one = engine(policy, tmp_path, {"sleep": True, "gpu_memory_utilization": 0.3})
    sampling = SamplingSection(max_new_tokens=4, temperature=0.5)
    groups = [one.generate([[5, 6], [7]], sampling, seed=seed) for seed in (1, 1, 2)]
    [completion] = groups[0][0]
    assert (completion.ids, completion.ended, completion.logprobs) == ([6, EOS], True, (-0.5, -1.25))
    one.close()
    options, *said = FakeLlm.said
    assert [s for s in said if isinstance(s, str)] == ["sleep 1", *["wake up", "sleep 1"] * 3, "shut down"]
    asked = [s for s in said if not isinstance(s, str)]
    assert [prompts for prompts, *_ in asked] == [[[5, 6], [7]]] * 3
    assert asked[0][1] == asked[1][1] != asked[2][1] and len(set(asked[0][1])) == 2  # a seed a prompt
    assert [number for *_, number in asked] == [1, 2, 3]
    assert all(names == ["adapter_config.json", "adapter_model.safetensors"] for _, _, names, _ in asked)
    assert options["max_lora_rank"] == 8 and options["logprobs_mode"] == "processed_logprobs"
    assert options["gpu_memory_utilization"] == 0.3 and options["enable_sleep_mode"] and options["enable_lora"]
    assert not list(memory.iterdir())


def test_4_bits_need_vllms_package_for_it(policy: Policy, tmp_path: Path, memory: Path, fake_vllm: None) -> None:
    if importlib.util.find_spec("vllm_bnb_plugin"):
        pytest.skip("it is installed")
    with pytest.raises(SetupError, match=r"ppo\.rollouts\.engine: .*pip install vllm-bnb-plugin"):
        engine(policy, tmp_path, {}, quantization="bitsandbytes")


def test_without_vllm_it_is_said_what_to_install(policy: Policy, tmp_path: Path, memory: Path) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("it is installed")
    with pytest.raises(SetupError, match=r"ppo\.rollouts\.engine: vLLM is not installed; .*engine: vllm_server"):
        engine(policy, tmp_path, {})
