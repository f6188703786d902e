"""What the client asks of a server, how many at once, and what it makes of the answers."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rlhf.errors import RecipeError, SetupError
from rlhf.generation.engines import open_engine, unsupported
from rlhf.generation.engines.concurrent import concurrently
from rlhf.generation.engines.openai_server import OpenaiServer
from rlhf.generation.engines.retry import Pace, backoff, retry_after
from rlhf.generation.engines.sampling import last_line_pattern, request_seed
from rlhf.generation.text_engine import OneLine, Request
from rlhf.recipe.synthesis import TextSampling
from tests.generation.server import answer_to, serving
from tests.generation.test_openai_faults import ask, section_for

EVERYTHING = TextSampling(
    max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1, stop=["\n\n", "고객"]
)


def test_the_body_of_a_chat() -> None:
    with serving() as server:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "안녕"}]
        engine = open_engine(section_for(server), name="teacher")
        [(_, answer)] = engine.answers([Request("k", messages)], EVERYTHING, seed=3)
        [body], paths = server.bodies, server.paths
    assert paths == {"/v1/chat/completions": 1}
    assert body == {
        "model": "good", "messages": messages, "n": 1, "seed": request_seed(3, "k"), "max_tokens": 9, "temperature": 0.5,
        "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "stop": ["\n\n", "고객"],
    }  # fmt: skip
    assert answer.texts == ["<녕안>"]


def test_settings_outside_the_protocol_go_only_where_they_are_used_or_where_unset_means_the_models_own() -> None:
    for owner, sent in (("someone", set()), ("vllm", {"top_k", "min_p", "repetition_penalty"})):
        with serving(owned_by=owner) as server:
            ask(server, ["x"])
            assert server.bodies[0].keys() & {"top_k", "min_p", "repetition_penalty", "structured_outputs"} == sent


def test_plain_text_goes_to_completions_and_messages_do_not() -> None:
    with serving() as server:
        assert ask(server, ["Once upon"], chat="plain")["Once upon"].texts == [answer_to("Once upon")]
        assert server.paths == {"/v1/completions": 1}
        engine = open_engine(section_for(server, chat="plain"), name="teacher")
        message = {"role": "user", "content": "x"}
        [(_, answer)] = engine.answers([Request("k", [message])], TextSampling(), seed=0)
        assert answer.error == "a list of messages needs an engine with chat: chat"
        assert server.paths.total() == 1


def test_ids_go_as_the_prompt_of_a_completion() -> None:
    with serving() as server:
        engine = OpenaiServer(section_for(server), encode=lambda text: [len(text), 7])
        [(_, answer)] = engine.answers([Request("k", "abc")], TextSampling(), seed=0)
        assert server.bodies[0]["prompt"] == [3, 7]
        assert answer.error is None


def test_guided_decoding_where_the_server_is_vllm() -> None:
    for owner, expected in (("someone", None), ("vllm", {"regex": last_line_pattern(["Verdict: A", "Verdict: tie"])})):
        with serving(owned_by=owner) as server:
            engine = open_engine(section_for(server), name="teacher")
            list(engine.answers([Request("k", "x")], TextSampling(), seed=0, choices=["Verdict: A", "Verdict: tie"]))
            assert server.bodies[0].get("structured_outputs") == expected


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("Verdict: tie", True), ("Because.\n\nVerdict: A", True), ("Verd\nV\n\nVerdict: A", True),
        ("Verdict A is\nVerdict: tie", True), ("Verdict: A.", False), ("Verdict: A because\nVerdict: A", False),
        ("Verdict: A\n", False), ("Verdict: A\nVerdict: tie", False), ("Because.", False), ("\n" * 31 + "Verdict: A", False),
    ],
)  # fmt: skip
def test_the_pattern_of_guided_decoding(text: str, whole: bool) -> None:
    assert bool(re.fullmatch(last_line_pattern(["Verdict: A", "Verdict: tie"]), text)) == whole


@pytest.mark.parametrize(
    ("text", "whole"), [("A+", True), ("Both.\ntie", True), ("A+ wins\ntie", False), ("AA", False)]
)
def test_the_pattern_of_choices_that_begin_differently(text: str, whole: bool) -> None:
    assert bool(re.fullmatch(last_line_pattern(["A+", "tie"]), text)) == whole


def test_the_pattern_of_one_line_lets_nothing_come_before_it() -> None:
    pattern = last_line_pattern(OneLine(["Verdict: A", "Verdict: tie"]))
    assert re.fullmatch(pattern, "Verdict: tie") and not re.fullmatch(pattern, "Because.\nVerdict: tie")


def test_samples_come_in_the_servers_own_numbering_and_greedy_ones_are_asked_for_once() -> None:
    with serving() as server:
        answer = ask(server, ["ab"], TextSampling(n=3))["ab"]
        assert answer.texts == ["<ba>0", "<ba>1", "<ba>2"] and answer.ended == [True] * 3
        assert answer.completion_tokens == 21
        greedy = ask(server, ["ab"], TextSampling(n=3, temperature=0))["ab"]
        assert greedy.texts == ["<ba>"] * 3 and greedy.completion_tokens == 7
        assert [b["n"] for b in server.bodies] == [3, 1]


def test_a_server_that_knows_no_n_is_asked_again_with_other_seeds() -> None:
    with serving() as server:
        server.ignores_n = True
        answer = ask(server, ["ab"], TextSampling(n=3))["ab"]
        assert len(answer.texts) == 3 and answer.retries == 0 and answer.completion_tokens == 21
        assert [b["n"] for b in server.bodies] == [3, 2, 1]
        assert len({b["seed"] for b in server.bodies}) == 3


def test_a_length_limit_is_not_an_end() -> None:
    with serving() as server:
        assert ask(server, ["x"], TextSampling(max_new_tokens=3))["x"].ended == [False]
        assert ask(server, ["x"], TextSampling(max_new_tokens=4))["x"].ended == [True]


def test_seeds_hang_on_seed_and_key_alone() -> None:
    with serving() as server:
        ask(server, ["a", "b", "c"])
        ask(server, ["c", "a", "b"])
        seeds = [(b["messages"][0]["content"], b["seed"]) for b in server.bodies]
    assert len(set(seeds)) == 3 and len({seed for _, seed in seeds}) == 3
    assert all(0 <= seed < 2**31 for _, seed in seeds)


def test_a_setting_that_the_server_refuses_is_named() -> None:
    with serving() as server:
        server.refuses = {"top_k"}
        message = r"refuses top_k: remove it from the step's sampling \(HTTP 400: Unrecognized"
        with pytest.raises(SetupError, match=message):
            ask(server, ["x"], TextSampling(top_k=5))


def test_newer_models_take_the_limit_under_another_name() -> None:
    def faults(prompt: str, tried: int) -> str | None:
        return "max_completion_tokens" if "max_tokens" in server.bodies[-1] else None

    with serving(faults) as server:
        answers = ask(server, ["a", "b", "c"], concurrency=1)
        assert [a.error for a in answers.values()] == [None] * 3
        assert ["max_tokens" in b for b in server.bodies] == [True, False, False, False]


@pytest.mark.parametrize(
    ("engine", "sampling", "key"),
    [
        ("openai", TextSampling(num_beams=4), "sampling.num_beams"),
        ("vllm", TextSampling(no_repeat_ngram_size=3), "sampling.no_repeat_ngram_size"),
        ("transformers", TextSampling(length_penalty=2.0), "sampling.length_penalty"),
        ("transformers", TextSampling(num_beams=2, n=3), "sampling.n"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(engine: Any, sampling: TextSampling, key: str) -> None:
    [(name, _)] = unsupported(engine, sampling)
    assert f"sampling.{name}" == key
    if engine == "openai":
        with serving() as server, pytest.raises(RecipeError, match=f"engine teacher: {key}"):
            ask(server, ["x"], sampling)


def test_concurrency_is_used_and_bounded_and_nothing_is_read_ahead() -> None:
    read = 0

    def requests() -> Iterator[Request]:
        nonlocal read
        for i in range(60):
            read += 1
            yield Request(str(i), str(i))

    with serving(seconds=0.02) as server:
        engine = open_engine(section_for(server, concurrency=6), name="teacher")
        for number, _ in enumerate(engine.answers(requests(), TextSampling(), seed=0), 1):
            assert read - number < 6
        assert number == 60
        assert server.most_at_once == 6
        assert server.connections <= 6 + 1  # kept alive; one more asked what the server is


def test_a_slow_consumer_does_not_pile_up_answers() -> None:
    with serving() as server:
        answers = open_engine(section_for(server, concurrency=3), name="t").answers(
            (Request(str(i), str(i)) for i in range(1000)), TextSampling(), seed=0
        )
        next(answers)
        threading.Event().wait(0.2)
        assert server.tries.total() <= 4


def test_an_error_of_the_work_is_raised_and_the_rest_is_left() -> None:
    worked = []

    def work(item: int) -> int:
        worked.append(item)
        if item == 5:
            raise SetupError("no")
        return item

    with pytest.raises(SetupError):
        list(concurrently(work, range(1000), 2))
    assert len(worked) < 10


def test_what_was_finished_when_an_error_came_is_handed_over() -> None:
    """A key that is revoked in the middle: the answers behind the refusal are paid for, and belong into the journal."""
    all_at_work, refused = threading.Barrier(4), threading.Event()

    def work(item: int) -> int:
        all_at_work.wait(5)
        if item == 1:
            refused.wait(5)
            raise SetupError("no")
        if item > 1:
            refused.wait(5)
            time.sleep(0.1)
        return item

    results = concurrently(work, range(4), 4)
    assert next(results) == (0, 0)
    refused.set()
    time.sleep(0.5)  # the refusal comes first, the others' answers are there behind it
    assert {item for item, _ in (next(results), next(results))} == {2, 3}
    with pytest.raises(SetupError):
        next(results)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_rate_limit_spaces_requests() -> None:
    clock = Clock()
    pace = Pace(120, sleep=clock.sleep, clock=clock)
    times = []
    for _ in range(5):
        pace.wait()
        times.append(clock.now - 100)
    assert times == [0, 0.5, 1.0, 1.5, 2.0]
    pace.hold(10)
    pace.wait()
    assert clock.now == 112
    clock.now = 500
    pace.wait()
    assert clock.now == 500  # time that was not used is not made up for


def test_the_rate_limit_holds_over_all_workers() -> None:
    with serving() as server:
        ask(server, [str(i) for i in range(8)], requests_per_minute=1200, concurrency=8)
        times = sorted(server.times)
    assert times[-1] - times[0] >= 0.2  # 0.35 in all; the first may have come late


def test_waits_grow_and_stay_bounded() -> None:
    for tries in range(1, 200):
        longest = min(60.0, 0.5 * 2.0 ** (tries - 1))
        assert all(longest / 2 <= backoff(tries) <= longest for _ in range(20))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("3", 3.0), ("0.25", 0.25), ("-4", 0.0), ("86400", 600.0), ("soon", None), ("nan", None),
        ("Thu, 01 Jan 1970 00:01:30 GMT", 30.0), ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
    ],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=lambda: 60.0) == seconds


def test_asking_a_server_loads_neither_torch_nor_pyarrow() -> None:
    code = (
        "import sys; from rlhf.generation.engines import open_engine; from rlhf.recipe.synthesis import OpenaiSection\n"
        "open_engine(OpenaiSection(engine='openai', base_url='http://x/v1', model='m'), name='n').close()\n"
        "print([m for m in ('torch', 'transformers', 'pyarrow', 'vllm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
