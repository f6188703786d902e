"""Reward against KL, beside the last PPO that TRL had (1.12): `python -m benchmarks.ppo_curve --policy FOLDER [options]`.

Both start from the same whole model (an SFT run after `rlhf merge --dtype float32`), write continuations of the same openings of film reviews, and are
paid by the same sentiment judge; full fine-tuning in float32, the same learning rate, KL coefficient, batch, epochs and seeds; what else there is to
set stays at each one's own defaults. Each iteration gives a point: the mean score of its samples, and their KL to the start. Each run is a process
of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ppo import PEER, ROOT, install
from benchmarks.publish import RESULTS, publish

CONTENDERS = {"rlhf": False, "TRL 1.12": True}
SMOOTH = 3  # iterations


def measure(peer: bool, told: dict[str, Any]) -> list[list[float]]:
    """One run in a process of its own: KL and score of each iteration."""
    paths = [*([str(PEER)] if peer else []), str(ROOT)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TRL_EXPERIMENTAL_SILENCE": "1"}
    run = [sys.executable, "-m", "benchmarks.ppo_curve_process", json.dumps(told | {"peer": peer})]
    done = subprocess.run(run, env=env, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    points: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return points


def smooth(points: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """KL, which only grows, and score: means over three iterations."""
    kernel = np.ones(SMOOTH) / SMOOTH
    kl, score = (np.convolve(column, kernel, "valid") for column in np.asarray(points).T)
    return np.maximum.accumulate(kl), score


def draw(found: dict[str, list[list[list[float]]]], path: Path) -> None:
    """Every iteration as a point, every run as a line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for color, (name, runs) in zip(("C0", "C1"), found.items(), strict=True):
        for i, points in enumerate(runs):
            kl, score = np.asarray(points).T
            axes.plot(kl, score, "o-", color=color, markersize=3, alpha=0.6, label=name if i == 0 else None)
    axes.set(xlabel="KL to the start, nats a completion", ylabel="mean score of the samples")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--policy", default="embedded:smollm2-135m-instruct", help="a whole model in float32")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    install()
    found: dict[str, list[list[list[float]]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            for name, peer in CONTENDERS.items():
                told = vars(options) | {"seed": seed, "folder": f"{scratch}/{seed}-{peer}"}
                found[name].append(measure(peer, told))
                print(f"seed {seed}, {name}: {found[name][-1]}", file=sys.stderr)
    furthest = min(smooth(points)[0][-1] for runs in found.values() for points in runs)
    kls = np.linspace(0, furthest, 6)[1:]
    table = ["| KL | " + " | ".join(found) + " |", "|---" * (1 + len(found)) + "|"]
    curves = {name: np.stack([np.interp(kls, *smooth(points)) for points in runs]) for name, runs in found.items()}
    for i, kl in enumerate(kls):
        cells = [f"{c[:, i].mean():.2f} [{c[:, i].min():.2f}, {c[:, i].max():.2f}]" for c in curves.values()]
        table.append(f"| {kl:.2f} | {' | '.join(cells)} |")
    head = (
        f"# Reward against KL, beside TRL 1.12\n\n`python -m benchmarks.ppo_curve {' '.join(sys.argv[1:])}`: the judge's mean score where the samples "
        f"have that KL; mean over {len(options.seeds)} seeds, and in brackets the lowest and the highest.\n"
    )
    publish("ppo_curve", head, table, found)
    draw(found, RESULTS / "ppo_curve.png")


if __name__ == "__main__":
    main()
