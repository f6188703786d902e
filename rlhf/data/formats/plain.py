"""The canonical kinds as they stand in a file: demonstration, preference, ranking, scored, unpaired, prompt.

Text or messages alike. What the columns hold is checked, not mended: blank texts, equal sides, an order that is none, a score too many.
An empty completion among many sets its whole row aside: to leave out that completion alone would change the ranking without a count.
"""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import orders
from rlhf.data.formats.fields import Fields, Spec, as_boolean, distinct, is_judgement
from rlhf.data.messages import as_messages, conversational_completion, conversational_prompt, dialogue, dialogue_pair
from rlhf.data.rows import Row


def prompt(f: Fields) -> Row:
    """{prompt}: text, or messages to be answered."""
    if isinstance(f.get("prompt"), list):
        return {"prompt": conversational_prompt(f, "prompt", as_messages(f, "prompt", f.data["prompt"]))}
    if f.has("tools") and f.data["tools"] not in ("", [], "[]"):
        raise f.error("tools", "stands beside a prompt of text: tools need a prompt of messages")
    return {"prompt": f.text("prompt")}


def completion(f: Fields, field: str, value: Any, prompt: Any) -> Any:
    """A completion in its prompt's form: text, or an assistant's messages in a list."""
    if isinstance(prompt, list):
        return conversational_completion(f, field, value)
    if not isinstance(value, str):
        raise f.error(field, f"must be text as the prompt is, not {type(value).__name__}")
    if not value or value.isspace():
        raise f.error(field, "is empty")
    return value


def _preference(f: Fields) -> Row:
    if isinstance(f.get("chosen"), list) and not isinstance(f.data.get("prompt"), list):
        row = dialogue_pair(f)
        if f.has("prompt") and f.text("prompt") not in [m["content"] for m in row["prompt"]]:
            raise f.error("prompt", "is none of the messages that chosen starts with")
    else:
        prompts = prompt(f)
        row = prompts | {k: completion(f, k, f.get(k), prompts["prompt"]) for k in ("chosen", "rejected")}
    if f.has("margin") and f.data["margin"] != "":
        row["margin"] = f.number("margin", f.data["margin"])
        if row["margin"] < 0:
            raise f.error("margin", "is negative, so rejected would be the better one")
    flags = ("chosen_ended", "rejected_ended")
    return distinct(f, row | {flag: f.boolean(flag) for flag in flags if f.has(flag)})


def _ranking(f: Fields) -> Row:
    row = prompt(f)
    listed = "completions" if f.has("completions") or not f.has("best_first") else "best_first"
    completions = [completion(f, listed, c, row["prompt"]) for c in f.list(listed)]
    n = len(completions)
    if n < 2:
        raise f.error(listed, "needs two completions at least")
    row["completions"] = completions
    if f.has("ended"):
        row["ended"] = list(f.booleans("ended", n))
    if listed == "best_first":
        return row | {"ranking": list(range(n))}
    by_order = None
    if f.has("ranking"):
        by_order = orders.order(f, n)
    elif f.has("comparisons"):
        by_order = orders.order_of_comparisons(f, n)
    elif not f.has("scores") and "ranks" not in f.columns:
        orders.order(f, n)  # says what is missing
    ranked = orders.scores_of_ranks(f, n) if "ranks" in f.columns else None
    scores = orders.scores(f, f.list("scores"), n) if f.has("scores") else ranked
    if scores is None:
        return row | {"ranking": by_order}
    # Scores say more than ranks, and those more than an order; what is there must agree.
    if by_order is not None:
        orders.agree(f, by_order, scores)
    if ranked is not None:
        orders.agree(f, sorted(range(n), key=lambda i: (-ranked[i], -scores[i])), scores)
    return row | {"scores": scores}


def _scored(f: Fields) -> Row:
    if f.has("prompt") and f.has("completions"):
        f.get("scores")
    return _ranking(f)


def _demonstration(f: Fields) -> Row:
    if not f.has("prompt") and f.has("messages"):
        row = dialogue(f, "messages")
    else:
        row = prompt(f)
        row["completion"] = completion(f, "completion", f.get("completion"), row["prompt"])
    return row | {"ended": f.boolean("ended")} if f.has("ended") else row


def _unpaired(f: Fields) -> Row:
    return _demonstration(f) | {"label": f.boolean("label")}


# Columns that hold an answer: beside one of them `prompt` alone would throw it away.
ANSWERS = {
    "completion", "answer", "output", "response", "a", "target", "chosen", "rejected", "response_j",
    "response_k", "completions", "answers", "responses", "candidates", "scores", "completion_0", "ranks",
    "ranking", "comparisons", "best_first", "better", "preferred", "accepted", "worse", "dispreferred", "ratings",
    "rewards", "replies", "messages", "response1", "response2",
}  # fmt: skip


def _is_pair(f: Fields) -> bool:
    """`chosen` as one message, beside a column of messages, is ShareGPT's."""
    return f.has("prompt") or isinstance(f.data["chosen"], list)


PREFERENCE = Spec(
    _preference,
    (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    _is_pair,
    ("margin", "chosen_ended", "rejected_ended", "tools"),
)
RANKING = Spec(
    _ranking,
    (
        ("prompt", "completions", "ranking"),
        ("prompt", "completions", "comparisons"),
        ("prompt", "completions", "scores"),
        ("prompt", "completions", "ranks"),
        ("prompt", "best_first"),
    ),
    lambda f: any(map(f.has, ("ranking", "comparisons", "best_first"))) or "ranks" in f.columns,
    ("scores", "ranking", "comparisons", "ranks", "ended", "tools"),
)
SCORED = Spec(
    _scored,
    (("prompt", "completions", "scores"),),
    lambda f: not (f.has("ranking") or f.has("comparisons") or "ranks" in f.columns),
    ("ended", "tools"),
)
DEMONSTRATION = Spec(
    _demonstration,
    (("prompt", "completion"), ("messages",)),
    lambda f: f.has("completion") and not is_judgement(f.data.get("label")),
    ("ended", "tools"),
)
UNPAIRED = Spec(
    _unpaired,
    (("prompt", "completion", "label"), ("messages", "label")),
    lambda f: as_boolean(f.data["label"]) is not None,
    ("ended", "tools"),
)
PROMPT = Spec(prompt, (("prompt",),), lambda f: not {c.lower() for c in f.data}.intersection(ANSWERS), ("tools",))
