"""A command in two processes that know each other (gloo, on the CPU)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def in_two(*words: str) -> str:
    """`python -m WORDS` twice, as rank 0 and 1; returns what they printed, and fails where they do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
               f"--master-port={port}", "-m", *words]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
