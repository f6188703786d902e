"""The checks of `lint` that are about rows: whether they can be read and trained on, repeats, leakage, lengths."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.data.lint.finding import LENGTH_BIAS, LENGTH_BIAS_NOTE, Check, Finding, Measures, Severity, counted, weighed
from rlhf.recipe.schema import samples

MEANT = ("not drawn", "where", "label false")  # reasons that the source's keys or the method asked for: no fault
COLUMNS = {
    "preference": "[prompt, chosen, rejected]",
    "ranking": "[prompt, completions]",
    "demonstration": "[prompt, completion]",
    "unpaired": "[prompt, completion]",
}


def leakage(report: Measures) -> Iterator[Finding]:
    for pair, leak in report["leakage"].items():
        if not leak["rows"]:
            continue
        a, b = pair.split("/")
        what = f"{counted(leak['prompts'], 'prompt')} of {b} also in {a} (case and white space ignored)"
        advice = (
            "build one folder with `- split: {test: 0.05, by: prompt}` as the last step, or remove them from the training rows: "
            "`- decontaminate: {column: prompt, engine: exact, against: [{path: THE_TEST_ROWS}]}`"
        )
        total, example = report["splits"][b]["rows"], _two(leak["examples"][0])
        yield Finding("error", "leakage", what, advice, count=leak["rows"], total=total, example=example, split=pair)


def _nothing_to_train(split: Measures, report: Measures) -> Iterator[Finding]:
    rows, untrainable = split["rows"], split["untrainable"]
    if not rows:
        read, example = split["rows_in"], next((d["example"] for d in split["dropped"].values()), None)
        advice = "the reasons are under `set aside`; `format:` and `columns:` of the source say how to read its rows"
        yield Finding("error", "no_rows", "no row can be read", advice, count=read, total=read, example=example)
    elif lost := sum(untrainable["kinds"].values()):
        what = f"{', '.join(untrainable['kinds'])} rows, which {report['method']} does not train on"
        advice = "set `format:` or `columns:` of the source; in a data recipe, `- pairs: {strategy: all}` makes pairs of rankings"
        yield Finding("error", "wrong_kind", what, advice, count=lost, total=rows, example=untrainable["example"])
    refused = split["refused_by_template"]
    if count := refused["rows"]:
        severity: Severity = "error" if count == rows else "warning"
        what = "rows that the chat template refuses"
        advice = "`rlhf inspect RECIPE` shows rows as the template writes them; rows of messages need `template: {kind: chat}`"
        yield Finding(severity, "template", what, advice, count=count, total=rows, example=refused["example"])


def _set_aside(split: Measures, report: Measures) -> Iterator[Finding]:
    for reason, dropped in split["dropped"].items():
        if reason.startswith(MEANT):
            continue
        count, total = dropped["rows"], split["rows_in"]
        identical = reason.endswith("is equal to chosen")
        severity, advice = weighed(count, total), "correct the file, or leave them out"
        if report["built"] and identical:
            severity, advice = "error", "a built folder never holds such rows: build it again"
        what, example = f"rows set aside while reading: {reason}", dropped["example"]
        check = "identical_sides" if identical else "set_aside"
        yield Finding(severity, check, what, advice, count=count, total=total, example=example)


def _too_long(split: Measures, report: Measures) -> Iterator[Finding]:
    over, rows = split["over_length"], split["rows"]
    if not over or not over["rows"]:
        return
    policy, longest = report["on_overflow"], over["longest"]
    is_error = policy == "error" or (over["rows"] == rows and policy != "truncate")
    effect = {
        "error": "the run will stop at the first of them",
        "drop": "they will be dropped",
        "truncate": "their completions will be cut and lose the EOS token",
        None: "data.on_overflow decides whether training stops, drops them or cuts them",
    }[policy]
    what = f"rows over {over['limit']} tokens, the longest {longest}: {effect}"
    other = "; `data.on_overflow=drop` leaves them out, `truncate` cuts them"
    advice = (
        f"data.max_length={longest} takes all{'' if policy in ('drop', 'truncate') else other}"
        f"; 99% of the rows have at most {split['lengths']['row']['p99']}"
    )
    severity = "error" if is_error else weighed(over["rows"], rows)
    yield Finding(severity, "over_max_length", what, advice, count=over["rows"], total=rows, example=over["example"])


def _repeats(split: Measures, report: Measures) -> Iterator[Finding]:
    repeats, total = split["repeats"], split["rows"]
    rows, prompts, contradictory = repeats["rows"], repeats["prompts"], repeats["contradictory"]
    if count := rows["repeats"]:
        columns = next((columns for kind, columns in COLUMNS.items() if kind in split["kinds"]), "prompt")
        if report["method"] is not None and samples(report["method"]):
            columns = "prompt"
        elif "preference -> demonstration" in split["converted"]:
            columns = "[prompt, chosen]"
        what = f"rows that repeat an earlier row, one of them {rows['largest']} times"
        advice, example = f"`- dedup: {{column: {columns}, engine: exact}}`", _two(rows["example"])
        severity = weighed(count, total)
        yield Finding(severity, "duplicate_rows", what, advice, count=count, total=total, example=example)
    if (count := prompts["repeats"]) > rows["repeats"]:
        what = f"rows whose prompt an earlier row has too, one of them {prompts['largest']} times"
        advice = (
            "`- dedup: {column: prompt, engine: exact}` keeps one row for each prompt (pairs of one ranking share a prompt, and that is right); "
            "`engine: fast` finds near-duplicates"
        )
        example = _two(prompts["example"])
        yield Finding("note", "duplicate_prompts", what, advice, count=count, total=total, example=example)
    if contradictory["pairs"]:
        count, example = contradictory["rows"], " = ".join(contradictory["example"])
        what = f"rows of {counted(contradictory['pairs'], 'pair')} preferred both ways: their losses cancel"
        advice = "for rankings with scores, `- pairs: {ties: drop}` makes no such pairs; otherwise remove the rows on which annotators disagree"
        severity = weighed(count, total)
        yield Finding(severity, "contradictory_pairs", what, advice, count=count, total=total, example=example)


def _two(rows: list[str]) -> str:
    """Two rows that are alike: the later one, then the earlier one."""
    return " = ".join(reversed(rows))


def _length_bias(split: Measures, report: Measures) -> Iterator[Finding]:
    bias = split["length_bias"]
    if not bias or not (wins := bias["longer_wins"]):
        return
    share, low, high = wins["value"], wins["low"], wins["high"]
    which = "longer"
    if share <= 0.5:
        which, share, low, high = "shorter", 1 - share, 1 - high, 1 - low
    if share < LENGTH_BIAS_NOTE or low <= 0.5:
        return
    what = (
        f"pairs in which the {which} answer is preferred: {share:.0%} [{low:.0%}, {high:.0%}] of those that differ in length, "
        f"by {abs(bias['mean_difference']):.0f} {report['unit']} on average"
    )
    advice = (
        f"a reward model trained on them must be right more often than {share:.0%}, or it may have learnt length alone; "
        "`rlhf eval` reports this baseline beside its accuracy"
    )
    count = round(share * (bias["pairs"] - bias["ties"]))
    severity: Severity = "warning" if share >= LENGTH_BIAS else "note"
    yield Finding(severity, "length_bias", what, advice, count=count, total=bias["pairs"])


CHECKS: tuple[Check, ...] = (_nothing_to_train, _set_aside, _too_long, _repeats, _length_bias)
