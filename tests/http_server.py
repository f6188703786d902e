"""What the test servers on localhost share: a quiet server in a thread, and a handler that answers in whole bodies."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """A server on a free port. Clients that hang up are part of the tests, so nothing is printed about them."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open, logs nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def read_json(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return body

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """Send bytes as they are and anything else as JSON; a HEAD request gets the headers alone."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        names = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        for name, value in names.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def running(server: Server) -> Iterator[None]:
    """The server answers inside the `with` block, and its port is free after it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
