"""One run of `benchmarks.ppo_curve`: `python -m benchmarks.ppo_curve_process JSON`. Its last line is the KL and the score of each iteration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.embedded import resolve
from rlhf.embedded.sentiment import evaluation_judge

JUDGE = "rlhf.embedded.sentiment:evaluation_judge"


def openings(told: dict[str, Any]) -> list[str]:
    """The first openings of film reviews, one for each episode."""
    from datasets import load_dataset

    rows = load_dataset(resolve("embedded:film-reviews"), split="train")
    count = min(len(rows), told["episodes"] * told["iterations"])
    return [row["prompt"] for row in rows.select(range(count))]


def ours(told: dict[str, Any]) -> list[list[float]]:
    """Our PPO stage; its points are in metrics.jsonl."""
    import rlhf

    folder = Path(told["folder"])
    folder.mkdir(parents=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in openings(told)))
    recipe = {
        "method": "ppo",
        "output_dir": str(folder / "ppo"),
        "seed": told["seed"],
        "model": {"name_or_path": told["policy"], "dtype": "float32"},
        "data": {
            "train": [{"path": str(folder / "prompts.jsonl")}],
            "template": {"kind": "plain"},
            "max_length": 64 + told["tokens"],
        },
        "training": {
            "max_steps": told["iterations"],
            "per_device_train_batch_size": 16,
            "learning_rate": told["rate"],
            "lr_scheduler_type": "linear",
        },
        "logging": {"logging_steps": 1},
        "checkpoint": {"save_minutes": None},
        "ppo": {
            "rollout_batch_size": told["episodes"],
            "num_ppo_epochs": told["epochs"],
            "num_mini_batches": 1,
            "kl_coef": told["kl_coef"],
            "missing_eos": None,
            "sampling": {"max_new_tokens": told["tokens"], "temperature": 1.0, "batch_size": told["episodes"]},
            "rewards": [{"callable": JUDGE}],
        },
    }
    (folder / "ppo.yaml").write_text(json.dumps(recipe))
    rlhf.run(str(folder / "ppo.yaml"))
    lines = [json.loads(line) for line in (folder / "ppo/metrics.jsonl").read_text().splitlines()]
    return [[line["kl"], line["score"]] for line in lines]


def peer(told: dict[str, Any]) -> list[list[float]]:
    """TRL's PPOTrainer. Its reward model is a name for the judge: `get_reward` asks the judge in its place."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    name = resolve(told["policy"])
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(
        name, dtype=torch.float32, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    judge = torch.nn.Linear(1, 1)
    plain = ppo_trainer.get_reward

    def get_reward(model: Any, texts: Tensor, pad: int, prompt: int) -> tuple[Any, Tensor, Any]:
        if model is not judge:
            found: tuple[Any, Tensor, Any] = plain(model, texts, pad, prompt)
            return found
        asked, answered = (
            tokenizer.batch_decode(part, skip_special_tokens=True) for part in (texts[:, :prompt], texts[:, prompt:])
        )
        return None, torch.tensor(evaluation_judge(asked, answered), dtype=torch.float32), None

    ppo_trainer.get_reward = get_reward
    rows = Dataset.from_list([{"input_ids": tokenizer(p)["input_ids"]} for p in openings(told)])
    config = PPOConfig(
        output_dir=told["folder"],
        seed=told["seed"],
        per_device_train_batch_size=16,
        gradient_accumulation_steps=told["episodes"] // 16,
        num_ppo_epochs=told["epochs"],
        num_mini_batches=1,
        total_episodes=told["episodes"] * told["iterations"],
        local_rollout_forward_batch_size=16,
        response_length=told["tokens"],
        stop_token="eos",
        temperature=1.0,
        learning_rate=told["rate"],
        kl_coef=told["kl_coef"],
        gradient_checkpointing=False,
        num_sample_generations=0,
        logging_steps=1,
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
        reward_model=judge,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
    )
    points: list[list[float]] = []
    log = trainer.log

    def remember(metrics: dict[str, float], *args: Any, **options: Any) -> None:
        if "objective/kl" in metrics:
            points.append([metrics["objective/kl"], metrics["objective/scores"]])
        log(metrics, *args, **options)

    trainer.log = remember
    trainer.train()
    return points


def main() -> None:
    told = json.loads(sys.argv[1])
    print(json.dumps((peer if told["peer"] else ours)(told)))


if __name__ == "__main__":
    main()
