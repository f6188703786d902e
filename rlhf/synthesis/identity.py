"""The journal's header: what a step's answers depend on, apart from the rows.

If the headers of two runs are equal, the same requests would get the same answers, so one run may use the other's. Settings that
only say how fast, how often or with which key an engine is asked are not part of it, nor what is made of the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.recipe.steps import ModelStep
from rlhf.recipe.synthesis import EngineSection, PoolStep
from rlhf.runs.identity import of_callable, of_file, of_model

NOT_IN_HEADER = {
    # how an engine is asked
    "concurrency", "requests_per_minute", "timeout", "max_retries", "api_key_env", "tensor_parallel_size",
    "gpu_memory_utilization", "enforce_eager", "port", "price", "batch_size",
    # what is made of its answers
    "keep_original", "strip", "cut_off", "keep", "into", "retries", "name",
}  # fmt: skip


def header_of(name: str, step: ModelStep, engines: Mapping[str, EngineSection], seed: int) -> dict[str, Any]:
    """The step with its settings, its engines, and the seed. Prompt files, model folders and callables count by their content."""
    one: str | None = getattr(step, "engine", None)
    asked = {m.engine for m in step.members} if isinstance(step, PoolStep) else {one} if one else set()
    return {
        "step": name,
        "seed": seed,
        "settings": _plain(step.model_dump()),
        "engines": {e: _plain(engines[e].model_dump()) for e in sorted(asked & set(engines))},
    }


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _plain(v, k) for k, v in value.items() if k not in NOT_IN_HEADER}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str) and key in ("prompt", "model", "name_or_path", "adapter"):
        return _with_content(value)
    if isinstance(value, str) and key == "callable":
        return {"callable": value, "source": of_callable(value)}
    return value


def _with_content(value: str) -> Any:
    """A path together with a hash of its content now; any other text as it is."""
    try:
        path = Path(value)
        if path.is_file():
            return {"file": value, "sha256": of_file(path)}
        return {"folder": value, "content": of_model(value)} if path.is_dir() else value
    except OSError:  # too long for a path: it is a text
        return value
