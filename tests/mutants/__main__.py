"""`make mutants`: small faults in the numerical core, and which of them the tests notice.

    python -m tests.mutants                       all of them; writes tests/mutants/results.md
    python -m tests.mutants --sample 12 --seed 3  a few, drawn by the seed
    python -m tests.mutants --only sampler        those whose name contains a word

Fails when a mutant survives that `equivalent.txt` does not list.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path

from tests.mutants.operators import Mutant, mutants_of
from tests.mutants.running import SURVIVED, outcomes, preload

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LIMIT = 120.0  # seconds that the tests of a file may take
# Which tests concern a file. The quickest that can notice a fault come first.
TESTS = {
    "rlhf/losses/advantages.py": ["tests/losses/test_advantages.py", "tests/losses/test_masked.py"],
    **{
        f"rlhf/losses/preference/{name}.py": ["tests/losses/test_preference.py", "tests/losses/test_dpo.py"]
        for name in (
            "aot",
            "apo",
            "chosen",
            "classified",
            "discopop",
            "dpop",
            "exo",
            "logistic",
            "measures",
            "mix",
            "reference_free",
            "slic",
            "squared",
        )
    },
    "rlhf/losses/baselines.py": ["tests/losses/test_baselines.py"],
    "rlhf/losses/kl.py": ["tests/losses/test_kl.py", "tests/losses/test_baselines.py"],
    "rlhf/losses/whitening.py": ["tests/losses/test_advantages.py", "tests/losses/test_masked.py"],
    "rlhf/losses/ppo.py": [
        "tests/losses/test_ppo_details.py",
        "tests/losses/test_masked.py",
        "tests/losses/test_baselines.py",
    ],
    "rlhf/losses/reward.py": ["tests/losses/test_reward.py"],
    "rlhf/losses/sft.py": ["tests/losses/test_sft.py"],
    "rlhf/models/logprobs.py": ["tests/models/test_logprobs.py"],
    "rlhf/tokens/segments.py": ["tests/tokens/test_segments.py"],
    "rlhf/tokens/template.py": [
        "tests/tokens/test_template.py",
        "tests/tokens/test_template_specials.py",
        "tests/data/test_ended.py",
    ],
    "rlhf/tokens/sampler.py": ["tests/tokens/test_sampler.py"],
    "rlhf/data/rankings.py": ["tests/data/test_rankings.py", "tests/data/test_rankings_edges.py"],
    "rlhf/generation/choosing.py": ["tests/generation/test_choosing.py"],
}


def equivalents() -> dict[str, str]:
    """Names of the mutants that no test can notice, each with its reason, from `equivalent.txt`."""
    found: dict[str, str] = {}
    for block in (HERE / "equivalent.txt").read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if lines:
            found |= dict.fromkeys(lines[:-1], lines[-1].strip())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--sample", type=int, help="so many, drawn at random, without those in equivalent.txt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the names of the mutants to run")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()

    known = equivalents()
    every = [m for path in TESTS for m in mutants_of(path, ROOT) if options.only in m.name]
    if (unknown := known.keys() - {m.name for m in every}) and not options.only:
        print("in equivalent.txt, but no mutant any more:", *sorted(unknown), sep="\n  ")
        return 1
    chosen = every
    if options.sample:
        chosen = random.Random(options.seed).sample([m for m in every if m.name not in known], options.sample)
    print(f"{len(chosen)} of {len(every)} mutants" + (f", seed {options.seed}" if options.sample else ""), flush=True)
    preload()
    began = time.monotonic()
    limits = _baseline({m.path for m in chosen}, options.processes)
    words = _run(chosen, options.processes, known, limits)
    survivors = [m for m in chosen if words[m] == SURVIVED]
    new = [m for m in survivors if m.name not in known]
    killed = len(chosen) - len(survivors)
    print(f"{killed} of {len(chosen)} killed, {len(survivors)} survived, {len(new)} of these not in equivalent.txt; "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    if not options.sample and not options.only:
        _write_results(words, known)
    return 1 if new else 0


def _baseline(paths: set[str], processes: int) -> dict[str, float]:
    """How long a mutant of each file may take: several times as long as its tests without any fault, which must pass."""
    plain = [Mutant(p, 0, p, (ROOT / p).read_text(encoding="utf-8")) for p in sorted(paths)]
    ran = list(outcomes([(m, TESTS[m.path]) for m in plain], processes=processes, limits=dict.fromkeys(paths, LIMIT)))
    if bad := [m.path for m, word, _ in ran if word != SURVIVED]:
        raise SystemExit(f"without any fault, the tests of these files fail already: {', '.join(bad)}")
    return {m.path: 10 + 3 * seconds for m, _, seconds in ran}


def _run(chosen: list[Mutant], processes: int, known: dict[str, str], limits: dict[str, float]) -> dict[Mutant, str]:
    words: dict[Mutant, str] = {}
    for mutant, word, seconds in outcomes([(m, TESTS[m.path]) for m in chosen], processes=processes, limits=limits):
        words[mutant] = word
        if word == SURVIVED and mutant.name not in known:
            print(f"survived ({seconds:.0f} s): line {mutant.line}: {mutant.name}", flush=True)
    return words


def _write_results(words: dict[Mutant, str], known: dict[str, str]) -> None:
    all_of = Counter(m.path for m in words)
    alive = Counter(m.path for m, word in words.items() if word == SURVIVED)
    lines = ["# Mutants of the numerical core", "",
             f"Written by `make mutants` on {date.today()}. Survivors and why each is equivalent: `equivalent.txt`.", "",
             "| file | mutants | killed | equivalent | not killed |", "|---|---:|---:|---:|---:|"]  # fmt: skip
    for path in TESTS:
        listed = sum(m.name in known for m, word in words.items() if m.path == path and word == SURVIVED)
        lines.append(
            f"| `{path}` | {all_of[path]} | {all_of[path] - alive[path]} | {listed} | {alive[path] - listed} |"
        )
    listed = sum(m.name in known for m, word in words.items() if word == SURVIVED)
    total, left = all_of.total(), alive.total()
    lines.append(f"| all | {total} | {total - left} | {listed} | {left - listed} |")
    (HERE / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
