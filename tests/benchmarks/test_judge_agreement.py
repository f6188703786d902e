"""Agreement with people: kappa by hand, people against people on PandaLM, and judges whose agreement is known beforehand."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.judge_agreement import VotedPair, agreement, by_engine, by_score, kappa, of_rankings, pandalm
from rlhf.data.rows import text_of
from rlhf.errors import DataError
from tests.data.support import lines, real
from tests.synthesis.support import FakeEngine, fence


def test_kappa_by_hand() -> None:
    # the example of Cohen's table: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o 0.7, p_e 0.5
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(a, b) == pytest.approx(0.4)
    assert kappa(a, a) == 1.0
    assert kappa(["yes"] * 3, ["yes"] * 3) is None
    assert kappa(["yes", "no"], ["no", "yes"]) == -1.0


def pair(first: str, second: str, *votes: str) -> VotedPair:
    return VotedPair("q", first, second, votes)  # type: ignore[arg-type]


def test_agreement_by_hand() -> None:
    pairs = [
        pair("aa", "a", "first", "first", "second"),
        pair("a", "aa", "first", "first", "first"),
        pair("a", "b", "tie", "tie", "first"),
        pair("a", "b", "first", "second", "tie"),
    ]
    said = by_score(pairs, lambda prompt, text: len(text))
    assert said == ["first", "second", "tie", "tie"]
    found = agreement(pairs, said)
    assert (found["pairs"], found["with_majority"]) == (4, 3)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_decided"] == 0.5
    assert found["kappa"] == pytest.approx((2 / 3 - 3 / 9) / (1 - 3 / 9))
    # left out one by one: (1|1,2 no majority) x2, 2|1,1 wrong; three right; tie|tie,1 no majority x2, 1|tie,tie wrong
    assert found["humans"]["accuracy"] == pytest.approx(3 / 5)
    assert found["humans"]["unanimous"] == 0.25
    silent = agreement(pairs, ["none"] * 4)
    assert (silent["accuracy"], silent["unparsed_or_failed"]) == (0.0, 4)
    with pytest.raises(DataError, match="no pair has a majority"):
        agreement(pairs[3:], said[3:])


def test_a_judging_engine_is_asked_in_both_orders_and_keeps_its_place() -> None:
    pairs = [pair("a", "bb", "second"), pair("?", "x", "first"), pair("ccc", "c", "first")]

    def longer(prompt: str) -> str:
        a, b = fence(prompt, "answer_A"), fence(prompt, "answer_B")
        return "hm" if "?" in a + b else f"Verdict: {'A' if len(a) > len(b) else 'B'}"

    said, report = by_engine(pairs, FakeEngine(longer), retries=0)
    assert said == ["second", "none", "first"]
    assert report["unparsed"] == 2
    found = agreement(pairs, said)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["humans"] is None


def test_pandalms_people() -> None:
    pairs = pandalm(real("pandalm/testset-v1.json"))
    assert len(pairs) == 999
    assert Counter(p.majority for p in pairs) == {"second": 472, "first": 422, "tie": 105}
    oracle = agreement(pairs, [p.majority or "none" for p in pairs])
    assert (oracle["accuracy"], oracle["kappa"]) == (1.0, 1.0)
    assert oracle["humans"]["unanimous"] == pytest.approx((426 + 368 + 85) / 999)
    assert 0.8 < oracle["humans"]["kappa"] < 0.95
    always = agreement(pairs, ["first"] * 999)
    assert always["accuracy"] == pytest.approx(422 / 999)
    assert always["kappa"] == 0.0
    one = agreement(pairs, [p.votes[0] for p in pairs])
    assert 0.9 < one["accuracy"] < 1.0


def test_rankings_of_open_assistant() -> None:
    pairs = of_rankings(real("oasst/en_100_tree.jsonl.gz"))
    votes = Counter(p.votes[0] for p in pairs)
    assert len(pairs) > 200
    assert abs(votes["first"] - votes["second"]) <= len(pairs) * 0.05  # no place is the better one
    assert agreement(pairs, [p.votes[0] for p in pairs])["accuracy"] == 1.0
    assert all(text_of(p.first) != text_of(p.prompt) for p in pairs)


def test_votes_that_are_none_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    row = {"instruction": "i", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 3, "annotator3": 1}
    with pytest.raises(DataError, match="votes must be 0, 1 or 2"):
        pandalm(lines(tmp_path / "p.jsonl", [row]))
