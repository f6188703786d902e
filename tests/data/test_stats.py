"""`rlhf data stats`: what is measured of files, folders and recipes, against the file itself read another way."""

from __future__ import annotations

import gzip
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.data.build import build
from rlhf.data.rows import Located
from rlhf.data.stats.chunk import characters, chunks
from rlhf.data.stats.inputs import Target, target_of
from rlhf.data.stats.labels import Labels
from rlhf.data.stats.measure import Counting, measure
from rlhf.data.stats.page import render
from rlhf.data.stats.texts import Texts
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.schema import RECIPE, row_kinds
from rlhf.recipe.sections import DataSection, TemplateSection
from rlhf.tokens.dataset import tokenize
from rlhf.tokens.lengths import TokenLengths
from tests.data.support import lines, real
from tests.tiny import tiny_tokenizer

PAIRS = [
    {"prompt": "What is it?", "chosen": "a good film", "rejected": "bad"},
    {"prompt": "what  is it?", "chosen": "yes", "rejected": "no!!!", "margin": 2.0},
    {"prompt": "무엇입니까?", "chosen": "a film", "rejected": "좋은 영화"},
]


def stats(path: str, *overrides: str) -> dict[str, Any]:
    return measure(target_of(path, overrides))


def recipe_file(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_file_against_a_table_made_by_hand(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [*PAIRS, {"prompt": "p", "chosen": "same", "rejected": "same"}])
    report = stats(path)
    split = report["splits"]["all"]
    assert (report["unit"], split["rows_in"], split["rows"], split["kinds"]) == ("characters", 4, 3, {"preference": 3})
    assert split["dropped"] == {"rejected: is equal to chosen": {"rows": 1, "example": f"{path}:4"}}
    lengths = split["lengths"]
    assert [lengths["chosen"][k] for k in ("count", "mean", "p50", "max")] == [3, 20 / 3, 6, 11]
    assert lengths["rejected"]["longest"] == f"{path}:2"
    assert lengths["row"]["max"] == 22  # 11 + 11, of row 1
    assert split["length_bias"]["longer_wins"]["value"] == pytest.approx(2 / 3)
    assert split["repeats"]["prompts"]["distinct"] == 3  # exactly; `leakage` alone folds case and space
    assert split["scripts"]["different"] == {"rows": 1, "example": f"{path}:3", "by": {"Hangul to Latin": 1}}
    assert split["labels"]["margins"]["count"] == 1 and split["labels"]["margins"]["p50"] == 2.0
    assert report["leakage"] == {} and split["over_length"] is None


def test_hh_against_the_file_itself() -> None:
    path = real("hh_rlhf/harmless-base_test.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    cut = [[r[k].rpartition("\n\nAssistant:") for k in ("chosen", "rejected")] for r in rows]
    good = [(c, r) for c, r in cut if c[0] == r[0] and c[2].strip() and r[2].strip() and c[2] != r[2]]
    chosen, rejected = (np.array([len(pair[k][2]) for pair in good]) for k in (0, 1))
    split = stats(path)["splits"]["all"]
    assert (split["rows_in"], split["rows"]) == (len(rows), len(good))
    for side, sizes in (("chosen", chosen), ("rejected", rejected)):
        d = split["lengths"][side]
        assert (d["count"], d["max"], d["mean"]) == (len(good), sizes.max(), pytest.approx(sizes.mean()))
        for key, share in (("p50", 50), ("p95", 95), ("p99", 99)):
            assert d[key] == np.percentile(sizes, share, method="inverted_cdf")
    bias = split["length_bias"]
    assert bias["longer_wins"]["value"] == pytest.approx((chosen > rejected)[chosen != rejected].mean())
    assert bias["ties"] == (chosen == rejected).sum()
    assert split["repeats"]["prompts"]["repeats"] == len(good) - len({c[0] for c, _ in good})


def test_a_built_folder_is_measured_by_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(40)]
    out = tmp_path / "out"
    data = {"method": "data", "output_dir": str(out), "sources": [{"path": lines(tmp_path / "r.jsonl", rows)}]}
    build(RECIPE.validate_python(data | {"steps": [{"split": {"test": 0.3}}]}))  # type: ignore[arg-type]
    report = stats(str(out))
    assert report["built"] and list(report["splits"]) == ["train", "test"]
    assert sum(split["rows"] for split in report["splits"].values()) == 40
    assert report["leakage"] == {"train/test": {"prompts": 0, "rows": 0, "share": 0.0, "examples": []}}
    assert list(stats(str(out), "split=test")["splits"]) == ["test"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/0.parquet", "validation/0.parquet"], ["train", "validation"]),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/odd-00000-of-00001.parquet"], ["train", "odd"]),
        (["test.parquet", "train.parquet"], ["train", "test"]),
        (["0000.parquet"], ["all"]),
    ],
)  # fmt: skip
def test_the_splits_of_a_folder(tmp_path: Path, names: list[str], splits: list[str]) -> None:
    from rlhf.data.parquet_rows import write_rows

    for name in names:
        write_rows(tmp_path / "d" / name, [{"prompt": name, "completion": "yes"}])
    report = stats(str(tmp_path / "d"))
    assert list(report["splits"]) == splits
    assert sum(s["rows"] for s in report["splits"].values()) == len(names)


def test_keys_of_a_source_on_the_command_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"q": "why", "a": "so"}, {"q": "who", "a": "me"}])
    report = stats(path, "format=demonstration", "columns.prompt=q", "columns.completion=a", "max_rows=1")
    assert report["splits"]["all"]["kinds"] == {"demonstration": 1}
    with pytest.raises(RecipeError, match="fromat"):
        target_of(path, ["fromat=hh"])
    with pytest.raises(RecipeError, match="key=value"):
        target_of(path, ["hh"])
    with pytest.raises(DataError, match="no such file"):
        stats(str(tmp_path / "nothing.jsonl"))


def test_recipes_name_their_splits(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", PAIRS)
    ppo = f"""method: ppo
output_dir: o
model: {{name_or_path: m}}
data: {{train: [{{path: {path}}}], eval: [{{path: {path}}}], max_length: 100}}
ppo: {{sampling: {{max_new_tokens: 30}}, rewards: [{{callable: "m:f"}}]}}
"""
    target = target_of(recipe_file(tmp_path / "ppo.yaml", ppo), ["data.on_overflow=drop"])
    assert (list(target.splits), target.max_length, target.on_overflow) == (["train", "eval"], 70, "drop")
    report = measure(target)
    assert report["splits"]["train"]["kinds"] == {"preference": 3}
    assert report["splits"]["train"]["converted"] == {"preference -> prompt": 3}
    assert set(report["splits"]["train"]["lengths"]) == {"prompt", "row"}
    assert report["leakage"]["train/eval"]["rows"] == 3
    data = target_of(recipe_file(tmp_path / "d.yaml", f"method: data\noutput_dir: o\nsources: [{{path: {path}}}]\n"))
    assert list(data.splits) == ["all"] and data.method is None


@pytest.mark.parametrize(
    "template", [TemplateSection(), TemplateSection(kind="chat"), TemplateSection(prompt="Q: {prompt} A:")]
)
def test_tokens_are_those_of_training(tmp_path: Path, template: TemplateSection) -> None:
    path = lines(tmp_path / "r.jsonl", PAIRS)
    data = DataSection(train=[{"path": path}], template=template, max_length=30, on_overflow="drop")  # type: ignore[list-item]
    trained = tokenize(data, tiny_tokenizer(), row_kinds("dpo"), seed=0)
    target = Target("t", {"train": data.train}, method="dpo", max_length=30, on_overflow="drop", template=template)
    split = measure(target, Counting(TokenLengths(tiny_tokenizer(), template), "tokens", "tiny"))["splits"]["train"]
    assert split["rows"] - split["over_length"]["rows"] == len(trained.segments)
    everything = tokenize(data.model_copy(update={"max_length": 10_000}), tiny_tokenizer(), row_kinds("dpo"), seed=0)
    segments = [everything.segments[i] for i in range(len(everything.segments))]
    assert split["lengths"]["prompt"]["mean"] == np.mean([len(s.prompt_ids) for s in segments])
    for k, side in enumerate(("chosen", "rejected")):
        assert split["lengths"][side]["mean"] == np.mean([len(s.completion_ids[k]) for s in segments])
    longest = max(len(s.prompt_ids) + max(map(len, s.completion_ids)) for s in segments)
    assert split["lengths"]["row"]["max"] == split["over_length"]["longest"] == longest


def test_rows_that_the_template_refuses_are_counted(tmp_path: Path) -> None:
    chat = {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}
    path = lines(tmp_path / "r.jsonl", [chat, chat])
    target = Target("t", target_of(path).splits, method="sft", template=TemplateSection(kind="plain"))
    split = measure(target, Counting(TokenLengths(tiny_tokenizer(), TemplateSection(kind="plain")), "tokens", "tiny"))[
        "splits"
    ]["all"]
    assert split["refused_by_template"] == {"rows": 2, "example": f"{path}:1"} and split["lengths"] == {}
    as_chat = measure(target, Counting(TokenLengths(tiny_tokenizer(), None), "tokens", "tiny"))["splits"]["all"]
    assert as_chat["refused_by_template"]["rows"] == 0 and as_chat["lengths"]["completion"]["p50"] >= 2


def test_sft_trains_on_the_good_ones_of_unpaired_rows(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "r.jsonl", [{"prompt": f"p{i}", "completion": "a" * (i + 1), "label": i < 2} for i in range(5)]
    )
    split = measure(Target("t", target_of(path, ["format=unpaired"]).splits, method="sft"))["splits"]["all"]
    assert (split["rows_in"], split["rows"], split["kinds"]) == (5, 2, {"unpaired": 5})
    assert (split["converted"], split["lengths"]["completion"]["max"]) == ({"unpaired -> demonstration": 2}, 2)
    data = DataSection(train=[{"path": path, "format": "unpaired"}])  # type: ignore[list-item]
    trained = tokenize(data, tiny_tokenizer(), row_kinds("sft"), seed=0).report
    assert (
        trained["rows_out"] == 2 and {reason: d["rows"] for reason, d in split["dropped"].items()} == trained["dropped"]
    )


# --- labels and texts -------------------------------------------------------------------------------------------------


def fed(accumulator: Any, rows: list[dict]) -> dict[str, Any]:
    for chunk in chunks([Located("f", i, row) for i, row in enumerate(rows, 1)], characters, 4):
        accumulator.add(chunk)
    return accumulator.report()


def test_labels() -> None:
    cycle = {"prompt": "p", "completions": ["a", "b", "b"], "ranking": [1, 2, 0]}
    tied = {"prompt": "p", "completions": ["a", "b"], "scores": [1.0, 1.0]}
    scored = {"prompt": "p", "completions": ["a", "b"], "scores": [3.0, 1.0]}
    unpaired = [{"prompt": "p", "completion": "a", "label": i < 3} for i in range(4)]
    alike = {"prompt": "p", "chosen": "A  b", "rejected": "a b", "margin": 0.0}
    report = fed(Labels(), [cycle, cycle, tied, scored, *unpaired, alike])
    rankings = report["rankings"]
    assert [p["count"] for p in rankings["best"]["3"]] == [0, 2, 0]  # read as ranks it would be completion 2
    assert [p["count"] for p in rankings["best"]["2"]] == [1, 0]
    assert (rankings["count"], rankings["with_ties"], rankings["best_tied"]) == (4, 1, 1)
    assert rankings["equal_texts"] == {"rows": 2, "example": "f:1"}
    assert report["unpaired"] == {"true": {"count": 3, "share": 0.75}, "false": {"count": 1, "share": 0.25}}
    assert report["nearly_identical"] == {"rows": 1, "example": "f:9"}
    margins = report["margins"]
    assert (margins["count"], margins["zero"], margins["max"], sum(margins["histogram"]["counts"])) == (3, 2, 2.0, 3)


@pytest.mark.parametrize(
    ("flaw", "wrong", "right"),
    [
        ("no_words", " ...\n", " ok."),
        ("template", "Fine.\n### Response: ok", "### A heading"),
        ("template", "Fine.<|im_end|>", "a <| b"),
        ("template", "Yes.\nHuman: and you?", "The Human: a film"),
        ("template", "Done.</s>", "</s> closes a strike-through"),
        ("ai_disclaimer", "Well, as an AI language model, I cannot", "I cannot say what AI is"),
        ("ai_disclaimer", "저는 인공지능이라서 모릅니다", "인공지능은 어렵다"),
        ("html", "<p>So</p>", "if a <b and c> d"),
        ("literal_newline", "one\\ntwo", "print('one\\n')\n"),
        ("replacement_character", "caf\ufffd", "café"),
        ("special_tokens", "he said [STOP]", "he said STOP"),
    ],
)
def test_texts(flaw: str, wrong: str, right: str) -> None:
    report = fed(Texts(["[STOP]"]), [{"prompt": "p", "chosen": wrong, "rejected": right}] * 2)[flaw]
    assert (report["rows"], report["by_side"], report["example"]) == (2, {"chosen": 2}, "f:1")
    assert report["excerpt"] in wrong


def test_an_alpaca_prompt_is_no_leak() -> None:
    report = fed(Texts(), [{"prompt": "### Instruction:\nSay hi\n\n### Response:\n", "completion": "hi"}])
    assert all(found["rows"] == 0 for found in report.values())


# --- the command and the page -----------------------------------------------------------------------------------------


class Outside(HTMLParser):
    """What a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.found += [f"{k}={v}" for k, v in attrs if k in ("src", "href") and not (v or "").startswith("#")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = [{"prompt": f"p{i}", "chosen": f"{evil} a{i}" * (i + 1), "rejected": f"b{i}", "margin": i} for i in range(9)]
    path = lines(tmp_path / f"{evil.replace('/', '')}.jsonl", rows)
    report = stats(path)
    from rlhf.data.lint.findings import as_json, lint

    page = render(report | {"findings": as_json(lint(report))})
    parser = Outside()
    parser.feed(page)
    assert parser.found == [] and "url(http" not in page
    assert page.count("<svg") == 4  # lengths, difference, margins, scripts
    assert any("longer wins: 100.0%" in text for text in parser.texts)


def test_the_command(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", PAIRS)
    arguments = ["data", "stats", path, "--json", str(tmp_path / "s.json"), "--html", str(tmp_path / "s.html")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})  # no path is too long for a line
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert f"{path}:2" in "".join(result.output.split())  # a long path is broken over lines
    saved = json.loads((tmp_path / "s.json").read_text())
    assert saved == json.loads(json.dumps(stats(path)))
    assert (tmp_path / "s.html").read_text().startswith("<!doctype html>")
    assert CliRunner().invoke(app, ["data", "stats", path, "--max-length", "9"]).exit_code == 2


def test_one_is_not_said_in_the_plural(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", PAIRS[:1])
    said = CliRunner().invoke(app, ["data", "stats", path], env={"COLUMNS": "1000"}).output
    assert "all: 1 row " in said and "1 different, 0 repeats" in said
    assert "1 times" not in said and "1 repeat," not in said
