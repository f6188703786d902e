"""A real server on localhost that speaks the OpenAI protocol, answers deterministically, and misbehaves as it is told.

`faults` says, for the n-th try of each prompt (0-based), what happens instead of an answer; the words are `FAULTS`' keys.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests import http_server

Fault = Callable[["Handler", dict[str, Any]], None]


def answer_to(prompt: str) -> str:
    return f"<{prompt[::-1]}>"


class FakeServer(http_server.Server):
    """What it was asked is in `bodies`, `headers`, `tries` (by prompt); `most_at_once` is the width of its load."""

    def __init__(self, faults: Callable[[str, int], str | None], *, owned_by: str, key: str | None, seconds: float):
        super().__init__(Handler)
        self.faults, self.owned_by, self.key, self.seconds = faults, owned_by, key, seconds
        self.bodies: list[dict[str, Any]] = []
        self.paths: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.times: list[float] = []
        self.connections = self.at_once = self.most_at_once = 0
        self.ignores_n = False
        self.refuses: set[str] = set()
        self.open: list[Any] = []
        self.elsewhere = ""
        self.busy, self.busy_status = 0, 503  # so many lists of models are refused with that

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"


class Handler(http_server.Handler):
    server: FakeServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1
            self.server.open.append(self.connection)

    def do_GET(self) -> None:
        if not self._admitted():
            return
        if self.server.busy:
            self.server.busy -= 1
            self.reply(self.server.busy_status, {"error": {"message": "loading"}})
        elif self.path == "/v1/models":
            self.reply(200, {"data": [{"id": "good", "owned_by": self.server.owned_by}, {"id": "other"}]})
        else:
            self.reply(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        body = self.read_json()
        server = self.server
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        with server.lock:
            server.bodies.append(body)
            server.paths[self.path] += 1
            server.times.append(time.monotonic())
            tried = server.tries[str(prompt)]
            server.tries[str(prompt)] += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.seconds)
            fault = server.faults(str(prompt), tried)
            if not self._admitted():
                pass
            elif fault is not None:
                FAULTS[fault](self, body)
            elif refused := sorted(server.refuses & body.keys()):
                self.reply(400, {"error": {"message": f"Unrecognized request argument: {refused[0]}", "param": None}})
            elif body["model"] != "good":
                self.reply(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            else:
                self._answer(body, str(prompt))
        finally:
            with server.lock:
                server.at_once -= 1

    def _admitted(self) -> bool:
        given = self.headers.get("Authorization", "")
        if self.server.key is None or given == f"Bearer {self.server.key}":
            return True
        self.reply(401, {"error": {"message": f"Incorrect API key provided: {given.removeprefix('Bearer ')}."}})
        return False

    def _answer(self, body: dict[str, Any], prompt: str) -> None:
        with self.server.lock:
            self.server.answered[prompt] += 1
        chat = "messages" in body
        short = body.get("max_tokens", body.get("max_completion_tokens")) < 4
        choices = []
        for i in reversed(
            range(1 if self.server.ignores_n else body["n"])
        ):  # not in order: `index` says which is which
            text = f"{answer_to(prompt)}{i}" if body["n"] > 1 else answer_to(prompt)
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choices.append({"index": i, "finish_reason": "length" if short else "stop", **said})
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 7 * len(choices)}
        self.reply(200, {"choices": choices, "usage": usage})

    def hang_up(self, sent: bytes = b"") -> None:
        with suppress(OSError):
            self.wfile.write(sent)
            self.wfile.flush()
            self.connection.shutdown(2)
        self.close_connection = True


def _hang(handler: Handler, _: dict[str, Any]) -> None:
    time.sleep(1.5)
    handler.hang_up()


def _drip(handler: Handler, _: dict[str, Any]) -> None:
    """A byte at a time: no single read ever times out."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with suppress(OSError):
        for _i in range(30):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    handler.hang_up()


def _close_midway(handler: Handler, _: dict[str, Any]) -> None:
    handler.hang_up(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [')


def _half_json(handler: Handler, _: dict[str, Any]) -> None:
    handler.reply(200, b'{"choices": [{"index": 0, "message": {"content": "hal')


def _chunked_cut(handler: Handler, _: dict[str, Any]) -> None:
    handler.hang_up(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{"choices": [{"\r\n')


FAULTS: dict[str, Fault] = {
    "429": lambda h, _: h.reply(429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}),
    "429 later": lambda h, _: h.reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"}),
    "quota": lambda h, _: h.reply(429, {"error": {"message": "pay first", "code": "insufficient_quota"}}),
    "500": lambda h, _: h.reply(500, b"<html>Internal Server Error</html>"),
    "503": lambda h, _: h.reply(503, b""),
    "400": lambda h, _: h.reply(400, {"error": {"message": "This model's maximum context length is 8", "param": None}}),
    "403": lambda h, _: h.reply(403, {"error": {"message": "flagged"}}),
    "max_completion_tokens": lambda h, b: h.reply(
        400, {"error": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens"}}
    ),
    "redirect": lambda h, _: h.reply(307, b"", {"Location": h.server.elsewhere}),
    "garbage": lambda h, _: h.reply(200, b"\xff\xfe\x00 not json"),
    "half json": _half_json,
    "not an object": lambda h, _: h.reply(200, [1, 2]),
    "no choices key": lambda h, _: h.reply(200, {"result": "hello"}),
    "empty choices": lambda h, _: h.reply(200, {"choices": []}),
    "text is a number": lambda h, _: h.reply(200, {"choices": [{"index": 0, "message": {"content": 5}, "text": 5}]}),
    "hang": _hang,
    "drip": _drip,
    "hang up": lambda h, _: h.hang_up(),
    "hang up in status": lambda h, _: h.hang_up(b"HTTP/1.1 20"),
    "close midway": _close_midway,
    "chunked, cut": _chunked_cut,
}


@contextmanager
def serving(
    faults: Callable[[str, int], str | None] = lambda prompt, tried: None,
    *,
    owned_by: str = "someone",
    key: str | None = None,
    seconds: float = 0.0,
) -> Iterator[FakeServer]:
    """A running server; `seconds` is what each request takes at least."""
    server = FakeServer(faults, owned_by=owned_by, key=key, seconds=seconds)
    try:
        with http_server.running(server):
            yield server
    finally:
        for connection in server.open:
            with suppress(OSError):
                connection.shutdown(2)
