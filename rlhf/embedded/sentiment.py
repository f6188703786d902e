"""Two sentiment judges, trained on disjoint reviews: one scores the samples, the other measures what came of it.

    preference_judge   ranks the completions that preference pairs and rewards are made from
    evaluation_judge   is only ever asked about finished policies

Use them as recipe callables, `rlhf.embedded.sentiment:preference_judge`. They read the completion alone: the prompt's
words are the same for every completion of it, so they would add noise and no preference.

Each is a logistic regression over the presence (not the count) of words and word pairs, weighted by their log-count
ratios (Wang and Manning 2012, "NBSVM"), and calibrated on reviews of its own that it was not fitted on. Against reward
hacking: repeating a word adds nothing, a row is scaled by the root of its number of features, texts shorter than sixteen
features count as sixteen, and scores are clipped. Weights are safetensors and JSON, never a pickle.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.embedded import reviews
from rlhf.embedded.reviews import Snippet
from rlhf.errors import RecipeError, SetupError
from rlhf.runs import cache as disk

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

VERSION = f"1-{reviews.VERSION}"
JUDGES: tuple[reviews.Part, ...] = ("preference", "evaluation")
LIMIT = 6.0
SPLITS = {"test": 0.10, "calibration": 0.20, "train": 1.0}  # upper edges, by review
FEATURES = 2**20
SHORTEST = 16
SMOOTHING = 0.3
REGULARISATION = 10.0


def preference_judge(prompts: list[str], completions: list[str]) -> list[float]:
    """Log-odds that each completion is positive, in [-6, 6], from the judge that scores samples."""
    return _score("preference", prompts, completions)


def evaluation_judge(prompts: list[str], completions: list[str]) -> list[float]:
    """Log-odds that each completion is positive, in [-6, 6], from the judge that measures results."""
    return _score("evaluation", prompts, completions)


def judge_card(name: str) -> dict[str, Any]:
    """What is known about a judge, for the report; `name` as preference, preference_judge or the callable's full path.

    Measured on snippets of held-out reviews: accuracy; accuracy_closing, on the last snippet of each review, where
    verdicts stand; accuracy_reviews, a review by the sum of its snippets; expected_calibration_error; train_rows,
    calibration_rows, test_rows; and agreement: how often both judges say the same about the held-out snippets of either.
    A snippet carries its review's label, also where it only tells the plot: no judge can reach 1 on snippets.
    """
    short = name.rpartition(":")[2].removesuffix("_judge")
    if short not in JUDGES:
        raise RecipeError(f"{name}: no such judge; there are {' and '.join(f'{judge}_judge' for judge in JUDGES)}")
    card: dict[str, Any] = json.loads((_folder() / f"{short}.json").read_text(encoding="utf-8"))
    return card


def _score(judge: str, prompts: list[str], completions: list[str]) -> list[float]:
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions: one of each is needed")
    if not completions:
        return []
    weights, bias = _weights(str(_folder()), judge)
    return [float(score) for score in (_features(completions) @ weights + bias).clip(-LIMIT, LIMIT)]


@cache
def _weights(folder: str, judge: str) -> tuple[np.ndarray, float]:
    from safetensors.numpy import load_file

    tensors = load_file(Path(folder) / f"{judge}.safetensors")
    return tensors["weights"], float(tensors["bias"][0])


def _folder() -> Path:
    return disk.folder("film-judges", VERSION, _train_both)


@cache
def _vectorizer() -> Any:
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as error:
        raise SetupError("the sentiment judges need scikit-learn; run: pip install scikit-learn") from error
    return HashingVectorizer(
        n_features=FEATURES,
        ngram_range=(1, 2),
        token_pattern=r"(?u)\b\w[\w']*|[!?]",
        binary=True,
        norm=None,
        alternate_sign=False,
    )


def _features(texts: list[str]) -> csr_matrix:
    """Presence of hashed words and word pairs, each row scaled by the root of its feature count (at least 16)."""
    import numpy as np
    from scipy import sparse

    present = _vectorizer().transform(texts).astype(np.float32)
    counts = np.maximum(np.diff(present.indptr), SHORTEST)
    return sparse.diags((1 / np.sqrt(counts)).astype(np.float32)) @ present


def _train_both(folder: Path) -> None:
    """Fit both judges, write weights and cards. About ten seconds on two cores."""
    import numpy as np
    from safetensors.numpy import save_file

    parts = _snippets()
    fitted = {judge: _fit(parts[judge]) for judge in JUDGES}
    unseen = _features([snippet.text for judge in JUDGES for snippet in parts[judge]["test"]])
    verdicts = [unseen @ weights + bias > 0 for weights, bias in fitted.values()]
    agreement = float(np.mean(verdicts[0] == verdicts[1]))
    for judge, (weights, bias) in fitted.items():
        save_file({"weights": weights, "bias": np.array([bias], np.float32)}, folder / f"{judge}.safetensors")
        card = {"judge": f"{judge}_judge", **_card(parts[judge], weights, bias), "agreement": round(agreement, 4)}
        (folder / f"{judge}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _snippets() -> dict[str, dict[str, list[Snippet]]]:
    """judge -> split -> snippets; all snippets of a review stand in one split."""
    parts: dict[str, dict[str, list[Snippet]]] = {judge: {split: [] for split in SPLITS} for judge in JUDGES}
    for review in reviews.reviews():
        if review.part in parts:
            within = review.place * 1e4 % 1  # finer digits than those that chose the part
            split = next(split for split, edge in SPLITS.items() if within < edge)
            parts[review.part][split].extend(reviews.snippets(review))
    return parts


def _fit(splits: dict[str, list[Snippet]]) -> tuple[np.ndarray, float]:
    """Logistic regression on rows scaled by log-count ratios, then Platt scaling; all folded into (weights, bias)."""
    import numpy as np
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    rows, labels = _features([s.text for s in splits["train"]]), np.array([s.label for s in splits["train"]])
    positive, negative = (np.asarray(rows[labels == label].sum(0)).ravel() + SMOOTHING for label in (1, 0))
    ratio = np.log(positive / positive.sum()) - np.log(negative / negative.sum())
    model = LogisticRegression(C=REGULARISATION, solver="liblinear", tol=1e-2, random_state=0)
    model.fit(rows @ sparse.diags(ratio), labels)
    weights, bias = model.coef_.ravel() * ratio, float(model.intercept_[0])

    held_out = splits["calibration"]
    raw = _features([s.text for s in held_out]) @ weights + bias
    platt = LogisticRegression(C=1e6).fit(raw[:, None], [s.label for s in held_out])
    slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    return (weights * slope).astype(np.float32), bias * slope + offset


def _card(splits: dict[str, list[Snippet]], weights: np.ndarray, bias: float) -> dict[str, Any]:
    import numpy as np

    test = splits["test"]
    scores = (_features([s.text for s in test]) @ weights + bias).clip(-LIMIT, LIMIT)
    labels, closing = np.array([s.label for s in test]), np.array([s.closing for s in test])
    right, probability = (scores > 0) == labels, 1 / (1 + np.exp(-scores))
    bins = np.minimum((probability * 10).astype(int), 9)
    review = np.cumsum(np.concatenate([[False], closing[:-1]]))  # each closing snippet ends a review
    verdicts = np.bincount(review, scores) > 0
    gaps = [abs(float((probability - labels)[bins == b].sum())) for b in range(10)]
    return {
        "accuracy": round(float(right.mean()), 4),
        "accuracy_closing": round(float(right[closing].mean()), 4),
        "accuracy_reviews": round(float((verdicts == labels[closing]).mean()), 4),
        "expected_calibration_error": round(sum(gaps) / len(test), 4),
        **{f"{split}_rows": len(splits[split]) for split in ("train", "calibration", "test")},
    }
