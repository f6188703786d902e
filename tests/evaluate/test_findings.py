"""The sentences of a report: a gain is never told without its price. And several runs as one table."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import RecipeError
from rlhf.evaluate import measures
from rlhf.evaluate.findings import findings, findings_of_runs
from rlhf.evaluate.spread import as_markdown, read_reports


def around(value: float, half: float = 0.1) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": 200}


def model(name: str, *, ends: float = 0.9, taste: float = 0.0, other: float = 0.0, **more: Any) -> dict[str, Any]:
    """A model's entry of report.json, `taste` and `other` better than the reference by two judges."""
    first = name == "SFT"

    def score(gain: float) -> dict[str, Any]:
        if first:
            return {"mean": around(gain), "difference": None, "win_rate": None, "ties": None}
        return {"mean": around(gain), "difference": around(gain), "win_rate": around(0.5 + gain / 4, 0.07), "ties": 0.0}

    entry = {
        "name": name,
        "scores": {"taste": score(taste), "other": score(other)},
        "pair_judges": {},
        "kl": around(0.0 if first else 3.0),
        "eos_rate": measures.share([1.0] * round(200 * ends) + [0.0] * round(200 * (1 - ends))).as_dict(),
        "length": {"mean": around(20.0)},
        "repetition": 0.02,
        "distinct_2": 0.8,
        "implicit_accuracy": None,
    }
    return entry | more


def report(*models: dict[str, Any], accuracy: float = 0.7) -> dict[str, Any]:
    return {
        "models": list(models),
        "scorers": ["taste", "other"],
        "prompts": {"count": 200},
        "preferences": {"accuracy": around(accuracy), "pairs": 68, "length_baseline": around(0.5)},
    }


def test_what_got_worse_stands_beside_what_got_better() -> None:
    (said,) = findings([model("SFT", ends=0.88), model("PPO", taste=0.6, ends=0.01)], "taste")
    assert said.startswith("PPO is better than SFT: it wins 65% of 200 prompts by taste")
    assert said.endswith("But it ends 1% of its texts by itself, SFT 88%.")
    (clean,) = findings([model("SFT", ends=0.88), model("PPO", taste=0.6, ends=0.86)], "taste")
    assert "But" not in clean, "a difference within the intervals is no finding"


@pytest.mark.parametrize(("gain", "claim"), [(0.6, "is better"), (-0.6, "is worse"), (0.1, "No difference")])
def test_a_claim_needs_an_interval_clear_of_one_half(gain: float, claim: str) -> None:
    (sentence,) = findings([model("SFT"), model("PPO", taste=gain)], "taste")
    assert claim in sentence and "of 200 prompts" in sentence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"other": -0.4}, "other scores it 0.40 lower than SFT"),
        ({"pair_judges": {"duel": {"win_rate": around(0.3)}}}, "duel prefers SFT: it wins 30%"),
        ({"repetition": 0.12}, "12% of its 4-grams repeat earlier ones, SFT 2%"),
        ({"distinct_2": 0.5}, "it varies less: 50% of its 2-grams are different, SFT 80%"),
    ],
)
def test_every_price_is_named(change: dict[str, Any], said: str) -> None:
    (sentence,) = findings([model("SFT"), model("PPO", taste=0.6, **change)], "taste")
    assert f". But {said}." in sentence


def test_the_spread_of_several_runs_decides(tmp_path: Path) -> None:
    """Each run alone says `better`; together they differ so much that nothing is shown."""
    steady = [report(model("SFT"), model("PPO", taste=t, ends=e)) for t, e in ((0.6, 0.8), (0.7, 0.9), (0.65, 0.7))]
    wild = [report(model("SFT"), model("PPO", taste=t)) for t in (0.15, 2.9, 0.12)]
    (same,), (differ,) = findings_of_runs(steady), findings_of_runs(wild)
    assert same.startswith(
        "PPO is better than SFT over 3 runs by taste: +0.65 (95% interval over the runs +0.53 to +0.77)"
    )
    assert "better beyond its own interval in 3 of them. It ends 70 to 90% of its texts by itself, SFT 90%" in same
    assert differ.startswith("PPO is not shown to differ from SFT over 3 runs")
    table = as_markdown(steady)
    assert "| PPO | 0.65 [0.60, 0.70] |" in table and "80% [70, 90] |" in table
    assert "3 runs, 200 prompts each" in table and "accuracy 70% [70, 70]" in table
    one = as_markdown(steady[:1])
    assert "| PPO | 0.60 ± 0.10 |" in one and "200 prompts; 95% intervals." in one and same not in one


def test_reports_are_read_from_folders_and_must_be_alike(tmp_path: Path) -> None:
    def write(name: str, content: Any) -> Path:
        (tmp_path / name).mkdir()
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name / "report.json").write_text(text)
        return tmp_path / name

    good = report(model("SFT"), model("PPO"))
    a, b = write("a", good), write("b", copy.deepcopy(good))
    assert len(read_reports([a, b / "report.json"])) == 2
    other = write("other", report(model("SFT"), model("DPO")))
    with pytest.raises(
        RecipeError, match=r"other: is not comparable with .*a: .*SFT, DPO by taste, other, there they are"
    ):
        read_reports([a, other])
    for name, content, reason in (("text", "no", "is not JSON"), ("data", {"rows": 1}, "is not the report of an eval")):
        with pytest.raises(RecipeError, match=reason):
            read_reports([write(name, content)])
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_reports([tmp_path / "nowhere"])
