"""What an exception means to the person who ran the command: an exit code and a line that says what to do.

Used by `cli` (what is printed) and `status` (what status.json says), so that both always agree.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass

from rlhf.errors import RlhfError, first_line

LESS_MEMORY = (
    "lower training.per_device_train_batch_size (and raise training.gradient_accumulation_steps), "
    "training.max_tokens_per_batch, data.max_length or sampling.batch_size; "
    "or set training.gradient_checkpointing: true, or add lora: and quantization:"
)
INTERRUPTED = 130
TERMINATED = 143


@dataclass(frozen=True)
class Failure:
    """An exit code, the line for the user, and whether the cause was foreseen (no traceback will be wanted)."""

    exit_code: int
    message: str
    foreseen: bool = True


def explain(error: BaseException) -> Failure:
    """The failure that `error` stands for. Imports nothing heavy: without torch there are no torch errors."""
    if isinstance(error, RlhfError):
        return Failure(error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, "interrupted")
    if isinstance(error, SystemExit):
        return Failure(error.code if isinstance(error.code, int) else 1, "terminated")
    if _is_device_out_of_memory(error):
        return Failure(4, f"out of device memory ({first_line(error)}); {LESS_MEMORY}")
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return Failure(4, f"out of memory; {LESS_MEMORY}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return Failure(4, f"the disk is full{where}; free some space, or set output_dir to another disk")
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        what = error.filename or "the output folder"
        return Failure(4, f"{what}: {error.strerror}; set output_dir to a folder that can be written")
    return Failure(1, f"{type(error).__name__}: {first_line(error)}", foreseen=False)


def is_main_process() -> bool:
    """Whether this process speaks for the run: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _is_device_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    kind = getattr(torch, "OutOfMemoryError", None) or getattr(getattr(torch, "cuda", None), "OutOfMemoryError", None)
    return isinstance(kind, type) and isinstance(error, kind)
