"""A slow, deterministic server of the OpenAI protocol that writes down what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Asked(ThreadingHTTPServer):
    """`asked` counts the requests whose answer was sent, by the text of their last message."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[str], str], seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.seconds = answer, seconds
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A killed build resets its connections; nothing to say of it."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Asked

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked[prompt] += 1
        time.sleep(self.server.seconds)
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": self.server.answer(prompt)}}
        self._send({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "m", "owned_by": "tests"}]})

    def _send(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the build was killed meanwhile
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(answer: Callable[[str], str], seconds: float) -> Iterator[Asked]:
    server = Asked(answer, seconds)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
