"""A server as a reward: the wire format, faults that pass and those that do not, and the key."""

from __future__ import annotations

import json
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlhf.errors import RlhfError, SetupError
from rlhf.generation.engine import Completion
from rlhf.generation.reward_scorer import Sample
from rlhf.generation.reward_server import RewardServer
from rlhf.generation.scorers import load_scorers, total_scores
from rlhf.recipe.scorers import ScorerSection
from tests.http_server import Handler, Server, running

SAMPLES = [
    Sample("one", [1], Completion([5, 6], " a", True), {"answer": "A", "other": 1}),
    Sample("zwei ü", [2], Completion([7], " bcd", False), {"answer": None, "other": 2}),
    Sample("two", [2], Completion([7], " e", True), {"answer": "C", "other": 3}),
]
Answers = Callable[[dict[str, Any]], tuple[int, Any]]


class Rewards(Handler):
    """Answers each request with the next of the server's replies, the last one again and again."""

    def do_POST(self) -> None:
        server: Any = self.server
        server.asked.append((self.path, self.read_json(), self.headers["Authorization"]))
        answer = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        status, body, *headers = answer(server.asked[-1][1]) if callable(answer) else answer
        self.reply(status, body, *headers)


def lengths(request: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"scores": [len(c) for c in request["completions"]]}


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = Server(Rewards)
    made.asked, made.replies = [], [lengths]
    with running(made):
        yield made


def ask(server: Any, waits: list[float] | None = None, **options: Any) -> list[float | None]:
    section = ScorerSection(url=f"{server.address}/score", **options)
    return RewardServer(section, sleep=(waits if waits is not None else []).append)(SAMPLES)


def test_the_wire_format(server: Any) -> None:
    assert ask(server, columns=["answer"], batch_size=2) == [2.0, 4.0, 2.0]
    assert server.asked == [
        (
            "/score",
            {
                "prompts": ["one", "zwei ü"],
                "completions": [" a", " bcd"],
                "ended": [True, False],
                "answer": ["A", None],
            },
            None,
        ),
        ("/score", {"prompts": ["two"], "completions": [" e"], "ended": [True], "answer": ["C"]}, None),
    ]


def test_the_server_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/rewards.md").read_text()
    block = re.search(r"^    import json\n(?:    .*\n|\n)+", page, re.M)
    assert block is not None
    code, start = textwrap.dedent(block[0]).strip().rsplit("\n\n", 1)
    assert start == 'ThreadingHTTPServer(("", 9000), Handler).serve_forever()'
    reward = types.ModuleType("reward")
    reward.score = lambda prompts, completions, answer: [
        len(p) if a else None for p, a in zip(prompts, answer, strict=True)
    ]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reward", reward)
    names: dict[str, Any] = {}
    exec(code, names)
    made: Any = Server(names["Handler"])
    with running(made):
        assert ask(made, columns=["answer"], batch_size=2) == [3.0, None, 3.0]


def test_a_list_alone_and_null_are_answers(server: Any) -> None:
    server.replies = [(200, [1, None, -0.5])]
    assert ask(server) == [1.0, None, -0.5]


def test_a_server_beside_a_function(server: Any) -> None:
    sections = [
        ScorerSection(name="there", url=server.address, weight=2.0),
        ScorerSection(callable="rlhf.rewards:ended"),
    ]
    total, parts = total_scores(load_scorers(sections, None), SAMPLES)  # type: ignore[arg-type]
    assert (total, parts["there"]) == ([5.0, 8.0, 5.0], [2.0, 4.0, 2.0])


def test_faults_that_pass_are_tried_again_with_growing_waits(server: Any) -> None:
    waits: list[float] = []
    server.replies = [(503, "busy"), (429, "slow", {"Retry-After": "7"}), (500, "oh"), lengths]
    assert ask(server, waits) == [2.0, 4.0, 2.0]
    assert len(waits) == 3 and 0.25 <= waits[0] <= 0.5 and 7.5 <= waits[1] <= 8.0 and 1.0 <= waits[2] <= 2.0


def test_in_the_end_a_fault_is_said_and_nothing_is_scored(server: Any) -> None:
    server.replies = [(503, "busy")]
    with pytest.raises(RlhfError, match=r"127.0.0.1:\d+: http://.*/score: no answer after 3 tries: HTTP 503: .*busy"):
        ask(server, max_retries=2)
    assert len(server.asked) == 3


def test_nobody_there(server: Any) -> None:
    section = ScorerSection(url="http://127.0.0.1:9/score", max_retries=1)
    with pytest.raises(RlhfError, match=r"no answer after 2 tries: .*refused"):
        RewardServer(section, sleep=lambda seconds: None)(SAMPLES)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, {"scores": [1, 2]}), "it gave 2 scores for 3 completions"),
        ((200, b"<html>"), "its answer is not JSON: <html>"),
        ((200, {"score": [1, 2, 3]}), r'expected \{"scores": \[...\]\} or a list, got \{"score"'),
        ((200, [1, "2", 3]), 'a score must be a number or null, got "2"'),
        ((200, [1, True, 3]), "a score must be a number or null, got true"),
        ((401, "who"), "it needs a key; set api_key_env .HTTP 401"),
        ((404, "no"), "it has nothing at this path; correct url .HTTP 404"),
        ((302, "", {"Location": "http://there/"}), "which is not followed; set url to http://there/"),
        ((422, {"detail": "answer"}), "it refuses the request .HTTP 422: .*answer"),
    ],
)
def test_an_answer_that_is_none_stops_the_run_at_once(server: Any, reply: Any, message: str) -> None:
    server.replies = [reply]
    with pytest.raises(RlhfError, match=message):
        ask(server)
    assert len(server.asked) == 1


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_stops_the_run(server: Any, score: float) -> None:
    server.replies = [(200, json.dumps([1.0, score, 1.0]).encode())]
    with pytest.raises(RlhfError, match=f"there returned {score} for the completion ' bcd'"):
        total_scores(load_scorers([ScorerSection(name="there", url=server.address)], None), SAMPLES)  # type: ignore[arg-type]


def test_a_key_is_sent_and_never_shown(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_KEY", "s3cret")
    assert ask(server, api_key_env="REWARD_KEY") == [2.0, 4.0, 2.0]
    assert server.asked[0][2] == "Bearer s3cret"
    server.replies = [(403, "not s3cret")]
    with pytest.raises(RlhfError, match=r"the key in \$REWARD_KEY is refused .HTTP 403: \"not \[key\]"):
        ask(server, api_key_env="REWARD_KEY")
    monkeypatch.delenv("REWARD_KEY")
    with pytest.raises(SetupError, match="api_key_env: the environment variable REWARD_KEY is not set"):
        ask(server, api_key_env="REWARD_KEY")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"url": "localhost:9000"}, "url: expected something like http://"),
        ({"url": "http://me:pass@host/"}, "url: no key or password here; set api_key_env"),
        ({"url": "http://host", "kwargs": {"a": 1}}, "kwargs: goes with callable, and does nothing with url"),
        ({"url": "http://host", "columns": ["prompts"]}, "columns: prompts is sent anyway"),
        ({"callable": "m:f", "columns": ["a"]}, "columns: goes with url, and does nothing with callable"),
        ({"models": ["a", "a"]}, "models: one of them stands here twice"),
        ({"models": ["a"]}, "at least 2"),
        ({"models": ["a", "b"], "std_weight": 1.0}, "std_weight: does nothing with combine: mean"),
        ({"model": "a", "combine": "min"}, "combine: goes with models, and does nothing with model"),
        ({"url": "http://host", "callable": "m:f"}, "give exactly one of"),
    ],
)
def test_a_section_that_says_what_does_nothing_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScorerSection(**section)
