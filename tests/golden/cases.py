"""Ten training steps of every stage, as numbers: the losses, the gradient norms, and a hash of the trained weights.

`python -m tests.golden.cases` records them into `golden.json`; with `--missing`, those that are not there yet, each with the environment
that it was recorded in. `test_golden.py` runs the same cases again and compares.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FILE = Path(__file__).with_name("golden.json")
STEPS = 10
METHODS = ("sft", "reward", "dpo", "ppo")
CRITIC_FREE = ("rloo", "grpo", "reinforce_pp", "online_dpo")
WEIGHTS = ("full", "lora", "nf4")
BATCHING = ("segments", "padded")
MODELS = ("llama", "gpt2")
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}


@dataclass(frozen=True)
class Case:
    """One short run: a method, what trains, how batches are laid out, and the model's architecture."""

    method: str
    weights: str
    batching: str
    model: str

    def __str__(self) -> str:
        return f"{self.method}-{self.weights}-{self.batching}-{self.model}"

    @property
    def online(self) -> bool:
        """Whether it samples its own completions."""
        return self.method in ("ppo", *CRITIC_FREE)

    def recipe(self, model_folder: str, rows: str, output_dir: str) -> dict[str, Any]:
        """The run as a recipe. The learning rate is high, so that ten steps move every weight."""
        content: dict[str, Any] = {
            "method": self.method,
            "output_dir": output_dir,
            "seed": 1,
            "model": {"name_or_path": model_folder, "batching": self.batching},
            "data": {"train": rows, "max_length": 64},
            "training": {
                "max_steps": STEPS,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-2,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 2,
            },
            "checkpoint": {"save_steps": STEPS},
        }
        if not self.online:
            content["training"]["gradient_accumulation_steps"] = 2
        else:
            content[self.method] = {
                "rollout_batch_size": 4,
                "num_ppo_epochs": 2,
                "sampling": {"max_new_tokens": 5, "n": 2},
                "rewards": [{"callable": "tests.train.rewards:count_letters"}],
            }
        if self.weights != "full":
            content["lora"] = {"r": 4}
        if self.weights == "nf4":
            content["quantization"] = NF4
        return content


def cases() -> Iterator[Case]:
    """Every combination of the first four methods; of those without a value model two each."""
    for method in METHODS:
        for weights in WEIGHTS:
            for batching in BATCHING:
                for model in MODELS:
                    yield Case(method, weights, batching, model)
    for method in CRITIC_FREE:
        yield Case(method, "full", "segments", "llama")
        yield Case(method, "lora", "padded", "gpt2")


def run(case: Case, model_folder: str, rows: str, output_dir: Path) -> dict[str, Any]:
    """The numbers of one case, on one thread."""
    import rlhf
    from tests.golden.support import recipe_file

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rlhf.run(recipe_file(case.recipe(model_folder, rows, str(output_dir)), output_dir.parent))
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(output_dir / f"checkpoints/step-{STEPS:06d}/model.safetensors")
    return {
        "loss": [line["loss"] for line in lines],
        "grad_norm": [line["grad_norm"] for line in lines],
        "norm": float(torch.stack([value.double().square().sum() for value in weights.values()]).sum().sqrt()),
        "sha256": sha256_of(weights),
    }


def sha256_of(weights: dict[str, torch.Tensor]) -> str:
    """Of the names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """What the last bits of a number depend on."""
    packages = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "numpy")
    processor = {"machine": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability()}
    return {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"} | processor | {p: version(p) for p in packages}


def record(*, missing: bool) -> None:
    """Run the cases on the code as it is, and write `golden.json`."""
    from tests.golden.support import make_model, make_rows

    content: dict[str, Any] = {"environment": environment(), "cases": {}}
    if missing:
        content = json.loads(FILE.read_text())
    own = {} if content["environment"] == environment() else {"environment": environment()}
    numbers = content["cases"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {model: make_model(model, folder / model) for model in MODELS}
        rows = make_rows(folder)
        for case in cases():
            if str(case) not in numbers:
                found = run(case, models[case.model], rows[case.method], folder / str(case) / "run")
                numbers[str(case)] = found | own
                print(case, found["loss"][-1])
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    record(missing="--missing" in sys.argv)
