"""`rlhf doctor`: what this machine can do, what it lacks, and what to do about it.

Looks, and changes nothing. Reads versions from package metadata, so that a broken torch is reported and not run into.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf import embedded
from rlhf.errors import SetupError, first_line
from rlhf.runs import cache

if TYPE_CHECKING:
    from rich.console import Console

PYTHON = (3, 11)
REQUIRED = {"torch": (2, 11), "transformers": (5, 17), "accelerate": (1, 15), "peft": (0, 21)}
OPTIONAL = {
    "bitsandbytes": "4-bit models, 8-bit optimizers",
    "datasets": "reading hub datasets",
    "trl": "comparisons with it",
    "vllm": "fast sampling on GPUs",
}
GIB = 2**30
ROOMY = 5 * GIB  # the embedded model, its training checkpoints and a little more


@dataclass
class Examination:
    """Facts to show, and the problems among them, each with what to do."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def doctor(console: Console) -> None:
    """Print the facts. Raises SetupError with what must be mended before anything can train."""
    found = examine()
    width = max(len(name) for name, _ in found.facts)
    for name, value in found.facts:
        console.print(f"{name:<{width}}  {value}", markup=False, highlight=False, soft_wrap=True)
    if found.problems:
        raise SetupError("\n       ".join(found.problems))
    console.print("all that rlhf needs is here", markup=False, highlight=False)


def examine() -> Examination:
    """Look at Python, the packages, the processor, memory, GPUs and the cache."""
    found = Examination()
    _python(found)
    good = [_package(name, found) for name in REQUIRED]
    for name, purpose in OPTIONAL.items():
        found.facts.append((name, _version(name) or f"not installed (only for {purpose})"))
    torch = _torch(found) if good[0] else None
    _processor(found, torch)
    _gpus(found, torch)
    _cache(found)
    return found


def _python(found: Examination) -> None:
    found.facts.append(("python", f"{platform.python_version()} at {sys.executable}"))
    if sys.version_info[:2] < PYTHON:
        found.problems.append(f"python {platform.python_version()} is too old: rlhf needs {_dotted(PYTHON)} or newer")


def _package(name: str, found: Examination) -> bool:
    """Note a required package; whether it is there and new enough."""
    version, needed = _version(name), REQUIRED[name]
    found.facts.append((name, version or "missing"))
    if version is not None and _numbers(version) >= needed:
        return True
    wanted = f"{name}>={_dotted(needed)}"
    state = f"{name} {version} is too old" if version else f"{name} is missing"
    found.problems.append(f"{state}; run: pip install '{wanted}'")
    return False


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _torch(found: Examination) -> Any:
    try:
        return importlib.import_module("torch")
    except Exception as error:  # a broken installation fails in many ways, OSError and RuntimeError among them
        found.problems.append(f"torch is installed but cannot be imported ({first_line(error)}); install it again")
        return None


def _processor(found: Examination, torch: Any) -> None:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    words = f"{count} cores"
    if torch is not None:
        from rlhf.models.precision import has_bf16

        bf16 = "in hardware" if has_bf16("cpu") else "emulated (slow: write model.dtype and training.bf16 auto)"
        words += f", {torch.backends.cpu.get_cpu_capability()}, bfloat16 {bf16}"
    found.facts.append(("cpu", words))
    found.facts.append(("memory", f"{_memory() / GIB:.1f} GiB"))


def _memory() -> int:
    """Bytes that this process may use: the machine's, or its container's where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return physical


def _gpus(found: Examination, torch: Any) -> None:
    if torch is None:
        return
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        found.facts.append(("gpu", f"none seen (torch is {build})"))
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if device.major >= 8 else "no bfloat16: keep training.bf16: false"
        found.facts.append((f"gpu {index}", f"{device.name}, {device.total_memory / GIB:.0f} GiB, {bf16}"))


def _cache(found: Examination) -> None:
    root = cache.root()
    there = next((folder for folder in (root, *root.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    found.facts.append(("cache", f"{root}, {free / GIB:.1f} GiB free"))
    if not os.access(there, os.W_OK):
        found.problems.append(f"the cache {root} cannot be written; set RLHF_CACHE to a folder that can")
    if free < ROOMY:
        found.facts.append(("", f"less than {ROOMY / GIB:.0f} GiB free: set RLHF_CACHE to a folder with more room"))
    for name in embedded.NAMES:
        made = (root / name.removeprefix(embedded.PREFIX) / cache.MANIFEST).is_file()
        state = "in the cache" if made else "not in the cache yet (made on first use)"
        found.facts.append((name, state + (f"; {embedded.OPT_IN[name]}" if name in embedded.OPT_IN else "")))
