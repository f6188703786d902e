"""What the tests of vLLM share: the built-in model, one engine for the session, an adapter. Skipped where vLLM is missing.

`make test-vllm` runs them in an environment of their own; on a machine without a GPU through vLLM's build for CPUs.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
MODEL = "embedded:smollm2-135m-instruct"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed here; make test-vllm"))


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    """On a CPU: little memory for the cache, threads unbound, and the engine in this very process."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        if not torch.cuda.is_available():
            for name, value in CPU.items():
                if name not in os.environ:
                    patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of rank 8 on the built-in model, with weights large enough to change what it says."""
    import torch
    from peft import LoraConfig, get_peft_model

    from rlhf.models.load import load_policy
    from rlhf.recipe.sections import ModelSection

    torch.manual_seed(0)
    policy = load_policy(ModelSection(name_or_path=MODEL, batching="padded"))
    adapted = get_peft_model(
        policy.transformer, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm(adapter: Path) -> Iterator[Any]:
    """Opens engines of vLLM with small settings, and closes them."""
    from rlhf.generation.engines import open_engine
    from rlhf.recipe.synthesis import VllmSection

    opened = {}

    def engine(**changes: Any) -> Any:
        key = repr(sorted(changes.items()))
        if key not in opened:
            defaults = {
                "engine": "vllm",
                "model": MODEL,
                "max_model_len": 512,
                "enforce_eager": True,
                "dtype": "float32",
            }
            opened[key] = open_engine(VllmSection.model_validate(defaults | changes), name="writer")
        return opened[key]

    yield engine
    for one in opened.values():
        one.close()
