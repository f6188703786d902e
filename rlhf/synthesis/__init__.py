"""Preference data made by models: answers, pools, rewritten answers, scores, judgements, rephrasings, pairs.

Above `generation`, whose engines it asks, and beside `train`. A data recipe's steps come through `build`; the functions do the same to rows
in memory. Every answer goes to a journal before anything is made of it.
"""

from .functions import Result, evolve, generate, judge, paraphrase, pool, score, select
from .steps import build

__all__ = ["Result", "build", "evolve", "generate", "judge", "paraphrase", "pool", "score", "select"]
