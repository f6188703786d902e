"""PPO beside the last PPO that TRL had (1.12), like for like: `python -m benchmarks.ppo [options]`.

SmolLM2-135M as policy, reference, reward and value model; the same prompts of film reviews, sampled tokens, epochs and batch. Each contender is a
process of its own, round after round; CPU seconds of an update and peak memory are reported as medians over the updates after each process's first.
TRL 1.12 is put into .trl-1.12 beside the environment, from where only its own process imports it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.publish import publish

ROOT = Path(__file__).parent.parent
PEER = ROOT / ".trl-1.12"
MODEL = "embedded:smollm2-135m-instruct"
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
# name -> what its process is told. bf16 where the processor has instructions for it
CONTENDERS: dict[str, dict[str, Any]] = {
    "TRL 1.12, its defaults": {"peer": True, "dtype": "float32", "checkpointing": True},
    "TRL 1.12, best": {"peer": True, "dtype": "float32", "checkpointing": False},
    "TRL 1.12, best, bf16 weights": {"peer": True, "dtype": "bfloat16", "checkpointing": False},
    "full": {"dtype": "float32"},
    "full, bf16": {"dtype": "float32", "bf16": True},
    "LoRA": {"dtype": "float32", "lora": LORA},
    "LoRA, bf16": {"dtype": "bfloat16", "bf16": True, "lora": LORA},
    "LoRA, value: shared": {"dtype": "float32", "lora": LORA, "value": "shared"},
    "LoRA, value: shared, bf16": {"dtype": "bfloat16", "bf16": True, "lora": LORA, "value": "shared"},
}


def install() -> None:
    """TRL 1.12 without its dependencies, which the environment has."""
    if not PEER.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEER), "trl==1.12.0"]
        subprocess.run(command, check=True)


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One contender in a process of its own: CPU seconds of each update, and its peak memory."""
    told = CONTENDERS[name] | {key: getattr(options, key) for key in ("episodes", "tokens", "epochs", "updates")}
    told |= {"folder": str(folder), "model": MODEL}
    paths = [str(ROOT), *([str(PEER)] if told.get("peer") else [])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(reversed(paths)), "TRL_EXPERIMENTAL_SILENCE": "1"}
    run = [sys.executable, "-m", "benchmarks.ppo_process", json.dumps(told)]
    done = subprocess.run(run, env=env, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--updates", type=int, default=3, help="of each process; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--only", nargs="*", choices=list(CONTENDERS), help="all that the processor can do, if left out"
    )
    parser.add_argument("--no-bf16", action="store_true")
    options = parser.parse_args()
    install()
    names = options.only or [n for n, told in CONTENDERS.items() if not (options.no_bf16 and "bf16" in n)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        for round_ in range(options.rounds):
            for name in names:
                found[name].append(measure(name, options, Path(scratch) / f"{round_}-{names.index(name)}"))
                print(f"round {round_ + 1}, {name}: {found[name][-1]}", file=sys.stderr)
    seconds = {n: statistics.median(s for run in runs for s in run["seconds"]) for n, runs in found.items()}
    memory = {n: max(run["peak_mb"] for run in runs) for n, runs in found.items()}
    base = "TRL 1.12, best" if "TRL 1.12, best" in names else names[0]
    table = ["| | CPU s an update | as fast as " + base + " | peak memory, GB |", "|---|---|---|---|"]
    for name in names:
        ratio = seconds[base] / seconds[name]
        table.append(f"| {name} | {seconds[name]:.1f} | {ratio:.2f}x | {memory[name] / 1000:.1f} |")
    head = (
        f"# PPO beside TRL 1.12\n\n`python -m benchmarks.ppo {' '.join(sys.argv[1:])}`: {options.episodes} episodes of "
        f"{options.tokens} tokens, {options.epochs} epochs, {options.rounds} rounds.\n"
    )
    publish("ppo", head, table, found)


if __name__ == "__main__":
    main()
