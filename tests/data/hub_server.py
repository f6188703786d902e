"""A server on this machine that speaks as much of the hub's protocol as `datasets` needs to load a data set."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests import http_server

SHA = "a" * 40
CARD = """---
configs:
- config_name: default
  data_files: [{split: train, path: data/train-*}, {split: test, path: data/test-*}]
- config_name: other
  data_files: [{split: train, path: other/*}]
---
"""


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


FILES = {
    "README.md": CARD.encode(),
    "data/train-00000-of-00001.parquet": _parquet(
        [{"prompt": f"train {i}", "completion": "c" if i else ""} for i in range(5000)]
    ),
    "data/test-00000-of-00001.parquet": _parquet([{"prompt": "test", "completion": "하나"}]),
    "other/rows.parquet": _parquet([{"question": "q", "response_j": "a", "response_k": "b", "qid": 7}]),
}


class _Hub(http_server.Handler):
    """The data set `owner/pairs` at one commit; nothing else exists."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/owner/pairs" not in path:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            self.reply(200, _listing(path.partition(f"/tree/{SHA}")[2].strip("/")))
        elif "/resolve/" in path:
            self._file(path.partition("/resolve/")[2].partition("/")[2])
        else:
            about = {"id": "owner/pairs", "sha": SHA, "siblings": [{"rfilename": name} for name in FILES]}
            self.reply(200, about)

    do_HEAD = do_GET

    def _file(self, name: str) -> None:
        if name in FILES:
            self.reply(200, FILES[name], {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha1(FILES[name]).hexdigest()}"'})
        else:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})


def _listing(folder: str) -> list[dict[str, Any]]:
    """The folder's files and folders, one level deep."""
    start = f"{folder}/" if folder else ""
    inside = [name.removeprefix(start) for name in FILES if name.startswith(start)]
    folders = dict.fromkeys(name.partition("/")[0] for name in inside if "/" in name)
    out: list[dict[str, Any]] = [{"type": "directory", "path": start + name, "oid": SHA, "size": 0} for name in folders]
    files = [start + name for name in inside if "/" not in name]
    return out + [
        {"type": "file", "path": n, "size": len(FILES[n]), "oid": hashlib.sha1(FILES[n]).hexdigest()} for n in files
    ]


@contextmanager
def hub() -> Iterator[str]:
    """The server's address, while it runs."""
    server = http_server.Server(_Hub)
    with http_server.running(server):
        yield server.address
