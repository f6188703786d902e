"""`rlhf push` against a hub on this machine that fails in every way that hubs do.

The library reads its environment once, so each push is a process of its own. It notes its waits, and does not wait. Xet is off:
its storage speaks a protocol of its own, and with it the library sends blobs through another package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf.models.lineage import Base, Lineage
from rlhf.runs.manifest import atomic_folder
from tests.cli.hub import ALWAYS, SILENT, Fault, Hub, hub
from tests.cli.support import ROOT

SCRIPT = """
import atexit, json, os, sys, time
import rlhf.cli.push
rlhf.cli.push.PATIENCE = float(os.environ.get("PATIENCE", 120))
waits = []
time.sleep = waits.append
atexit.register(lambda: print(json.dumps(waits)))
from rlhf.cli import main
main()
"""
HF_NAME = "embedded:smollm2-135m-instruct"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str
    waits: list[float]


def push(server: Hub | None, *arguments: str, **environment: str) -> Done:
    settings = {
        "HF_HOME": str(Path.cwd() / "home"),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_ENDPOINT": server.address if server else "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "push", *arguments],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    out, _, waits = done.stdout.rstrip("\n").rpartition("\n")
    return Done(done.returncode, out, done.stderr, json.loads(waits))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sealed `run/final` of adapters: two large files and five small ones."""
    monkeypatch.chdir(tmp_path)
    with atomic_folder(Path("run/final")) as folder:
        (folder / "adapter_model.safetensors").write_bytes(os.urandom(300_000))
        (folder / "tokenizer.json").write_bytes(os.urandom(200_000))
        for name in ("adapter_config.json", "tokenizer_config.json", "probe.json"):
            (folder / name).write_text(f'{{"{name}": 1}}\n')
        (folder / "README.md").write_text("---\ntags: [rlhf]\n---\n# run\n")
        base = Base(HF_NAME, "", "float32", None)
        Lineage("dpo", base, (), {"kind": "plain", "prompt": "{prompt}"}, "", 1, 1, "0.1.0").write(folder)
    return Path("run/final")


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as made:
        yield made


def test_what_passes_is_tried_again_and_one_commit_comes_of_it(final: Path, server: Hub) -> None:
    server.faults = [
        Fault("POST /api/repos/create", 500, times=2),
        Fault("POST /api/validate-yaml", 502),
        Fault("PUT /lfs/", 503),
        Fault("/commit/main", 429, {"Retry-After": "77"}),
        Fault("/commit/main", 0, after_the_deed=True),
    ]
    before = contents(final)
    done = push(server, "run", "me/it")
    assert done.code == 0, done.err
    size = sum(map(len, before.values())) / 1e6
    assert done.out.splitlines()[0] == f"run/final: 8 files, {size:.1f} MB, to me/it at {server.address}"
    assert "done: me/it holds these files already" in done.out, "the commit whose answer was lost"
    assert server.files["me/it"] == before == contents(final)
    assert len(server.commits["me/it"]) == 2 and len(server.sent) == len(set(server.sent)) == 2
    assert 1 <= done.waits[0] <= 2 <= done.waits[1] <= 4, "the waits grow"
    assert 77.0 in done.waits
    again = push(server, "run", "me/it")
    assert (again.code, again.waits, len(server.commits["me/it"]), len(server.sent)) == (0, [], 2, 2)
    assert again.out.endswith(
        f"holds these files already ({server.address}/me/it/commit/{server.commits['me/it'][-1]})"
    )


def test_an_upload_that_breaks_leaves_the_old_commit_and_goes_on_later(final: Path, server: Hub) -> None:
    server.make("me/it", files={"adapter_model.safetensors": b"old", "README.md": b"old"})
    old, before = dict(server.files["me/it"]), contents(final)
    name = "adapter_model.safetensors"
    oid = json.loads(before["manifest.json"])["files"][name]["sha256"]
    server.faults = [Fault(f"PUT /lfs/{oid}", 0, times=ALWAYS)]
    broken = push(server, "run", "me/it")
    assert broken.code == 4 and "cannot be reached" in broken.err, broken.err
    assert "what arrived is not sent again" in broken.err.splitlines()[-1]
    assert server.files["me/it"] == old and len(server.commits["me/it"]) == 1 and contents(final) == before
    assert len(server.sent) == 1 and oid not in server.sent, "the other blob is there"
    server.faults = []
    done = push(server, "run", "me/it")
    assert done.code == 0, done.err
    assert server.files["me/it"] == before and len(server.commits["me/it"]) == 2
    assert len(server.sent) == len(set(server.sent)) == 2, "no blob was sent twice"
    assert done.out.splitlines()[-1] == f"done: {server.address}/me/it/commit/{server.commits['me/it'][-1]} (public)"


def test_a_hub_that_says_nothing_is_not_waited_for_for_ever(final: Path, server: Hub) -> None:
    server.faults = [Fault("/commit/main", SILENT)]
    done = push(server, "run", "me/it", PATIENCE="2")
    assert (done.code, len(done.waits), len(server.commits["me/it"])) == (0, 1, 2), done.err
    assert "timed out; again in" in done.err


@pytest.mark.parametrize(
    ("to", "environment", "faults", "code", "message"),
    [
        ("me/it", {"HF_TOKEN": ""}, [], 4, "error: no token for {hub}: hf auth login, or set HF_TOKEN to one that may write"),
        ("me/it", {"HF_TOKEN": "hf_bad"}, [], 4, "error: {hub} refuses the token (401): hf auth login again, or set HF_TOKEN"),
        ("me/it", {"HF_HUB_OFFLINE": "1"}, [], 4, "error: HF_HUB_OFFLINE=1 forbids the network: unset it"),
        ("me/it", {"HF_TOKEN": "hf_reader"}, [], 4, "error: me/it: the token may not write there (403)"),
        ("you/it", {}, [], 4, "error: you/it: the token may not write there (403)"),
        ("nobody/it", {}, [], 2, "nobody/it: {hub} knows no such owner or repository (404): check the spelling"),
        ("me/it", {}, [Fault("/commit/", 422)], 1, "error: me/it: the hub refuses the files (422): "),
        ("me/it", {}, [Fault("/commit/", 412)], 1, "error: me/it: somebody changed it meanwhile (412)"),
        ("me/it", {}, [Fault("/commit/", 500, times=ALWAYS)], 4, "error: {hub} answers 500 after 6 tries: run the command"),
        ("me/it", {"HF_ENDPOINT": "http://127.0.0.1:9"}, [], 4, "error: http://127.0.0.1:9 cannot be reached ("),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_said_and_changes_nothing(
    final: Path, server: Hub, to: str, environment: dict[str, str], faults: list[Fault], code: int, message: str
) -> None:
    server.faults, before = faults, contents(final)
    done = push(server, "run", to, **environment)
    assert done.code == code, done.err
    assert done.err.splitlines()[-1].startswith(message.format(hub=server.address)), done.err
    assert not any(server.files.values()) and contents(final) == before
    assert bool(done.waits) == ("500" in message or "reached" in message), "only what may pass is tried again"


def test_a_card_that_the_hub_refuses(final: Path, server: Hub) -> None:
    (final / "README.md").write_text("---\n: bad\n---\n")
    done = push(server, "run", "me/it")
    assert (done.code, server.sent) == (1, []), done.err
    assert "error: me/it: Invalid metadata in README.md." in done.err and "- no YAML" in done.err


def test_a_dry_run_asks_nobody(final: Path) -> None:
    done = push(None, "run", "me/it", "--dry-run", HF_TOKEN="", HF_HUB_OFFLINE="1")
    assert (done.code, done.err) == (0, "")
    assert "8 files, 0.5 MB, to me/it" in done.out and done.out.endswith("dry run: nothing was sent")


def test_private_means_private(final: Path, server: Hub) -> None:
    done = push(server, "run", "me/it", "--private")
    assert done.code == 0 and server.private["me/it"] and done.out.endswith("(private)")
    server.make("me/open")
    done = push(server, "run", "me/open", "--private")
    assert (done.code, server.files["me/open"]) == (2, {})
    assert done.err == "me/open is there already, and public: make it private on the hub, or take another name\n"


def test_the_weights_of_another_model_are_not_mixed_with_these(final: Path, server: Hub) -> None:
    server.make("me/it", files={"model.safetensors": b"whole", ".gitattributes": b"", "old/x.safetensors": b""})
    done = push(server, "run", "me/it")
    assert (done.code, len(server.commits["me/it"]), server.sent) == (2, 1, [])
    assert done.err.startswith(
        "me/it: holds model.safetensors of another model, and together they would load as neither"
    )


@pytest.mark.parametrize(
    ("name", "why"), [("it", "say whose it is, as in me/it"), ("me/it/x", "Repo id"), ("me/i t", "")]
)
def test_a_name_that_is_none(final: Path, name: str, why: str) -> None:
    done = push(None, "run", name, "--dry-run")
    assert done.code == 2 and done.err.startswith(f"{name!r} is no OWNER/NAME: ") and why in done.err
