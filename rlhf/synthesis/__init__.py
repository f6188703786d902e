"""Preference data made by models: answers, pools, rewritten answers, scores, judgements, rephrasings, pairs.

Above `generation`, whose engines it asks, and beside `train`. A data recipe's steps come through `build`; the functions do the same to rows
in memory. Every answer goes to a journal before anything is made of it. What is here is imported when it is used: `rlhf check` looks at
`checks`, and loads no pyarrow for that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf.synthesis.functions import Result, evolve, generate, judge, paraphrase, pool, score, select
    from rlhf.synthesis.steps import build

__all__ = ["Result", "build", "evolve", "generate", "judge", "paraphrase", "pool", "score", "select"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".steps" if name == "build" else ".functions", __name__), name)
