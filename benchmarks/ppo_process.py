"""One contender of `benchmarks.ppo`: `python -m benchmarks.ppo_process JSON`. Its last line says the CPU seconds of each update but the
first, and the peak memory.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlhf.embedded import resolve

Clock = Callable[[], None]


def prompts(told: dict[str, Any]) -> list[str]:
    """Openings of film reviews of about 20 to 60 tokens."""
    from datasets import load_dataset

    rows = load_dataset(resolve("embedded:film-reviews"), split="train")
    words = [
        f"{row['prompt']}{row['completion']}".split()
        for row in rows.select(range(3 * told["episodes"] * told["updates"]))
    ]
    return [" ".join([*a, *b, *c][: 15 + i % 30]) for i, (a, b, c) in enumerate(zip(*[iter(words)] * 3, strict=True))]


def ours(told: dict[str, Any], tick: Clock) -> None:
    """Our stage: a reward model of one step first, so that there is one."""
    import rlhf
    from rlhf.train.metrics import MetricsLog

    folder = Path(told["folder"])
    folder.mkdir(parents=True)
    rows = prompts(told)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in rows))
    pair = {"prompt": rows[0], "chosen": " Good.", "rejected": " Bad."}
    (folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    shared: dict[str, Any] = {"model": {"name_or_path": told["model"], "dtype": told["dtype"]}}
    if "lora" in told:
        shared["lora"] = told["lora"]
    training = {"bf16": bool(told.get("bf16")), "per_device_train_batch_size": told["episodes"]}
    reward = shared | {
        "method": "reward",
        "output_dir": str(folder / "reward"),
        "data": {"train": [{"path": str(folder / "pairs.jsonl")}]},
        "training": {"max_steps": 1},
    }
    ppo = shared | {
        "method": "ppo",
        "output_dir": str(folder / "ppo"),
        "data": {"train": [{"path": str(folder / "prompts.jsonl")}]},
        "training": training | {"max_steps": told["updates"], "learning_rate": 3e-6},
        "checkpoint": {"save_minutes": None},
        "ppo": {
            "rollout_batch_size": told["episodes"],
            "num_ppo_epochs": told["epochs"],
            "sampling": {"max_new_tokens": told["tokens"], "temperature": 0.7, "batch_size": told["episodes"]},
            "rewards": [{"model": str(folder / "reward/final")}],
            "value": told.get("value", "own"),
        },
    }
    for name, recipe in (("reward", reward), ("ppo", ppo)):
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    rlhf.run(str(folder / "reward.yaml"))
    plain = MetricsLog.advance

    def advance(log: MetricsLog, *args: Any) -> None:
        tick()
        plain(log, *args)

    MetricsLog.advance = advance  # type: ignore[method-assign]
    rlhf.run(str(folder / "ppo.yaml"))


def peer(told: dict[str, Any], tick: Clock) -> None:
    """TRL's PPOTrainer with four models of its own."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            tick()

    name, dtype = resolve(told["model"]), getattr(torch, told["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(name, dtype=dtype) for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype, num_labels=1, pad_token_id=tokenizer.pad_token_id
        )
        for _ in range(2)
    )
    rows = Dataset.from_list([{"input_ids": tokenizer(p)["input_ids"]} for p in prompts(told)])
    config = PPOConfig(
        output_dir=told["folder"],
        per_device_train_batch_size=told["episodes"],
        gradient_accumulation_steps=1,
        num_ppo_epochs=told["epochs"],
        num_mini_batches=1,
        total_episodes=told["episodes"] * told["updates"],
        local_rollout_forward_batch_size=told["episodes"],
        response_length=told["tokens"],
        temperature=0.7,
        gradient_checkpointing=told["checkpointing"],
        num_sample_generations=0,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[Ticks()],
    )
    trainer.train()


def main() -> None:
    told = json.loads(sys.argv[1])
    ticks: list[float] = []
    (peer if told.get("peer") else ours)(told, lambda: ticks.append(time.process_time()))
    seconds = [later - earlier for earlier, later in itertools.pairwise(ticks)]
    print(json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}))


if __name__ == "__main__":
    main()
