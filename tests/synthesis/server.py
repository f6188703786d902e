"""A slow, deterministic server of the OpenAI protocol that writes down what it was asked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests import http_server


class Asked(http_server.Server):
    """`asked` counts the requests, by the text of their last message."""

    def __init__(self, answer: Callable[[str], str], seconds: float) -> None:
        super().__init__(_Handler)
        self.answer, self.seconds = answer, seconds
        self.asked: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"{self.address}/v1"


class _Handler(http_server.Handler):
    server: Asked

    def do_POST(self) -> None:
        prompt = self.read_json()["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked[prompt] += 1
        time.sleep(self.server.seconds)
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": self.server.answer(prompt)}}
        self.reply(200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": "m", "owned_by": "tests"}]})


@contextmanager
def serving(answer: Callable[[str], str], seconds: float) -> Iterator[Asked]:
    server = Asked(answer, seconds)
    with http_server.running(server):
        yield server
