"""Preference data made by models: answers, pools, rewritten answers, scores, judgements, rephrasings, pairs.

The package asks the engines of `generation`, and stands beside `train`. `build` carries out the steps of a data recipe; the
functions do the same with rows in memory. Every answer is written to a journal before it is used. The names below are imported
only when they are used, because `rlhf check` imports `checks` and must not load pyarrow.
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
