"""How much memory PPO's models take on one base, and with a base for each: weights and adapters, counted.

    python -m benchmarks.roles [--quantization nf4|none] [--rank 16]

SmolLM2-135M with one step of SFT and of a reward model, so that all adapters exist. Prints a table; nothing is written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import rlhf
from rlhf.recipe.loader import read
from rlhf.tokens.recipe_rows import training_rows
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.ppo import Ppo
from rlhf.train.run import make_accelerator
from rlhf.train.setup import Setup

MODEL = "embedded:smollm2-135m-instruct"
MB = 1e6
PAIRS = [
    {"prompt": "The film was", "chosen": " good.", "rejected": " bad."},
    {"prompt": "I", "chosen": " like it.", "rejected": " do not."},
]


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Of all weights and of what 4-bit weights keep beside them, each tensor once."""
    seen: dict[int, torch.Tensor] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            seen[tensor.data_ptr()] = tensor
            state = getattr(tensor, "quant_state", None)
            for part in vars(state).values() if state is not None else ():
                for kept in vars(part).values() if hasattr(part, "absmax") else [part]:
                    if isinstance(kept, torch.Tensor):
                        seen[kept.data_ptr()] = kept
    return sum(t.numel() * t.element_size() for t in seen.values())


def trained(method: str, folder: Path, model: str, **sections: Any) -> str:
    """The output folder of one step of a stage."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    content = {
        "method": method,
        "output_dir": str(folder / method),
        "model": {"name_or_path": model},
        "data": {"train": [{"path": str(folder / "pairs.jsonl")}], "max_length": 32},
        "training": {"max_steps": 1, "per_device_train_batch_size": 2},
        **sections,
    }
    path = folder / f"{method}.yaml"
    path.write_text(json.dumps(content))
    if method != "ppo":
        rlhf.run(str(path))
    return str(folder / method) if method != "ppo" else str(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quantization", choices=["nf4", "none"], default="nf4")
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    bits = {"quantization": {"bnb_4bit_compute_dtype": "float32"}} if options.quantization == "nf4" else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sft = trained("sft", folder, MODEL, lora={"r": options.rank}, **bits)
        reward = trained("reward", folder, sft, lora={})
        ppo = {"rewards": [{"model": reward}], "sampling": {"max_new_tokens": 8}, "rollout_batch_size": 2}
        recipe: Any = read(trained("ppo", folder, sft, lora={}, ppo=ppo)).recipe
        tokenizer = load_tokenizer(sft)
        rows = training_rows(recipe, tokenizer, "train")
        setup = Setup(recipe, make_accelerator(recipe), tokenizer, rows.items, [])
        together = Ppo(recipe, setup)
        one = bytes_of([together.policy.transformer]) - bytes_of_adapters(together.policy)
        shared = bytes_of([together.module, *(s.score.model for s in together.scorers)])  # type: ignore[attr-defined]
        separate_setup = Setup(recipe, setup.accelerator, tokenizer, rows.items, [])
        object.__setattr__(separate_setup, "_on_base_of", lambda *_: None)
        apart = Ppo(recipe, separate_setup)
        own = bytes_of([apart.module, *(s.score.model for s in apart.scorers)])  # type: ignore[attr-defined]
    table = Table("models", "MB", "of one base", title=f"{MODEL}, {options.quantization}, LoRA r {options.rank}")
    table.add_row("the base alone", f"{one / MB:.1f}", "1.00")
    table.add_row("policy, reference, value, reward on one base", f"{shared / MB:.1f}", f"{shared / one:.2f}")
    table.add_row("the same with a base for policy, value and reward", f"{own / MB:.1f}", f"{own / one:.2f}")
    Console().print(table)


def bytes_of_adapters(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for name, p in module.named_parameters() if "lora_" in name)


if __name__ == "__main__":
    main()
