"""Stack Exchange: the paired data set, and the sites' own dumps.

A dump's answers are scored as the paired data set's were (Askell et al. 2021, appendix C.1): round(log2(1 + votes)), one more if the asker accepted the answer, and
-1 for a negative number of votes. Bodies are HTML there, and Markdown here; `readers.dump` brings a question and its answers together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from rlhf.data.formats.fields import Fields, Spec, distinct
from rlhf.data.formats.templates import fill
from rlhf.data.rows import Row
from rlhf.errors import SetupError

TEMPLATE = "Question: {question}\n\nAnswer: "


def score_of(votes: int, accepted: bool) -> int:
    """The answer's score: -1 below no votes, else round(log2(1 + votes)), and one more if accepted."""
    return -1 if votes < 0 else round(math.log2(1 + votes)) + accepted


def _paired(f: Fields) -> Row:
    question = f.text("question")
    prompt = fill(f.template, {"question": question}) if f.template else f"Question: {question}\n\nAnswer: "
    row = {"prompt": prompt, "chosen": f.text("response_j"), "rejected": f.text("response_k")}
    return distinct(f, row, "response_k")


def _dump(f: Fields) -> Row:
    answers = list(f.objects("answers"))
    if len(answers) < 2:
        raise f.error("answers", f"needs two answers at least: {len(answers)}")
    question = _markdown(f, "question", f.text("question"))
    values = {"question": question, "title": f.optional_text("title")}
    completions = [_markdown(f, "answers", a.get("body")) for a in answers]
    accepted = f.data.get("accepted")
    scores = [float(score_of(_votes(f, a), accepted is not None and a.get("id") == accepted)) for a in answers]
    return {"prompt": fill(f.template or TEMPLATE, values), "completions": completions, "scores": scores}


def _votes(f: Fields, answer: Any) -> int:
    if not isinstance(answer.get("score"), int):
        raise f.error("answers", f"has no votes: {answer.get('score')!r}")
    return int(answer["score"])


def _markdown(f: Fields, field: str, html: Any) -> str:
    if not isinstance(html, str):
        raise f.error(field, f"must be text, not {type(html).__name__}")
    try:
        text = _converter()(html).strip()
    except RecursionError:
        raise f.error(field, "nests its HTML too deeply") from None
    if not text:
        raise f.error(field, "is empty")
    return text


@cache
def _converter() -> Callable[[str], str]:
    try:
        from markdownify import ATX, markdownify
    except ImportError:
        raise SetupError(
            "format stack_exchange_dump turns HTML into Markdown with the package markdownify; run: pip install 'rlhf[dump]'"
        ) from None
    return lambda html: str(markdownify(html, heading_style=ATX))


PAIRED = Spec(_paired, (("question", "response_j", "response_k"),), lambda f: True, ("qid",), ("question",))
DUMP = Spec(
    _dump,
    (("qid", "question", "answers"),),
    lambda f: isinstance(f.data["answers"], list),
    ("title", "accepted"),
    ("question", "title"),
)
