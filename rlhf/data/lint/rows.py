"""The checks of `lint` that are about rows: whether they can be read and trained on, repeats, leakage, lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf.data.lint.finding import LENGTH_BIAS, LENGTH_BIAS_NOTE, Check, Finding, Split, counted, weighed

MEANT = ("not drawn", "where", "label false")  # what a source's keys or the method leave out, as they were asked to


def leakage(report: Mapping[str, Any]) -> Iterator[Finding]:
    for pair, leak in report["leakage"].items():
        if not leak["rows"]:
            continue
        a, b = pair.split("/")
        yield Finding(
            "error",
            "leakage",
            pair,
            f"{counted(leak['prompts'], 'prompt')} of {b} also in {a} (but for case and white space)",
            leak["rows"],
            report["splits"][b]["rows"],
            " = ".join(reversed(leak["examples"][0])),
            "build one folder with `- split: {test: 0.05, by: prompt}` last, or take them out of the training side: "
            "`- decontaminate: {column: prompt, engine: exact, against: [{path: THE_TEST_ROWS}]}`",
        )


def _nothing_to_train(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    lost = sum(split["untrainable"]["kinds"].values())
    if not split["rows"]:
        yield Finding(
            "error",
            "no_rows",
            name,
            "no row can be read",
            split["rows_in"],
            split["rows_in"],
            next((d["example"] for d in split["dropped"].values()), None),
            "the reasons are under `set aside`; `format:` and `columns:` of the source say how its rows are to be read",
        )
    elif lost:
        kinds = ", ".join(split["untrainable"]["kinds"])
        yield Finding(
            "error",
            "wrong_kind",
            name,
            f"{kinds} rows, which {report['method']} does not train on",
            lost,
            split["rows"],
            split["untrainable"]["example"],
            "set `format:` or `columns:` of the source; rankings become pairs by `- pairs: {strategy: all}` in a data recipe",
        )
    if refused := split["refused_by_template"]["rows"]:
        yield Finding(
            "error" if refused == split["rows"] else "warning",
            "template",
            name,
            "rows that the chat template refuses",
            refused,
            split["rows"],
            split["refused_by_template"]["example"],
            "`rlhf inspect RECIPE` shows the template at work; rows of messages need `template: {kind: chat}`",
        )


def _set_aside(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    for reason, dropped in split["dropped"].items():
        built_identical = report["built"] and reason.endswith("is equal to chosen")
        if reason.startswith(MEANT):
            continue
        yield Finding(
            "error" if built_identical else weighed(dropped["rows"], split["rows_in"]),
            "identical_sides" if reason.endswith("is equal to chosen") else "set_aside",
            name,
            f"rows set aside in reading: {reason}",
            dropped["rows"],
            split["rows_in"],
            dropped["example"],
            "a built folder never holds such rows: build it anew"
            if built_identical
            else "mend the file, or leave them out",
        )


def _too_long(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    over = split["over_length"]
    if not over or not over["rows"]:
        return
    policy = report["on_overflow"]
    every = over["rows"] == split["rows"] and policy != "truncate"
    stops = policy == "error"
    effect = {
        "error": "the run will stop at the first of them",
        "drop": "they will be dropped",
        "truncate": "their completions will be cut and lose the EOS token",
        None: "training would stop, drop or cut them, by data.on_overflow",
    }[policy]
    yield Finding(
        "error" if every or stops else weighed(over["rows"], split["rows"]),
        "over_max_length",
        name,
        f"rows over {over['limit']} tokens, the longest {over['longest']}: {effect}",
        over["rows"],
        split["rows"],
        over["example"],
        f"data.max_length={over['longest']} takes all"
        + ("" if policy in ("drop", "truncate") else "; `data.on_overflow=drop` leaves them out, `truncate` cuts them")
        + f"; 99% of the rows have at most {split['lengths']['row']['p99']}",
    )


def _repeats(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    repeats, total = split["repeats"], split["rows"]
    kinds = split["kinds"]
    rows, prompts, contradictory = repeats["rows"], repeats["prompts"], repeats["contradictory"]
    sides = "prompt" if report["method"] == "ppo" else next((s for k, s in COLUMNS.items() if k in kinds), "prompt")
    if "preference -> demonstration" in split["converted"]:
        sides = "[prompt, chosen]"
    if rows["repeats"]:
        yield Finding(
            weighed(rows["repeats"], total),
            "duplicate_rows",
            name,
            f"rows that stand there before, one of them {rows['largest']} times",
            rows["repeats"],
            total,
            " = ".join(reversed(rows["example"])),
            f"`- dedup: {{column: {sides}, engine: exact}}`",
        )
    if prompts["repeats"] > rows["repeats"]:
        advice = "`- dedup: {column: prompt, engine: exact}` keeps one row a prompt; pairs of one ranking share theirs by right"
        yield Finding(
            "note",
            "duplicate_prompts",
            name,
            f"rows whose prompt stands there before, one of them {prompts['largest']} times",
            prompts["repeats"],
            total,
            " = ".join(reversed(prompts["example"])),
            advice + "; near-duplicates are found by `engine: fast`",
        )
    if contradictory["pairs"]:
        yield Finding(
            weighed(contradictory["rows"], total),
            "contradictory_pairs",
            name,
            f"rows of {counted(contradictory['pairs'], 'pair')} preferred both ways: their losses cancel",
            contradictory["rows"],
            total,
            " = ".join(contradictory["example"]),
            "of rankings with scores, `- pairs: {ties: drop}` makes none; else take out the rows that annotators disagree on",
        )


def _length_bias(name: str, split: Split, report: Mapping[str, Any]) -> Iterator[Finding]:
    bias = split["length_bias"]
    if not bias or not (wins := bias["longer_wins"]):
        return
    share = max(wins["value"], 1 - wins["value"])
    sure = wins["low"] > 0.5 or wins["high"] < 0.5
    if share < LENGTH_BIAS_NOTE or not sure:
        return
    which = "longer" if wins["value"] > 0.5 else "shorter"
    low, high = (wins["low"], wins["high"]) if which == "longer" else (1 - wins["high"], 1 - wins["low"])
    yield Finding(
        "warning" if share >= LENGTH_BIAS else "note",
        "length_bias",
        name,
        f"pairs in which the {which} answer is preferred: {share:.0%} [{low:.0%}, {high:.0%}] of those that differ in length, "
        f"by {abs(bias['mean_difference']):.0f} {report['unit']} on average",
        round(share * (bias["pairs"] - bias["ties"])),
        bias["pairs"],
        None,
        f"a reward model on them must beat {share:.0%}, or it has learnt length alone; `rlhf eval` reports this baseline beside it",
    )


COLUMNS = {
    "preference": "[prompt, chosen, rejected]",
    "ranking": "[prompt, completions]",
    "demonstration": "[prompt, completion]",
    "unpaired": "[prompt, completion]",
}
CHECKS: tuple[Check, ...] = (_nothing_to_train, _set_aside, _too_long, _repeats, _length_bias)
