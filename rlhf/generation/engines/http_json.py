"""JSON over HTTP with the standard library. Each thread keeps its own connection open, and a whole reply has a time limit.

`openai_server` uses it. It needs no client package: the one that comes with Hugging Face's hub has different names in the
versions that rlhf supports. Redirects are not followed, so a key goes to no other host.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from rlhf.errors import first_line

MAX_BODY = 64 << 20  # bytes: no answer is so long, and a broken server may never stop sending
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TransportError(Exception):
    """No whole reply came. `refused`: nothing listens at the address, or there is no such host."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


@dataclass(frozen=True)
class Reply:
    """A whole reply. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    text: str


class JsonClient:
    """Requests under one base URL, from any number of threads. When `closed` is set, nobody waits for another try."""

    def __init__(self, base_url: str, headers: dict[str, str], *, timeout: float) -> None:
        """`timeout`: seconds for a whole reply."""
        self._url = urlsplit(base_url.rstrip("/"))
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **headers}
        self._timeout = timeout
        self._own = threading.local()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.closed = threading.Event()

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Reply:
        """Send a request and read its reply, on the open connection if there is one. Raises TransportError without a whole reply."""
        payload = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
        try:
            return self._round_trip(method, path, payload)
        except (OSError, http.client.HTTPException) as error:
            raise _transport_error(error, self._timeout) from None

    def close(self) -> None:
        """Stop all running requests, and free the sockets."""
        self.closed.set()
        with self._lock:
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _round_trip(self, method: str, path: str, payload: bytes | None) -> Reply:
        deadline = time.monotonic() + self._timeout
        connection, prefix = self._connection()
        sock, whole = connection.sock, False
        try:
            if sock is None:
                connection.connect()
                sock = connection.sock
                self._register(sock)
            connection.request(method, f"{prefix}{self._url.path}{path}", payload, self._headers)
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            response = connection.getresponse()
            text = _read(response, sock, deadline)
            whole = not response.will_close
            if whole:
                sock.settimeout(self._timeout)
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, text)
        finally:
            if not whole:
                self._drop(connection, sock)

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        """This thread's connection, and what comes before the path (a plain proxy needs the whole URL)."""
        kept: tuple[http.client.HTTPConnection, str] | None = getattr(self._own, "connection", None)
        if kept is not None and _was_closed(kept[0].sock):
            self._drop(kept[0], kept[0].sock)
            kept = None
        if kept is None:
            kept = self._own.connection = _connect(self._url, self._timeout)
        return kept

    def _drop(self, connection: http.client.HTTPConnection, sock: socket.socket | None) -> None:
        with self._lock:
            self._sockets.discard(sock)
        connection.close()
        self._own.connection = None

    def _register(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
        if self.closed.is_set():  # closed while this was being opened
            raise ConnectionAbortedError("the client was closed")


def _was_closed(sock: socket.socket) -> bool:
    """Whether the server closed a kept connection between two requests. An open one that is idle has nothing to read."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _connect(url: SplitResult, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection that is not yet open: direct, or through the proxy that the environment names."""
    host, secure = url.hostname or "", url.scheme == "https"
    port = url.port or (443 if secure else 80)
    context = ssl.create_default_context() if secure else None
    proxies = urllib.request.getproxies()
    named = proxies.get(url.scheme)
    if not named or host in _LOOPBACK or urllib.request.proxy_bypass(host):
        if context is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=context), ""
        return http.client.HTTPConnection(host, port, timeout=timeout), ""
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    where = (proxy.hostname or "", proxy.port or 80)
    credentials = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}".encode()
    login = {"Proxy-Authorization": f"Basic {b64encode(credentials).decode()}"} if proxy.username else {}
    if context is not None:
        tunnel = http.client.HTTPSConnection(*where, timeout=timeout, context=context)
        tunnel.set_tunnel(host, port, login)
        return tunnel, ""
    return http.client.HTTPConnection(*where, timeout=timeout), f"http://{url.netloc}"


def _read(response: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> str:
    """The whole body, read before the deadline."""
    parts: list[bytes] = []
    size = 0
    while not response.isclosed():
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        part = response.read1(1 << 16)
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise http.client.HTTPException(f"a reply of more than {MAX_BODY >> 20} MiB")
    if response.length:  # read1 does not report that the connection closed early
        raise http.client.IncompleteRead(b"", response.length)
    response.read()  # nothing is left to read; this call makes the connection free for the next request
    return b"".join(parts).decode("utf-8", "replace")


def _transport_error(error: Exception, timeout: float) -> TransportError:
    if isinstance(error, TimeoutError):
        return TransportError(f"no answer within {timeout:g} s")
    if isinstance(error, ssl.SSLCertVerificationError):
        return TransportError(f"its certificate cannot be trusted: {error.verify_message}", refused=True)
    if isinstance(error, http.client.IncompleteRead):
        return TransportError("the connection closed in the middle of the answer")
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return TransportError("the server closed the connection without an answer")
    refused = isinstance(error, ConnectionRefusedError | socket.gaierror)
    return TransportError(first_line(error), refused=refused)
