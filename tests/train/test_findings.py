"""The training doctor's checks on made-up metrics: noise is no fault, a threshold is where it is said to be, and worse is said again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rlhf.train.doctor import KEPT, Doctor
from rlhf.train.findings import CHECKS, PATIENCE, WINDOW

STEPS = 120
Metrics = dict[str, float]


def online(random: np.random.Generator, samples: int = 64) -> Iterator[Metrics]:
    """A run in which nothing happens: every number is its mean over `samples` samples, with the noise that such a mean has."""
    kl, tokens = random.uniform(0.0, 3.0), 40 * samples
    while True:
        nats = random.normal(kl, math.sqrt(2 * kl) + 1e-3, samples)
        values = {
            "loss": random.normal(0.0, 0.1),
            "kl": nats.mean(),
            "kl_error": nats.std() / math.sqrt(samples),
            "length": random.normal(40, 15 / math.sqrt(samples)),
            "score": random.normal(0, 1 / math.sqrt(samples)),
            "score_std": random.normal(0, 1, samples).std(),
            "score_length_corr": random.normal(0.6, 0.08),  # a score that likes length is no fault while length stands
            "groups_alike": random.binomial(samples // 4, 0.6) / (samples // 4),
            "eos_rate": random.binomial(samples, 0.7) / samples,
            "entropy": random.exponential(2.0, tokens).mean(),
            "value/explained_variance": random.normal(0.1, 0.2),
            "policy/first_gap": abs(random.normal(0, 1e-3)),
            "engine_gap": abs(random.normal(0.05, 0.005)),  # two programs in nf4
            "engine_gap_max": abs(random.normal(0.9, 0.1)),
        }
        yield {name: float(value) for name, value in values.items()}


def pairs(random: np.random.Generator) -> Iterator[Metrics]:
    """A run of DPO or of a reward model that has learnt what there is: its numbers only scatter."""
    step = 0
    while True:
        step += 1
        loss = random.normal(0.5, 0.05)
        values = {"loss": loss, "accuracy": random.binomial(16, 0.7) / 16, "margin": random.normal(0.6, 0.2)}
        values |= {"reward/chosen": random.normal(-0.5, 0.2), "reward/rejected": random.normal(-1.1, 0.2)}
        if step % 6 == 0:
            values |= {"eval/loss": random.normal(0.6, 0.01), "eval/accuracy": random.normal(0.68, 0.01)}
            values |= {"eval/longer_wins": 0.55, "eval/ended_wins": 0.5}
        yield {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("kind", [online, pairs])
def test_noise_is_no_finding(kind: Callable[[np.random.Generator], Iterator[Metrics]]) -> None:
    for seed in range(100):
        doctor, lines = Doctor(STEPS), kind(np.random.default_rng(seed))
        found = [str(finding) for step in range(1, STEPS + 1) for finding in doctor.look(step, next(lines))]
        assert found == [], seed


def first_found(name: str, lines: list[Metrics], total: int | None = None) -> int | None:
    """The step at which a finding is made first."""
    doctor = Doctor(total or len(lines))
    for step, line in enumerate(lines, 1):
        if name in [finding.name for finding in doctor.look(step, line)]:
            return step
    return None


def both(before: Metrics, after: Metrics) -> list[Metrics]:
    """Five lines of one kind, then five of another: the shortest run that shows a change."""
    return [before] * WINDOW + [after] * WINDOW


def dpo(chosen: float, margin: float) -> Metrics:
    return {"loss": 0.4, "reward/chosen": chosen, "margin": margin}


def reward(accuracy: float, longer: float, ended: float = 0.5) -> Metrics:
    return {"loss": 0.5, "eval/accuracy": accuracy, "eval/longer_wins": longer, "eval/ended_wins": ended}


LONG = {"score": 0.2, "length": 20.0, "score_length_corr": 0.5}
EARLY, LATE = {"loss": 0.6, "eval/loss": 0.60}, {"loss": 0.3, "eval/loss": 0.67}
# name: (lines with the fault, and lines that are just short of it)
EDGES: dict[str, tuple[list[Metrics], list[Metrics]]] = {
    "first_ratio": ([{"policy/first_gap": 0.011}], [{"policy/first_gap": 0.009}]),
    "negative_kl": ([{"kl": -0.3, "kl_error": 0.2}] * 5, [{"kl": -0.25, "kl_error": 0.2}] * 5),
    "kl_blow_up": (
        both({"kl": 9.0, "length": 90.0}, {"kl": 10.1, "length": 90.0}),
        both({"kl": 9.5, "length": 90.0}, {"kl": 10.1, "length": 90.0}),
    ),
    "ends_less": (both({"eos_rate": 0.9}, {"eos_rate": 0.53}), both({"eos_rate": 0.9}, {"eos_rate": 0.55})),
    "rises_with_length": (
        both(LONG, LONG | {"score": 0.3, "length": 26.1}),
        both(LONG, LONG | {"score": 0.1, "length": 26.1}),
    ),
    "no_spread": (both({"score_std": 1.0}, {"score_std": 0.09}), both({"score_std": 1.0}, {"score_std": 0.11})),
    "value_explains_nothing": (
        [{"value/explained_variance": 0.0}] * 20,
        [{"value/explained_variance": 0.01}] + [{"value/explained_variance": -1.0}] * 19,
    ),
    "entropy_collapse": (both({"entropy": 2.0}, {"entropy": 0.39}), both({"entropy": 2.0}, {"entropy": 0.41})),
    "engine_gap": (both({"engine_gap": 0.01}, {"engine_gap": 0.04}), both({"engine_gap": 0.01}, {"engine_gap": 0.02})),
    "chosen_falls": (both(dpo(-0.5, 1.0), dpo(-1.1, 2.0)), both(dpo(-0.5, 1.0), dpo(-0.9, 2.0))),
    "stuck_at_log_2": (
        [{"loss": 0.69, "reward/chosen": 0.0}] * 20,
        [{"loss": 0.69, "reward/chosen": 0.0}] * 19 + [{"loss": 0.68, "reward/chosen": 0.0}],
    ),
    "overfits": ([EARLY, LATE, LATE], [EARLY, LATE | {"eval/loss": 0.65}, LATE]),
    "no_better_than_length": ([reward(0.60, longer=0.4)], [reward(0.61, longer=0.4)]),
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_threshold_is_where_it_is_said_to_be(name: str) -> None:
    fault, short = EDGES[name]
    assert first_found(name, fault) == len(fault)
    assert first_found(name, short) is None


@pytest.mark.parametrize("name", CHECKS)
def test_the_evidence_is_one_plain_sentence_with_numbers(name: str) -> None:
    doctor = Doctor(len(EDGES[name][0]))
    found = [f for step, line in enumerate(EDGES[name][0], 1) for f in doctor.look(step, line) if f.name == name]
    assert len(found) == 1
    assert any(letter.isdigit() for letter in found[0].evidence)
    assert not any(word in str(found[0]) for word in ("nan", "inf ", "None", "e-1"))


def test_all_groups_alike_is_no_spread_though_groups_differ() -> None:
    lines = [{"score_std": 1.0, "groups_alike": 0.95}] * 10
    assert first_found("no_spread", lines) == 10
    assert first_found("no_spread", [line | {"groups_alike": 0.9} for line in lines]) is None


def test_a_short_run_of_short_texts_blows_up_by_the_token() -> None:
    assert first_found("kl_blow_up", both({"kl": 1.0, "length": 10.0}, {"kl": 3.1, "length": 10.0})) == 10
    assert first_found("kl_blow_up", both({"kl": 1.0, "length": 10.0}, {"kl": 2.9, "length": 10.0})) is None


def test_an_engine_that_is_far_off_is_found_at_once() -> None:
    assert first_found("engine_gap", [{"engine_gap": 0.11, "engine_gap_max": 2.0}]) == 1
    assert first_found("engine_gap", [{"engine_gap": 0.06, "engine_gap_max": 2.0}] * 30) is None  # nf4's rounding


def test_the_end_alone_may_be_all_that_a_reward_model_sees() -> None:
    assert first_found("no_better_than_length", [reward(0.7, longer=0.5, ended=0.25)]) == 1
    assert first_found("no_better_than_length", [reward(0.7, longer=0.5, ended=0.35)]) is None


def test_a_warm_up_is_not_stuck() -> None:
    """A run of 200 steps whose learning rate rises over the first 20 has a loss of log 2 there."""
    lines = [{"loss": math.log(2), "reward/chosen": 0.0}] * 45
    assert first_found("stuck_at_log_2", lines[:39], total=200) is None
    assert first_found("stuck_at_log_2", lines, total=200) == 40


def test_it_is_said_again_only_where_it_is_clearly_worse() -> None:
    """A KL that grows by a tenth a step, from 1 to 13,780 nats: ten doublings beyond 10."""
    doctor, said = Doctor(100), {}
    for step in range(1, 101):
        for finding in doctor.look(step, {"kl": 1.1**step, "length": 100.0}):
            said[step] = finding.severity
    assert 9 <= len(said) <= 11
    assert all(later >= 2 * earlier for earlier, later in zip([*said.values()], [*said.values()][1:], strict=False))


def test_what_was_read_back_is_what_was_seen() -> None:
    """Wherever a run is cut: a value that was not finite is null on file, and line 0 is of no step."""
    random = np.random.default_rng(0)
    kl: list[float] = [float(2 + 0.6 * step + random.normal()) for step in range(40)]
    kl[17] = math.nan
    lines: list[Metrics] = [
        {"kl": value, "length": 30.0, "eos_rate": max(0.9 - i / 30, 0.0)} for i, value in enumerate(kl)
    ]
    whole, on_file = Doctor(40), [{"step": 0, "eval/score": 1.0}]  # type: list[dict[str, Any]]
    for step, line in enumerate(lines, 1):
        found = [finding.as_dict() for finding in whole.look(step, line)]
        on_file.append(
            {"step": step} | {n: v if math.isfinite(v) else None for n, v in line.items()} | {"findings": found}
        )
    assert sum(len(line.get("findings", [])) for line in on_file) >= 4
    for cut in range(41):
        part = Doctor(40, on_file[: cut + 1])
        again = [[f.as_dict() for f in part.look(step, lines[step - 1])] for step in range(cut + 1, 41)]
        assert again == [line["findings"] for line in on_file[cut + 1 :]], cut


def test_a_long_run_forgets_its_middle() -> None:
    """But neither its start, nor its evaluations, nor what was said."""
    doctor = Doctor(10_000)
    for step in range(1, 3001):
        rate = 0.9 if step <= 5 else 0.3 if step > 2990 else 0.8
        evaluated = {"eval/loss": 1.0} if step % 500 == 0 else {}
        found = doctor.look(step, {"eos_rate": rate, "loss": 1.0} | evaluated)
        assert [f.name for f in found] == (["ends_less"] if step == 2993 else []), step
    assert len(doctor._history) <= 4 * KEPT
    assert sum("eval/loss" in line for line in doctor._history) == 6


def test_a_long_past_changes_nothing_and_is_not_read() -> None:
    """The checks of a step read the first lines and the last, so a step costs the same after 10,000 others."""

    class Counting(dict[str, Any]):
        reads = 0

        def get(self, *args: Any) -> Any:
            Counting.reads += 1
            return super().get(*args)

    def reads(steps: int) -> int:
        history = [Counting(next(online(np.random.default_rng(0))), step=step, progress=0.5) for step in range(steps)]
        Counting.reads = 0
        for check, _ in CHECKS.values():
            check(history)
        return Counting.reads

    assert reads(400) == reads(2 * PATIENCE)
