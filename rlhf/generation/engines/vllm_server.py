"""vLLM's own server as a child of this process: started, waited for, asked as any other server is, and surely stopped.

For `engine: vllm` with `serve: true`. Against running vLLM in process it needs vLLM only in the Python that
$RLHF_VLLM_PYTHON names (this one by default), whose pins need not be ours. The child dies with us, even when we are killed.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from rlhf.errors import DataError, SetupError
from rlhf.generation.engines.encode import Encoder, base_and_adapter, located, named
from rlhf.generation.engines.openai_server import OpenaiServer
from rlhf.generation.engines.sampling import refuse_unsupported
from rlhf.generation.engines.vllm_engine import APART, INSTALL, check_rank, engine_options
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.synthesis import OpenaiSection, TextSampling, VllmSection

PYTHON = "RLHF_VLLM_PYTHON"
START_SECONDS = 1800.0  # a large model is read from a slow disk, and compiled
STOP_SECONDS = 20.0
KILL_SECONDS = 5.0
CONCURRENCY = 256  # requests at once: what vLLM runs side by side by default
TIMEOUT = 3600.0  # seconds for one request: those queued behind others wait long, and a dead server hangs up
LOG_LINES = 20

# Told by the kernel when its parent dies (prctl PR_SET_PDEATHSIG), or by its absence when it is dead already.
_LAUNCHER = """
import ctypes, os, signal, sys
if hasattr(ctypes.CDLL(None), "prctl"):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that wanted this server is gone")
os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[2:]])
"""


class VllmServer:
    """A `TextEngine`: a server of vLLM's, and its client."""

    def __init__(self, section: VllmSection, *, name: str = "vllm") -> None:
        """Starts the server and waits until it answers. Raises SetupError with the end of its log when it does not."""
        self._name = name
        python = os.environ.get(PYTHON) or sys.executable
        if python == sys.executable and importlib.util.find_spec("vllm") is None:
            raise SetupError(
                f"engine {name}: vLLM is not installed; {INSTALL}, or set {PYTHON} to a Python that has it, {APART}"
            )
        path, adapter = located(name, section.model, section.adapter)
        self._encoder = named(name, lambda: Encoder(path, section.chat))
        base, adapter = base_and_adapter(path, adapter)
        named(name, lambda: check_rank(adapter, section.max_lora_rank))
        port = section.port or _free_port()
        self._log = Path(tempfile.mkdtemp(prefix="rlhf-vllm-")) / "server.log"
        self._process = _start(python, _arguments(section, base, adapter, port), self._log)
        self._stop = weakref.finalize(self, _stop, self._process)  # at exit too
        try:
            self._wait(port)
        except BaseException:
            self._stop()
            raise
        asked = OpenaiSection(
            engine="openai",
            base_url=f"http://127.0.0.1:{port}/v1",
            model="model" if adapter is None else "adapter",
            concurrency=CONCURRENCY,
            timeout=TIMEOUT,
        )
        self._client = OpenaiServer(asked, name=name, encode=self._ids)

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        """As `TextEngine.answers`, with guided decoding for `choices`. Raises SetupError when the server has died."""
        refuse_unsupported("vllm", sampling, name=self._name)
        try:
            yield from self._client.answers(requests, sampling, seed=seed, choices=choices)
        except SetupError as error:
            if (code := self._process.poll()) is None:
                raise
            raise SetupError(f"engine {self._name}: vLLM's server ended with {code}:\n{self._last_lines()}") from error

    def close(self) -> None:
        """Stop the server and all that it started."""
        self._client.close()
        self._stop()

    @property
    def pid(self) -> int:
        """The server's process, which leads a group of its own."""
        return self._process.pid

    def _ids(self, prompt: object) -> list[int]:
        [ids] = self._encoder.ids([Request("", prompt)])  # type: ignore[arg-type]
        if isinstance(ids, str):
            raise DataError("template", ids, field="prompt")
        return ids

    def _wait(self, port: int) -> None:
        """Until the server says that it is well."""
        until = time.monotonic() + START_SECONDS
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < until:
            code = self._process.poll()
            if code is not None:
                raise SetupError(
                    f"engine {self._name}: vLLM's server ended with {code} before it was ready; the end of {self._log}:\n"
                    f"{self._last_lines()}"
                )
            with suppress(OSError), direct.open(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
            time.sleep(0.2)
        raise SetupError(
            f"engine {self._name}: vLLM's server was not ready after {START_SECONDS:g} s; the end of {self._log}:\n"
            f"{self._last_lines()}"
        )

    def _last_lines(self) -> str:
        with suppress(OSError):
            return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
        return "(no log)"


def _arguments(section: VllmSection, path: str, adapter: str | None, port: int) -> list[str]:
    arguments = ["--model", path, "--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port)]
    for key, value in engine_options(section, adapter).items():
        if isinstance(value, bool):
            arguments.append(f"--{key}" if value else f"--no-{key}")
        else:
            arguments += [f"--{key}", str(value)]
    return arguments if adapter is None else [*arguments, "--lora-modules", f"adapter={adapter}"]


def _start(python: str, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The server in a session of its own: Ctrl-C is ours to handle, and its whole group can be stopped at once."""
    environment = {"VLLM_NO_USAGE_STATS": "1", **os.environ}
    with log.open("wb") as out:
        return subprocess.Popen(
            [python, "-c", _LAUNCHER, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, then make it: the server's workers may outlive the server."""
    for order in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, order)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    until = time.monotonic() + KILL_SECONDS  # the last of the group were only told to die
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
