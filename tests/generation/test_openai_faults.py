"""The client against a server that fails in every way it can: each request answered once, nothing lost, nothing leaked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import RecipeError, SetupError
from rlhf.generation.engines import open_engine, retry
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.loader import load
from rlhf.recipe.synthesis import OpenaiSection, TextSampling
from tests.generation.server import FAULTS, FakeServer, answer_to, serving

PASSING = [f for f in FAULTS if f not in ("400", "403", "quota", "redirect", "max_completion_tokens")]
SLOW = ("hang", "drip")
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.002)


def section_for(server: FakeServer | str, **changes: Any) -> OpenaiSection:
    url = server if isinstance(server, str) else server.base_url
    return OpenaiSection.model_validate(
        {"engine": "openai", "base_url": url, "model": "good", "timeout": 20.0} | changes
    )


def ask(
    server: FakeServer | str, prompts: list[str], sampling: TextSampling | None = None, **changes: Any
) -> dict[str, Answer]:
    """Each prompt's answer; every request must come back exactly once."""
    engine = open_engine(section_for(server, **changes), name="teacher")
    requests = [Request(p, p) for p in prompts]
    pairs = list(engine.answers(requests, sampling or TextSampling(), seed=1))
    engine.close()
    assert sorted(r.key for r, _ in pairs) == sorted(prompts)
    return {r.key: a for r, a in pairs}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_outlived(fault: str) -> None:
    with serving(lambda prompt, tried: fault if tried < 2 else None) as server:
        answers = ask(server, ["one", "two", "three"], timeout=0.3 if fault in SLOW else 20.0)
        for prompt, answer in answers.items():
            assert answer == Answer([answer_to(prompt)], [True], len(prompt), 7, retries=2)
        assert server.tries == {"one": 3, "two": 3, "three": 3}
        assert server.answered == {"one": 1, "two": 1, "three": 1}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays_is_that_requests_error_alone(fault: str) -> None:
    with serving(lambda prompt, tried: fault if prompt == "bad" else None) as server:
        answers = ask(server, ["fine", "bad", "well"], max_retries=2, timeout=0.3 if fault in SLOW else 20.0)
        assert server.tries["bad"] == 3
        bad = answers.pop("bad")
        assert bad.texts == [] and bad.retries == 2 and bad.gave_up
        assert bad.error is not None and bad.error.startswith("no answer after 3 tries: ")
        assert [a.error for a in answers.values()] == [None, None]


def test_every_fault_at_once_and_every_request_answered_once() -> None:
    kinds = [f for f in PASSING if f not in SLOW and f != "429 later"]

    def faults(prompt: str, tried: int) -> str | None:
        number = int(prompt)
        return kinds[(number + tried) % len(kinds)] if tried < number % 4 else None

    with serving(faults) as server:
        answers = ask(server, [str(i) for i in range(300)], concurrency=24)
    assert {p: a.texts for p, a in answers.items()} == {p: [answer_to(p)] for p in answers}
    assert {p: a.retries for p, a in answers.items()} == {p: int(p) % 4 for p in answers}
    assert set(server.answered.values()) == {1}


def test_retry_after_is_kept_to() -> None:
    with serving(lambda prompt, tried: "429 later" if tried == 0 else None) as server:
        ask(server, ["x"])
        first, second = server.times
    assert second - first >= 0.29  # the server said 0.3; without it the wait would be 2 ms


def test_a_refused_request_is_not_asked_again() -> None:
    with serving(lambda prompt, tried: "400" if prompt == "long" else None) as server:
        answers = ask(server, ["long", "short"])
        assert server.tries["long"] == 1
    assert answers["long"].error == "HTTP 400: This model's maximum context length is 8"
    assert answers["short"].error is None


@pytest.mark.parametrize(
    ("changes", "fault", "message"),
    [
        ({"model": "god"}, None, r"engine teacher: http\S+: no model 'god'; it has good, other \(HTTP 404"),
        ({}, "quota", "the account's quota is used up"),
        ({}, "403", "it needs a key; set api_key_env"),
    ],
)
def test_what_no_request_could_outlive_ends_the_run(changes: dict[str, Any], fault: str | None, message: str) -> None:
    with serving(lambda prompt, tried: fault) as server:
        with pytest.raises(SetupError, match=message):
            ask(server, [str(i) for i in range(50)], concurrency=2, **changes)
        assert server.tries.total() <= 3


def test_a_403_after_answers_is_about_the_request() -> None:
    with serving(lambda prompt, tried: "403" if prompt == "2" else None) as server:
        answers = ask(server, ["0", "1", "2", "3"], concurrency=1)
    assert {p: a.error for p, a in answers.items()} == {"0": None, "1": None, "2": "HTTP 403: flagged", "3": None}


def test_nobody_there() -> None:
    with serving() as server:
        url = server.base_url
    with pytest.raises(SetupError, match=r"http.*nothing answers there .*refused.*start the server"):
        ask(url, ["x"], max_retries=1)


def test_a_server_that_dies_ends_the_run_instead_of_failing_every_row() -> None:
    with serving() as server:
        engine = open_engine(section_for(server, max_retries=1, concurrency=4), name="teacher")
        answers = engine.answers((Request(str(i), str(i)) for i in range(100_000)), TextSampling(), seed=0)
        got = [next(answers) for _ in range(10)]
        assert all(a.error is None for _, a in got)
    with pytest.raises(SetupError, match="nothing answers"):
        got.extend(answers)
    assert len(got) < 100


def test_the_key_is_written_nowhere(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(0)
    written = []
    with serving(key=KEY) as server:
        written.append(repr(ask(server, ["x"], api_key_env="TEACHER_KEY")))
    with serving(key="another") as server:  # says the key back in its refusal
        with pytest.raises(SetupError, match=r"the key in \$TEACHER_KEY is refused .*\[key\]") as caught:
            ask(server, ["x"], api_key_env="TEACHER_KEY")
        written.append(repr(caught.getrepr(showlocals=False)) + str(caught.value))
    with serving() as server:  # says the key back as its answer
        answers = ask(server, [KEY[::-1]], api_key_env="TEACHER_KEY")
        assert answers[KEY[::-1]].texts == ["<[key]>"]
        written.append(repr(list(answers.values())))
    engine = open_engine(section_for("http://127.0.0.1:9/v1", api_key_env="TEACHER_KEY"), name="teacher")
    written += [repr(engine), repr(section_for("http://127.0.0.1:9/v1", api_key_env="TEACHER_KEY"))]
    written += [*capfd.readouterr(), caplog.text]
    assert not [text for text in written if KEY in text or KEY[:12] in text]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_at_first_is_known_for_vllm_all_the_same(status: int) -> None:
    """Else its guided decoding would stay off, and its models' own defaults would come through, for that one run."""
    with serving(owned_by="vllm") as server:
        server.busy = 2
        server.busy_status = status
        ask(server, ["x"])
        assert server.bodies[0]["repetition_penalty"] == 1.0


def test_a_redirect_is_not_followed_so_the_key_goes_to_no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with serving() as other, serving(lambda prompt, tried: "redirect", key=KEY) as server:
        server.elsewhere = f"{other.base_url}/chat/completions"
        with pytest.raises(SetupError, match=r"redirects to http\S+/chat/completions, which is not followed.*HTTP 307"):
            ask(server, ["x"], api_key_env="TEACHER_KEY")
        assert other.connections == 0 and server.tries.total() == 1


def test_the_environments_proxy_is_used_but_not_for_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as proxy, serving() as server:
        monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1").replace("http://", "http://me:pw@"))
        monkeypatch.delenv("no_proxy", raising=False)
        ask(server, ["near"])
        assert proxy.connections == 0
        assert ask("http://models.test/v1", ["far"])["far"].texts == [answer_to("far")]
        assert proxy.paths == {"http://models.test/v1/chat/completions": 1}
        assert server.tries == {"near": 1}


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "sk-line\nbreak", "klé"])
def test_a_key_that_cannot_be_one(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEACHER_KEY", value)
    with pytest.raises(SetupError, match=r"engine teacher: api_key_env: .*TEACHER_KEY") as caught:
        open_engine(section_for("http://127.0.0.1:9/v1", api_key_env="TEACHER_KEY"), name="teacher")
    assert not value or not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://x/v1", "http://user:pass@host/v1", "http://host/v1?key=1"),
        *("http://host:99999/v1", "http://host:port/v1", "http://[::1/v1", "http://host:0/v1"),
    ],
)
def test_an_address_that_cannot_be_one(tmp_path: Path, url: str) -> None:
    """Found with the recipe, before anything is asked."""
    path = tmp_path / "r.yaml"
    engine = f'{{engine: openai, model: m, base_url: "{url}"}}'
    path.write_text(
        f"method: data\noutput_dir: out\nsources: [{{path: x.jsonl}}]\nengines:\n  t: {engine}\nsteps: [{{generate: {{engine: t}}}}]\n"
    )
    with pytest.raises(RecipeError, match=r"r.yaml:5: engines.t.base_url: ") as caught:
        load(path)
    assert "pass@" not in str(caught.value)


def test_closing_breaks_off_what_hangs() -> None:
    with serving(lambda prompt, tried: "hang" if prompt == "slow" else None) as server:
        engine = open_engine(section_for(server, timeout=60.0), name="teacher")
        answers = engine.answers([Request("slow", "slow"), Request("x", "x")], TextSampling(), seed=0)
        assert next(answers)[0].key == "x"
        began = time.monotonic()
        answers.close()  # type: ignore[attr-defined]
        engine.close()
        assert time.monotonic() - began < 1
