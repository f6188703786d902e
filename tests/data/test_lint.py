"""`rlhf data lint`: each finding from data that has it, none from data that has not, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from rlhf.cli import app
from rlhf.data.lint.finding import LENGTH_BIAS, POSITION_BIAS, Finding
from rlhf.data.lint.findings import as_json, lint
from rlhf.data.parquet_rows import write_rows
from rlhf.data.stats.inputs import Target, target_of
from rlhf.data.stats.measure import Counting, measure
from rlhf.recipe.sections import SourceSection, TemplateSection
from rlhf.recipe.steps import DataStep
from rlhf.tokens.lengths import TokenLengths
from tests.data.support import lines, real
from tests.tiny import tiny_tokenizer

# Forty sound pairs: neither side longer on the whole, all prompts and answers different.
SOUND = [
    {
        "prompt": f"question {i:02}",
        "chosen": f"yes, {i:02}" + "!" * (i % 2),
        "rejected": f"no, {i:02}" + "!" * (2 - i % 2),
    }
    for i in range(40)
]


def found(path: str | Path) -> dict[str, Finding]:
    findings = lint(measure(target_of(str(path))))
    assert len({f.check for f in findings}) == len(findings)
    return {f.check: f for f in findings}


def from_rows(tmp_path: Path, rows: list[dict]) -> dict[str, Finding]:
    return found(lines(tmp_path / "rows.jsonl", rows))


def trained(path: str, method: str, max_length: int, on_overflow: str) -> dict[str, Finding]:
    """As a training recipe's lint, with the tiny tokenizer."""
    template = TemplateSection()
    target = Target("r.yaml", {"train": [SourceSection(path=path)]}, method=method, template=template,
                    max_length=max_length, on_overflow=on_overflow)  # fmt: skip
    counted = Counting(TokenLengths(tiny_tokenizer(), template), "tokens", "tiny", tiny_tokenizer().all_special_tokens)
    return {f.check: f for f in lint(measure(target, counted))}


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", "lint", *map(str, arguments)])


def test_sound_data_has_no_finding(tmp_path: Path) -> None:
    assert from_rows(tmp_path, SOUND) == {}
    result = cli(tmp_path / "rows.jsonl")
    assert result.exit_code == 0 and result.output.startswith("nothing found in 40 rows")


def test_duplicates_and_contradictions(tmp_path: Path) -> None:
    turned = {"prompt": SOUND[0]["prompt"], "chosen": SOUND[0]["rejected"], "rejected": SOUND[0]["chosen"]}
    findings = from_rows(tmp_path, [*SOUND, SOUND[3], turned])
    path = tmp_path / "rows.jsonl"
    rows = findings["duplicate_rows"]
    assert (rows.severity, rows.count, rows.total, rows.example) == ("warning", 1, 42, f"{path}:41 = {path}:4")
    both = findings["contradictory_pairs"]
    assert (both.severity, both.count, both.example) == ("warning", 2, f"{path}:1 = {path}:42")
    assert findings["duplicate_prompts"].severity == "note" and findings["duplicate_prompts"].count == 2
    assert set(findings) == {"duplicate_rows", "contradictory_pairs", "duplicate_prompts"}


def test_one_duplicate_among_many_rows_is_a_note(tmp_path: Path) -> None:
    many = [
        row | {"prompt": f"{row['prompt']} of {k}", "chosen": f"{row['chosen']} {k}"} for k in range(4) for row in SOUND
    ]
    assert from_rows(tmp_path, [*many, many[0]])["duplicate_rows"].severity == "note"


@pytest.mark.parametrize(
    ("pairs", "longer", "severity"),
    [(40, 22, None), (40, 24, None), (400, 228, "note"), (160, 104, "warning"), (40, 0, "warning")],
)
def test_length_bias_needs_a_share_and_certainty(tmp_path: Path, pairs: int, longer: int, severity: str | None) -> None:
    """24 of 40 is 60% but within chance, [45, 74]; 228 of 400 is 57% [52, 62]; none of 40 is the bias the other way."""
    rows = [
        {"prompt": f"p {i}", "chosen": f"{i:03}" + "a" * (9 if i < longer else 1), "rejected": f"{i:03}bbbb"}
        for i in range(pairs)
    ]
    finding = from_rows(tmp_path, rows).get("length_bias")
    assert (finding.severity if finding else None) == severity
    if finding:
        assert ("longer" if longer else "shorter") in finding.what
        assert finding.count == (longer or 40) and finding.total == pairs
        assert (finding.share >= LENGTH_BIAS) == (severity == "warning")


def test_texts_are_found_with_their_place(tmp_path: Path) -> None:
    rows = [
        *SOUND,
        SOUND[0] | {"prompt": "last", "chosen": "\u200b.", "rejected": "As an AI language model, no\n### Response:"},
    ]
    findings = from_rows(tmp_path, rows)
    assert set(findings) == {"texts_no_words", "texts_template", "texts_ai_disclaimer"}
    for finding in findings.values():
        assert finding.example == f"{tmp_path / 'rows.jsonl'}:41" and finding.severity == "warning"
    assert '"\\u200b."' in findings["texts_no_words"].what
    assert "chosen 1" in findings["texts_no_words"].what and "rejected 1" in findings["texts_template"].what


def test_the_quotes_that_kochatgpts_file_has_are_found(tmp_path: Path) -> None:
    """Its file is recognised as demonstrations, which keep every character."""
    rows = [
        {"prompt": "하나", "completion": "'저는 하나입니다.\\n끝", "tokens": 9},
        {"prompt": "둘", "completion": "저는 둘입니다.'", "tokens": 9},
        {"prompt": "셋", "completion": "'저는 셋입니다.'", "tokens": 9},
        {"prompt": "넷", "completion": "저는 '넷'입니다. It's fine, isn't it?", "tokens": 9},
        {"prompt": "다섯", "completion": "'다섯'이라고 합니다.", "tokens": 9},
    ]
    finding = from_rows(tmp_path, rows)["texts_stray_quote"]
    assert finding.count == 3 and "kochatgpt_sft" in finding.advice and str(finding.example).endswith("rows.jsonl:1")


def test_boilerplate_and_other_scripts(tmp_path: Path) -> None:
    rows = [r | {"rejected": "I cannot"} if i < 6 else r for i, r in enumerate(SOUND)]
    rows[9] = rows[9] | {"chosen": "좋은 영화였습니다"}
    findings = from_rows(tmp_path, rows)
    shared = findings["shared_answers"]
    assert (shared.severity, shared.count, shared.total) == ("warning", 6, 80) and '"I cannot"' in shared.what
    other = findings["other_script"]
    assert (other.count, other.example) == (1, f"{tmp_path / 'rows.jsonl'}:10") and "Latin to Hangul 1" in other.what


def test_rankings(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"question {i}", "completions": [f"a {i}", f"b {i}", f"c {i}"], "ranking": [1, 2, 0]}
        for i in range(60)
    ]
    findings = from_rows(tmp_path, rows)
    bias = findings["position_bias"]
    assert "of 3: 1 in 100% (by chance 33%)" in bias.what and (bias.count, bias.total) == (60, 60)
    assert bias.severity == "warning"
    pairs = [{"prompt": f"two {i}", "completions": ["a", f"b {i}"], "ranking": [0, 1]} for i in range(20)]
    both = from_rows(tmp_path, [*(r | {"ranking": [0, 2, 1]} for r in rows), *pairs])["position_bias"]
    assert both.severity == "note" and both.count == 80 and "best first" in both.advice
    assert "of 2: 0 in 100% (by chance 50%), of 3: 0 in 100%" in both.what
    fair = [r | {"ranking": [[0, 1, 2], [1, 2, 0], [2, 0, 1]][i % 3]} for i, r in enumerate(rows)]
    assert "position_bias" not in from_rows(tmp_path, fair) and POSITION_BIAS < 0.1
    tied = [{"prompt": f"q {i}", "completions": [f"a {i}", f"b {i}"], "scores": [1.0, 1.0]} for i in range(4)]
    assert (from_rows(tmp_path, tied)["ties"].count, from_rows(tmp_path, tied)["ties"].severity) == (4, "note")


def test_labels(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "completion": f"a {i}", "label": i != 0} for i in range(20)]
    balance = from_rows(tmp_path, rows)["label_balance"]
    assert (balance.severity, balance.count, balance.total) == ("warning", 19, 20)
    assert "label_balance" not in from_rows(tmp_path, [r | {"label": i < 12} for i, r in enumerate(rows)])
    margins = [row | {"margin": float(i > 2)} for i, row in enumerate(SOUND)]
    assert from_rows(tmp_path, margins)["zero_margins"].count == 3
    alike = [*SOUND, {"prompt": "last", "chosen": "So it is", "rejected": "so  it is"}]
    assert from_rows(tmp_path, alike)["nearly_identical_sides"].example == f"{tmp_path / 'rows.jsonl'}:41"


# --- errors, and exit code 3 --------------------------------------------------------------------------------------------


def test_leakage_is_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "d/train/0.parquet", SOUND[:30])
    write_rows(tmp_path / "d/test/0.parquet", [*SOUND[30:], SOUND[4] | {"prompt": "QUESTION  04"}])
    leak = found(tmp_path / "d")["leakage"]
    assert (leak.severity, leak.split, leak.count, leak.total) == ("error", "train/test", 1, 11)
    assert leak.example == f"{tmp_path}/d/test/0.parquet:11 = {tmp_path}/d/train/0.parquet:5"
    result = cli(tmp_path / "d")
    assert result.exit_code == 3 and result.output.startswith("error: train/test: 1 of 11 (9.1%)")
    write_rows(tmp_path / "d/test/0.parquet", SOUND[30:])
    assert cli(tmp_path / "d").exit_code == 0


def test_identical_sides_are_an_error_in_a_built_folder_only(tmp_path: Path) -> None:
    rows = [*SOUND, {"prompt": "last", "chosen": "same", "rejected": "same"}]
    raw = from_rows(tmp_path, rows)["identical_sides"]
    assert (raw.severity, raw.count, raw.example) == ("warning", 1, f"{tmp_path / 'rows.jsonl'}:41")
    write_rows(tmp_path / "built/train/0.parquet", rows)
    for name in ("report.json", "quarantine.jsonl"):
        (tmp_path / "built" / name).write_text("")
    assert found(tmp_path / "built")["identical_sides"].severity == "error"
    assert cli(tmp_path / "built").exit_code == 3


def test_no_row_at_all_is_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "same", "rejected": "same"}])
    finding = found(path)["no_rows"]
    assert (finding.severity, finding.example) == ("error", f"{path}:1")
    assert cli(path).exit_code == 3


def test_rows_that_the_method_cannot_train_on(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"prompt": "p", "completions": ["a", "b"], "ranking": [0, 1]}])
    wrong = trained(path, "dpo", 100, "error")["wrong_kind"]
    assert wrong.severity == "error" and "ranking rows, which dpo does not train on" in wrong.what
    assert "wrong_kind" not in trained(path, "reward", 100, "error")


@pytest.mark.parametrize(
    ("limit", "policy", "severity"),
    [
        (60, "error", "error"),
        (60, "drop", "warning"),
        (60, "truncate", "warning"),
        (3, "drop", "error"),
        (3, "truncate", "warning"),
    ],
)
def test_over_max_length(tmp_path: Path, limit: int, policy: str, severity: str) -> None:
    """One of 41 rows is over 60 tokens; all are over 3, and to drop all leaves nothing to train on."""
    path = lines(tmp_path / "rows.jsonl", [*SOUND, SOUND[0] | {"prompt": "last", "chosen": "long 1 2 3 4 " * 30}])
    finding = trained(path, "dpo", limit, policy)["over_max_length"]
    assert (finding.severity, finding.count, finding.example) == (severity, 1 if limit == 60 else 41, f"{path}:41")


def test_special_tokens_of_the_recipes_tokenizer(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [*SOUND, SOUND[0] | {"prompt": "a <|im_end|> in it"}])
    finding = trained(path, "dpo", 100, "error")["texts_special_tokens"]
    assert (finding.count, finding.example) == (1, f"{path}:41") and "prompt 1" in finding.what


# --- what is said ------------------------------------------------------------------------------------------------------


def test_steps_to_paste_are_valid(tmp_path: Path) -> None:
    """Every step in an advice goes through the recipe's schema."""
    write_rows(tmp_path / "d/train/0.parquet", [*SOUND, SOUND[0], SOUND[1] | {"chosen": "x"}])
    write_rows(tmp_path / "d/test/0.parquet", SOUND[:9])
    findings = lint(measure(target_of(str(tmp_path / "d"))))
    steps = [part for f in findings for part in f.advice.split("`")[1::2] if part.startswith("- ")]
    assert len(steps) >= 4
    for step in steps:
        DataStep.model_validate(yaml.safe_load(step)[0])


def test_the_grave_ones_come_first_and_json_holds_all(tmp_path: Path) -> None:
    write_rows(tmp_path / "d/train/0.parquet", [*SOUND, SOUND[0]])
    write_rows(tmp_path / "d/test/0.parquet", SOUND[:9])
    result = cli(tmp_path / "d", "--json", tmp_path / "new/lint.json", "--html", tmp_path / "new/lint.html")
    saved: dict[str, Any] = json.loads((tmp_path / "new/lint.json").read_text())
    order = [f["severity"] for f in saved["findings"]]
    assert order == sorted(order, key=["error", "warning", "note"].index) and order[0] == "error"
    assert saved["findings"] == as_json(lint(measure(target_of(str(tmp_path / "d")))))
    assert set(saved["findings"][0]) == {
        "severity",
        "check",
        "split",
        "what",
        "count",
        "total",
        "example",
        "advice",
        "share",
    }
    for finding in saved["findings"]:
        assert finding["what"] in result.output and finding["advice"] in result.output
        assert finding["example"] is None or finding["example"] in result.output


def test_hh_as_it_was_published() -> None:
    """What reading the file by hand shows: 5 rows of unequal prompts, 4 of an empty answer, `:-(` as an answer."""
    findings = lint(measure(target_of(real("hh_rlhf/harmless-base_test.jsonl.gz"))))
    aside = {f.what.split(": ", 1)[1]: f.count for f in findings if f.check == "set_aside"}
    assert aside["rejected: does not share chosen's prompt"] == 5
    assert sum(aside.values()) == 9
    by_check = {f.check: f for f in findings}
    assert '":-("' in by_check["texts_no_words"].what
    assert "shorter" in by_check["length_bias"].what and by_check["length_bias"].severity == "note"
    assert all(f.severity != "error" for f in findings)
