"""The checks of `lint` that are about what the texts say and what the labels hold."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.data.lint.finding import LABEL_BALANCE, MATTERS, POSITION_BIAS, Check, Finding, Measures, Severity, weighed
from rlhf.data.stats import texts as flaws

# What a flaw is called, and what to do about it. The first three are always faults; the others depend on the task.
FLAWS: dict[str, tuple[str, str]] = {
    flaws.NO_WORDS: (
        "texts without a letter or digit",
        "check whether they are answers at all, and leave out the others",
    ),
    flaws.TEMPLATE: (
        "answers that hold the marks of a prompt template or a dialogue",
        "in the source, cut the answers at the mark: a model trained on them also writes the user's next turn",
    ),
    flaws.SPECIAL: (
        "texts with the tokenizer's special tokens written out",
        "they are trained as plain text, never as control tokens; remove them from the source if they are not meant",
    ),
    flaws.DISCLAIMER: (
        "answers that say they are from an AI model",
        "check whether they are meant: they teach the model what to say about itself",
    ),
    flaws.HTML: ("answers with HTML tags", "turn the tags into text in the source, unless the model should write HTML"),
    flaws.NEWLINE: (
        "texts with a backslash and an n where a line break is meant",
        "put line breaks there in the source",
    ),
    flaws.QUOTE: (
        "answers with a stray quote at one end, or with quotes around the whole, as Python's repr writes them",
        "remove the quotes in the source; for KoChatGPT's SFT file `format: kochatgpt_sft` does it",
    ),
    flaws.REPLACEMENT: (
        "texts with the character U+FFFD, which stands for bytes that were lost",
        "the source was read in the wrong encoding: read it again in its own",
    ),
}


def _flaws(split: Measures, report: Measures) -> Iterator[Finding]:
    for flaw, found in split["texts"].items():
        if count := found["rows"]:
            what, advice = FLAWS[flaw]
            sides = ", ".join(f"{side} {n}" for side, n in found["by_side"].items())
            what, total = f"{what} ({sides}), such as {_shown(found['excerpt'])}", split["rows"]
            severity, example = weighed(count, total), found["example"]
            yield Finding(severity, f"texts_{flaw}", what, advice, count=count, total=total, example=example)


def _shown(excerpt: str) -> str:
    """An excerpt on one line, in quotes. Characters that cannot be seen are written as escapes."""
    line = " ".join(excerpt.split())
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) + '"'


def _boilerplate(split: Measures, report: Measures) -> Iterator[Finding]:
    shared = split["repeats"]["shared_answers"]
    if not shared["most"]:
        return
    most, count = shared["most"][0], shared["completions"]
    excerpt = f", {_shown(most['excerpt'])}" if most["excerpt"] else ""
    what = f"completions that are the very same answer to many prompts; the most common one answers {most['prompts']} prompts{excerpt}"
    advice = (
        "right for classes and for yes or no; else keep fewer of them: `- dedup: {column: completion, engine: exact}`"
    )
    severity: Severity = "warning" if shared["share"] >= MATTERS else "note"
    total = round(count / shared["share"])
    yield Finding(severity, "shared_answers", what, advice, count=count, total=total, example=most["example"])


def _scripts(split: Measures, report: Measures) -> Iterator[Finding]:
    different, total = split["scripts"]["different"], split["rows"]
    if count := different["rows"]:
        by = ", ".join(f"{pair} {n}" for pair, n in list(different["by"].items())[:3])
        what = f"rows whose answer is in another script than their prompt ({by})"
        advice = "right for translation and code; else check whether the answers belong to these prompts"
        severity, example = weighed(count, total), different["example"]
        yield Finding(severity, "other_script", what, advice, count=count, total=total, example=example)


def _alike(split: Measures, report: Measures) -> Iterator[Finding]:
    same = split["labels"]["nearly_identical"]
    if count := same["rows"]:
        what = "pairs whose sides differ only in case and white space: a model learns nothing else from them"
        advice = "leave them out, unless the model should learn the format"
        total, example = split["rows"], same["example"]
        yield Finding("warning", "nearly_identical_sides", what, advice, count=count, total=total, example=example)


def _position(split: Measures, report: Measures) -> Iterator[Finding]:
    """One finding for rankings of all sizes: for each size, the index that is best most often beyond chance, and how often."""
    rankings = split["labels"]["rankings"] or {"best": {}, "count": 0}
    sizes: Measures = rankings["best"]
    off = {n: max(places, key=lambda p: p["share"]["value"]) for n, places in sizes.items()}
    off = {
        n: p
        for n, p in off.items()
        if p["share"]["value"] - 1 / int(n) > POSITION_BIAS and p["share"]["low"] > 1 / int(n)
    }
    if not off:
        return
    always = all(p["count"] == sum(q["count"] for q in sizes[n]) for n, p in off.items())
    severity: Severity = "warning"
    advice = "check whether each index is one model's (then it is no bias), or whether annotators favour an index"
    if always and {p["index"] for p in off.values()} == {0}:
        severity, advice = "note", "they are listed best first, and training does not see that order"
    shares = (f"of {n}: {p['index']} in {p['share']['value']:.0%} (by chance {1 / int(n):.0%})" for n, p in off.items())
    what = f"rankings in which one index is the best more often than by chance: {', '.join(shares)}"
    count = sum(p["count"] for p in off.values())
    yield Finding(severity, "position_bias", what, advice, count=count, total=rankings["count"])


def _rankings(split: Measures, report: Measures) -> Iterator[Finding]:
    rankings = split["labels"]["rankings"]
    if not rankings:
        return
    total = rankings["count"]
    if count := rankings["with_ties"]:
        what = f"rankings with equal scores, {rankings['best_tied']} of them for the best"
        advice = "`- pairs: {ties: drop}` (the default) leaves such pairs out, `half` trains on one of the two orders"
        yield Finding("note", "ties", what, advice, count=count, total=total)
    equal = rankings["equal_texts"]
    if count := equal["rows"]:
        what = "rankings that hold the same completion twice"
        advice = "the step `pairs` makes no pair of equal texts, and counts them"
        severity, example = weighed(count, total), equal["example"]
        yield Finding(severity, "equal_completions", what, advice, count=count, total=total, example=example)


def _labels(split: Measures, report: Measures) -> Iterator[Finding]:
    margins, unpaired = split["labels"]["margins"], split["labels"]["unpaired"]
    if margins and margins["zero"] and not split["labels"]["rankings"]:
        what = "pairs with margin 0, which do not say which side is better"
        advice = "`- pairs: {ties: drop}` makes no such pairs"
        yield Finding("note", "zero_margins", what, advice, count=margins["zero"], total=margins["count"])
    if unpaired:
        label, most = next(iter(unpaired.items()))
        if most["share"] > LABEL_BALANCE:
            what = f"unpaired rows with the label {label}"
            advice = "give the rarer label more weight, by the source's `weight:` or by the weights of the loss"
            total = sum(v["count"] for v in unpaired.values())
            yield Finding("warning", "label_balance", what, advice, count=most["count"], total=total)


CHECKS: tuple[Check, ...] = (_flaws, _boilerplate, _scripts, _alike, _position, _rankings, _labels)
