"""Makes the numbers of report.json, and the rows of samples.jsonl, from samples, scores and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.evaluate import measures
from rlhf.evaluate.compare import Verdicts
from rlhf.evaluate.preferences import Pairs
from rlhf.evaluate.sampling import Answers

Scores = Mapping[str, Sequence[NDArray[np.float64]]]  # by scorer: [P, n] for each model, the reference first


def summarise(
    everyone: Sequence[Answers], scores: Scores, verdicts: Mapping[str, Sequence[Verdicts | None]], pairs: Pairs | None
) -> list[dict[str, Any]]:
    """One entry for each model, in the recipe's order. Comparisons with the reference are None for the reference itself."""
    return [_model(i, everyone[i], scores, verdicts, pairs) for i in range(len(everyone))]


def _model(
    i: int, answers: Answers, scores: Scores, verdicts: Mapping[str, Sequence[Verdicts | None]], pairs: Pairs | None
) -> dict[str, Any]:
    ids = [sample.completion.ids for sample in answers.flat]
    implicit = answers.preferred
    return {
        "name": answers.model.name,
        "name_or_path": answers.model.name_or_path,
        "run": answers.model.run,
        "reference": i == 0,
        "scores": {name: _score(own[i], own[0] if i else None) for name, own in scores.items()},
        "pair_judges": {name: _verdict(v, answers) for name, own in verdicts.items() if (v := own[i]) is not None},
        "kl": None if answers.kl is None else measures.mean(answers.kl).as_dict(),
        "length": measures.lengths(answers.per_sample(lambda s: len(s.completion.ids))),
        "eos_rate": measures.share(answers.per_sample(lambda s: s.completion.ended)).as_dict(),
        "distinct_1": measures.distinct(ids, 1),
        "distinct_2": measures.distinct(ids, 2),
        "repetition": measures.repetition(ids),
        "implicit_accuracy": (
            measures.preference_accuracy(implicit[:, 0], implicit[:, 1], pairs.prompts).as_dict()
            if implicit is not None and pairs is not None
            else None
        ),
        "implicit_pairs": 0 if implicit is None else len(implicit),
        "seconds": round(answers.seconds, 3),
        "tokens_per_second": answers.tokens / max(answers.seconds, 1e-9),
    }


def _score(own: NDArray[np.float64], reference: NDArray[np.float64] | None) -> dict[str, Any]:
    mean = measures.mean(own).as_dict()
    if reference is None:
        return {"mean": mean, "difference": None, "win_rate": None, "ties": None}
    outcomes = measures.outcomes(own, reference)
    return {
        "mean": mean,
        "difference": measures.mean(own - reference).as_dict(),
        "win_rate": measures.share(outcomes).as_dict(),
        "ties": float((outcomes == 0.5).mean()),
    }


def _verdict(verdicts: Verdicts, answers: Answers) -> dict[str, Any]:
    shape = (len(answers.samples), -1)
    return {
        "win_rate": measures.share(verdicts.wins.reshape(shape)).as_dict(),
        "ties": float((verdicts.wins == 0.5).mean()),
        "flip_rate": measures.share(verdicts.flipped.reshape(shape)).as_dict(),
        "first_place_wins": float(verdicts.first.mean()),
    }


def sample_rows(everyone: Sequence[Answers], scores: Scores) -> list[dict[str, Any]]:
    """One row for each prompt and sample: `{prompt, sample, models: {name: {completion, tokens, ended, kl, scores}}}`."""
    reference = everyone[0]
    return [
        {
            "prompt": reference.samples[p][j].prompt,
            "sample": j,
            "models": {
                answers.model.name: {
                    "completion": answers.samples[p][j].completion.text,
                    "tokens": len(answers.samples[p][j].completion.ids),
                    "ended": answers.samples[p][j].completion.ended,
                    "kl": None if answers.kl is None else float(answers.kl[p, j]),
                    "scores": {name: float(own[i][p, j]) for name, own in scores.items()},
                }
                for i, answers in enumerate(everyone)
            },
        }
        for p in range(len(reference.samples))
        for j in range(len(reference.samples[p]))
    ]
