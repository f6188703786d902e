"""Instructions and questions with one answer: Alpaca, SQuAD and KorQuAD."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats.fields import Fields, Spec, distinct
from rlhf.data.formats.templates import ALPACA, fill, placeholders
from rlhf.data.rows import Row


def instruction_prompt(f: Fields) -> str:
    """The prompt of `instruction` and `input`: one shape for rows with an input, another for rows without, as Alpaca has them.

    The shapes are a named pair (Alpaca's own unless the source says otherwise), or the source's `template` and `template_no_input`.
    """
    extra = f.optional_text("input")
    named = ALPACA.get(f.template or "alpaca")
    if named:
        template = named[bool(extra)]
    else:
        template = str(f.template if extra or f.template_no_input is None else f.template_no_input)
        has_place = "input" in placeholders(template)
        if extra and not has_place:
            raise f.error("input", "is not empty, and the template has no {input} for it")
        if not extra and has_place:
            raise f.error("input", "is empty, and the template has an {input}: give such rows a template_no_input")
    return fill(template, {"instruction": f.text("instruction"), "input": extra})


def _alpaca(f: Fields) -> Row:
    """A demonstration; a preference where chosen and rejected stand beside the instruction."""
    prompt = instruction_prompt(f)
    if f.has("chosen") or f.has("rejected"):
        return distinct(f, {"prompt": prompt, "chosen": f.text("chosen"), "rejected": f.text("rejected")})
    return {"prompt": prompt, "completion": f.text("output")}


def _squad(f: Fields) -> Row:
    """A question with its first answer. Without a template the context, where there is one, stands before the question."""
    question, context = f.text("question"), f.optional_text("context")
    template = f.template or ("{context}\n\n{question}" if context else "{question}")
    if f.template and "context" in placeholders(template):
        context = f.text("context")
    values = {"question": question, "context": context, "title": f.optional_text("title")}
    return {"prompt": fill(template, values), "completion": _first_answer(f)}


def _first_answer(f: Fields) -> str:
    """Of the nested form's list of {text, answer_start}, or of the flat form's {text: [...], answer_start: [...]}."""
    answers: Any = f.get("answers")
    texts = answers.get("text") if isinstance(answers, dict) else None
    if texts is None:
        texts = [answer.get("text") for answer in f.objects("answers")]
    elif not isinstance(texts, list):
        raise f.error("answers", "must hold a list of texts")
    if not texts:
        raise f.error("answers", "is empty: the question has no answer")
    if not isinstance(texts[0], str) or not texts[0].strip():
        raise f.error("answers", "holds no text first")
    return texts[0]


def _has_answers(f: Fields) -> bool:
    answers = f.data["answers"]
    first = answers[0] if isinstance(answers, list) and answers else answers
    return isinstance(first, dict) and "text" in first and "body" not in first


ALPACA_SPEC = Spec(
    _alpaca,
    (("instruction", "output"), ("instruction", "chosen", "rejected")),
    lambda f: True,
    ("input",),
    ("instruction", "input"),
    tuple(ALPACA),
)
SQUAD = Spec(
    _squad,
    (("question", "answers"),),
    _has_answers,
    ("context", "title"),
    ("question", "context", "title"),
)
