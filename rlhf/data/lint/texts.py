"""The checks of `lint` that are about what the texts say and what the labels hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf.data.lint.finding import LABEL_BALANCE, MATTERS, POSITION_BIAS, Check, Finding, Split, weighed
from rlhf.data.stats import texts as flaws

# What a flaw is called, and what to do about it. The first three are wrong wherever they are; the others depend on the task.
FLAWS: dict[str, tuple[str, str]] = {
    flaws.NO_WORDS: (
        "texts without a letter or digit",
        "see whether they are answers at all, and leave out those that are not",
    ),
    flaws.TEMPLATE: (
        "answers that hold a prompt template's or dialogue's marks",
        "cut the answers at the mark in the source: a model trained on them goes on with the user's next turn",
    ),
    flaws.SPECIAL: (
        "texts with the tokenizer's special tokens spelled out",
        "they are trained as plain text, never as control tokens; take them out of the source if they are not meant",
    ),
    flaws.DISCLAIMER: (
        "answers that say they are from an AI model",
        "see whether they are meant: they teach the model what it says of itself",
    ),
    flaws.HTML: ("answers with HTML tags", "turn the tags into text in the source, unless the model is to write HTML"),
    flaws.NEWLINE: (
        "texts with a backslash and an n where a line break is meant",
        "replace them by line breaks in the source",
    ),
    flaws.QUOTE: (
        "answers with a stray quote at one end, or quotes around the whole, as Python's repr leaves them",
        "take the quotes out of the source; for KoChatGPT's SFT file `format: kochatgpt_sft` does it",
    ),
    flaws.REPLACEMENT: (
        "texts with the character U+FFFD, which stands for bytes that were lost",
        "read the source again in its own encoding: it was taken for another one",
    ),
}


def _flaws(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    for flaw, found in split["texts"].items():
        if not found["rows"]:
            continue
        what, advice = FLAWS[flaw]
        where = ", ".join(f"{side} {n}" for side, n in found["by_side"].items())
        yield Finding(
            weighed(found["rows"], split["rows"]),
            f"texts_{flaw}",
            name,
            f"{what} ({where}), such as {_shown(found['excerpt'])}",
            found["rows"],
            split["rows"],
            found["example"],
            advice,
        )


def _shown(excerpt: str) -> str:
    """An excerpt on one line, in quotes, with what cannot be seen written as escapes."""
    line = " ".join(excerpt.split())
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) + '"'


def _boilerplate(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    shared = split["repeats"]["shared_answers"]
    if not shared["most"]:
        return
    most = shared["most"][0]
    excerpt = f", {_shown(most['excerpt'])}" if most["excerpt"] else ""
    completions = round(shared["completions"] / shared["share"])
    yield Finding(
        "warning" if shared["share"] >= MATTERS else "note",
        "shared_answers",
        name,
        f"completions that answer many prompts word for word, the most common one {most['prompts']} of them{excerpt}",
        shared["completions"],
        completions,
        most["example"],
        "right for classes and yes or no; else thin them out: `- dedup: {column: completion, engine: exact}`",
    )


def _scripts(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    different = split["scripts"]["different"]
    if different["rows"]:
        by = ", ".join(f"{pair} {n}" for pair, n in list(different["by"].items())[:3])
        yield Finding(
            weighed(different["rows"], split["rows"]),
            "other_script",
            name,
            f"rows answered in another script than they ask in ({by})",
            different["rows"],
            split["rows"],
            different["example"],
            "right for translation and code; else see whether the answers belong to these prompts",
        )


def _alike(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    same = split["labels"]["nearly_identical"]
    if same["rows"]:
        yield Finding(
            "warning",
            "nearly_identical_sides",
            name,
            "pairs whose sides differ in case and white space only: what is learnt from them is just that",
            same["rows"],
            split["rows"],
            same["example"],
            "leave them out, unless the format is what is to be learnt",
        )


def _position(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    """One finding for rankings of all sizes: the place that wins most beyond chance, and how often in each size."""
    sizes: Mapping[str, Any] = (split["labels"]["rankings"] or {"best": {}})["best"]
    off = {n: max(places, key=lambda p: p["share"]["value"] - 1 / int(n)) for n, places in sizes.items()}
    off = {
        n: p
        for n, p in off.items()
        if p["share"]["value"] - 1 / int(n) > POSITION_BIAS and p["share"]["low"] > 1 / int(n)
    }
    if not off:
        return
    always = all(p["count"] == sum(q["count"] for q in sizes[n]) for n, p in off.items())
    listed = always and {p["index"] for p in off.values()} == {0}
    said = ", ".join(
        f"of {n}: {p['index']} in {p['share']['value']:.0%} (by chance {1 / int(n):.0%})" for n, p in off.items()
    )
    yield Finding(
        "note" if listed else "warning",
        "position_bias",
        name,
        f"rankings in which one place is the best more often than by chance: {said}",
        sum(p["count"] for p in off.values()),
        split["labels"]["rankings"]["count"],
        None,
        "they are listed best first, which training does not see"
        if listed
        else "see whether each place is one model's (then it is no bias), or whether annotators favour a place",
    )


def _rankings(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    rankings = split["labels"]["rankings"]
    if not rankings:
        return
    if rankings["with_ties"]:
        yield Finding(
            "note",
            "ties",
            name,
            f"rankings with equal scores, {rankings['best_tied']} of them for the best",
            rankings["with_ties"],
            rankings["count"],
            None,
            "`- pairs: {ties: drop}` (the default) leaves such pairs out, `half` trains on one of the two orders",
        )
    if rankings["equal_texts"]["rows"]:
        yield Finding(
            weighed(rankings["equal_texts"]["rows"], rankings["count"]),
            "equal_completions",
            name,
            "rankings that hold the same completion twice",
            rankings["equal_texts"]["rows"],
            rankings["count"],
            rankings["equal_texts"]["example"],
            "the pairs step makes no pair of equal texts and counts them",
        )


def _labels(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    margins, unpaired = split["labels"]["margins"], split["labels"]["unpaired"]
    if margins and margins["zero"] and not split["labels"]["rankings"]:
        yield Finding(
            "note",
            "zero_margins",
            name,
            "pairs of margin 0, which say nothing of which is better",
            margins["zero"],
            margins["count"],
            None,
            "`- pairs: {ties: drop}` makes none",
        )
    if unpaired:
        most, of = next(iter(unpaired.items()))
        if of["share"] > LABEL_BALANCE:
            yield Finding(
                "warning",
                "label_balance",
                name,
                f"unpaired rows labelled {most}",
                of["count"],
                sum(v["count"] for v in unpaired.values()),
                None,
                "weigh the rarer label up, by the source's `weight:` or the loss's own weights",
            )


CHECKS: tuple[Check, ...] = (_flaws, _boilerplate, _scripts, _alike, _position, _rankings, _labels)
