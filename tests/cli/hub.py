"""A hub on this machine for `rlhf push`: repositories, LFS and commits over http, with faults on order."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests import http_server

ALWAYS = 10_000
SILENT = -1


@dataclass
class Fault:
    """The next `times` requests whose "METHOD path" holds `match` get `status`; 0: the connection dies in their middle;
    SILENT: no answer, until the client hangs up.
    """

    match: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    after_the_deed: bool = False  # the answer alone is lost


class Hub(http_server.Server):
    """Repositories by name, the blobs that were sent, and every request."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, list[str]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.sent: list[str] = []  # the blobs that arrived whole, each time
        self.requests: list[str] = []
        self.faults: list[Fault] = []

    def make(self, name: str, *, private: bool = False, files: dict[str, bytes] | None = None) -> None:
        self.files[name], self.private[name] = files or {}, private
        self.commits[name] = [hashlib.sha1(name.encode()).hexdigest()]

    def next_fault(self, request: str) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.match in request and fault.times:
                    fault.times -= 1
                    return fault
        return None


class _Handler(http_server.Handler):
    server: Hub

    def do_POST(self) -> None:
        fault = self.server.next_fault(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length", 0))
        if fault and not fault.status and not fault.after_the_deed:
            self.rfile.read(length // 2)
            return self._die()
        body = self.rfile.read(length)
        if fault and fault.status == SILENT:
            self.rfile.read(1)
            return self._die()
        if fault and not fault.after_the_deed:
            return self.reply(fault.status, {"error": "a fault on order"}, fault.headers)
        status, answer = self._answer(body)
        if fault:
            return self._die()
        return self.reply(status, answer, {"X-Error-Code": "RepoNotFound"} if status == 404 else None)

    do_GET = do_PUT = do_POST

    def _die(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, body: bytes) -> tuple[int, Any]:
        hub, path = self.server, self.path.split("?")[0]
        if path.startswith("/lfs/"):
            return self._blob(path.removeprefix("/lfs/"), body)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("hf_writer", "hf_reader"):
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/validate-yaml":
            bad = json.loads(body)["content"].startswith("---\n: bad")
            return (400, {"errors": [{"message": "no YAML"}]}) if bad else (200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(token, **json.loads(body))
        name = path.removeprefix("/api/models/").removeprefix("/").split(".git/")[0]
        name, action = "/".join(name.split("/")[:2]), name.split("/")[2:]
        if name not in hub.files:
            return 404, {"error": "Repository not found"}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"objects": [self._order(blob) for blob in json.loads(body)["objects"]]}
        if action and action[0] == "preupload":
            return 200, {"files": [self._mode(hub.files[name], file["path"]) for file in json.loads(body)["files"]]}
        if action and action[0] == "commit":
            return (403, {"error": "no"}) if token == "hf_reader" else self._commit(name, body)
        siblings = [{"rfilename": file} for file in hub.files[name]]
        return 200, {"id": name, "sha": hub.commits[name][-1], "private": hub.private[name], "siblings": siblings}

    def _create(
        self, token: str, name: str, organization: str, visibility: str = "public", **_: Any
    ) -> tuple[int, Any]:
        full = f"{organization}/{name}"
        if organization != "me":
            return (403, {"error": "no"}) if organization == "you" else (404, {"error": "no such owner"})
        if token == "hf_reader":
            return 403, {"error": "no"}
        if full in self.server.files:
            return 409, {"error": "exists", "url": f"{self.server.address}/{full}"}
        self.server.make(full, private=visibility == "private")
        return 200, {"url": f"{self.server.address}/{full}"}

    def _order(self, blob: dict[str, Any]) -> dict[str, Any]:
        """What the client shall do with a blob: nothing, where it is here already."""
        if blob["oid"] in self.server.blobs:
            return blob
        urls = {"upload": f"{self.server.address}/lfs/{blob['oid']}", "verify": f"{self.server.address}/lfs/verify"}
        return blob | {"actions": {what: {"href": url} for what, url in urls.items()}}

    def _blob(self, oid: str, body: bytes) -> tuple[int, Any]:
        if oid == "verify":
            wanted = json.loads(body)
            return (200 if len(self.server.blobs[wanted["oid"]]) == wanted["size"] else 404), {}
        assert hashlib.sha256(body).hexdigest() == oid
        with self.server.lock:
            self.server.blobs[oid] = body
            self.server.sent.append(oid)
        return 200, {}

    def _mode(self, files: dict[str, bytes], path: str) -> dict[str, Any]:
        is_large = path.endswith((".safetensors", "tokenizer.json"))
        content, oid = files.get(path), None
        if content is not None:
            of_git = hashlib.sha1(b"blob %d\0" % len(content) + content)
            oid = hashlib.sha256(content).hexdigest() if is_large else of_git.hexdigest()
        return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def _commit(self, name: str, body: bytes) -> tuple[int, Any]:
        hub = self.server
        header, *changes = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit", hub.commits[name][-1]) != hub.commits[name][-1]:
            return 412, {"error": "A commit has happened since"}
        files = dict(hub.files[name])
        for change in changes:
            value, is_large = change["value"], change["key"] == "lfsFile"
            files[value["path"]] = hub.blobs[value["oid"]] if is_large else base64.b64decode(value["content"])
        hub.files[name] = files
        hub.commits[name].append(hashlib.sha1(hub.commits[name][-1].encode()).hexdigest())
        made = hub.commits[name][-1]
        return 200, {"commitUrl": f"{hub.address}/{name}/commit/{made}", "commitOid": made}


@contextmanager
def hub() -> Iterator[Hub]:
    """The hub, while it runs."""
    server = Hub()
    with http_server.running(server):
        yield server
