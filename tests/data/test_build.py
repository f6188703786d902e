"""The whole build: the folder, the balance, and that others can read what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.build import build
from rlhf.data.parquet_rows import write_rows
from rlhf.data.split import held_out, places
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.schema import DataRecipe
from tests.data.support import lines, load_one, real

MESSAGES = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Yes", "rejected": "No"}


def make(out: Path, sources: Any, *steps: dict, seed: int = 0) -> dict[str, Any]:
    sources = [{"path": str(s)} if isinstance(s, str | Path) else s for s in sources]
    recipe = {"method": "data", "output_dir": str(out), "seed": seed, "sources": sources, "steps": list(steps)}
    return build(DataRecipe.model_validate(recipe))


def read(out: Path, side: str = "train") -> list[dict[str, Any]]:
    return [row for path in sorted((out / side).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ranking(i: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"prompt {i}", "completions": ["a", "b", "c"], "scores": [3.0, 2.0, 2.0]} | more


def balanced(report: dict[str, Any]) -> None:
    assert report["rows_in"] + report["expanded"] == report["rows_out"] + sum(report["dropped"].values())
    assert report["rows_out"] == sum(report["splits"].values())
    for source in report["sources"]:
        assert source["rows_in"] == source["rows_out"] + sum(source["dropped"].values())
    for step in report["steps"]:
        if step["step"] == "pairs":
            assert step["rankings_in"] == step["rankings_with_pairs"] + sum(step["rankings_without_pairs"].values())
            assert step["candidate_pairs"] == step["pairs_out"] + sum(step["dropped_pairs"].values())
        else:
            assert step["rows_in"] == step["rows_out"] + sum(step["dropped"].values())


def test_the_folder_and_its_report(tmp_path: Path) -> None:
    source = tmp_path / "r.jsonl"
    lines(source, [*(ranking(i) for i in range(20)), ranking(0), ranking(21, scores=[1, 1, 1]), {"prompt": "x"}])
    source.write_text(source.read_text() + "not json\n")
    out = tmp_path / "out"
    steps = [{"dedup": {}}, {"pairs": {}}, {"split": {"test": 0.3}}]
    report = make(out, [source], *steps)
    balanced(report)
    assert report == json.loads((out / "report.json").read_text())
    assert report["rows_in"] == 24
    assert report["dropped"] == {
        "completions: is missing": 1,
        "not JSON": 1,
        "duplicate": 1,
        "ranking without pairs: tie": 1,
    }
    pairs = report["steps"][1]
    assert (pairs["rankings_in"], pairs["pairs_out"]) == (21, 40)
    assert pairs["dropped_pairs"] == {"tie": 20 + 3}
    assert jsonl(out / "quarantine.jsonl") == [
        {"file": str(source), "row": 24, "field": None, "reason": "not JSON: Expecting value (column 1)"},
        {"file": str(source), "row": 23, "field": "completions", "reason": "is missing"},
    ]
    (removed,) = jsonl(out / "removed.jsonl")
    assert (removed["row"], removed["text"], removed["jaccard"]) == (21, "prompt 0", 1.0)
    assert removed["witness"] == {"file": str(source), "row": 1, "text": "prompt 0"}
    train, test = read(out), read(out, "test")
    assert len(train) + len(test) == 40
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    assert set(train[0]) == {"prompt", "chosen", "rejected", "margin"}
    assert train[0]["margin"] == 1.0


def test_running_again_replaces_and_a_failed_build_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    many = lines(tmp_path / "many.jsonl", [ranking(i) for i in range(9)])
    make(out, [many], {"dedup": {}}, {"split": {"test": 0.5}})
    assert {p.name for p in out.iterdir()} == {"train", "test", "quarantine.jsonl", "removed.jsonl", "report.json"}
    few = lines(tmp_path / "few.jsonl", [ranking(1)])
    make(out, [few])
    assert {p.name for p in out.iterdir()} == {"train", "quarantine.jsonl", "report.json"}
    before = (out / "report.json").read_bytes()
    with pytest.raises(DataError):
        make(out, [lines(tmp_path / "bad.jsonl", [ranking(1, scores=[1])])])
    with pytest.raises(DataError, match="two different prompts"):
        make(out, [few], {"split": {}})
    assert (out / "report.json").read_bytes() == before
    assert len(read(out)) == 1


def test_what_was_built_is_read_back_the_same(tmp_path: Path) -> None:
    sources = {
        "preference": [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.5}, {"prompt": "q", "chosen": "a", "rejected": "b"}],
        "conversation": [MESSAGES],
        "order": [{"prompt": "p", "completions": ["a", "b"], "ranking": [1, 0]}],
        "scores": [ranking(1), {"prompt": "q", "completions": ["a", "b"], "ranking": [1, 0]}],
        "demonstration": [{"prompt": "p", "completion": "c"}],
        "prompt": [{"prompt": "p\u2028 줄"}],
    }  # fmt: skip
    for name, rows in sources.items():
        path = lines(tmp_path / f"{name}.jsonl", rows)
        make(tmp_path / name, [path])
        first, again = load_one(path), load_one(tmp_path / name)
        assert [r.data for r in again.rows] == [r.data for r in first.rows]
        assert again.quarantine.entries == []


@pytest.mark.parametrize("name", ["text", "messages"])
def test_datasets_and_trl_read_it(tmp_path: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [MESSAGES | {"prompt": [{"role": "user", "content": str(i)}]} for i in range(8)]
    if name == "text":
        rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(8)]
    # file and folder names that look like splits must not confuse the reader
    out = tmp_path / "test_train" / "out"
    make(out, [lines(tmp_path / "r.jsonl", rows)], {"split": {"test": 0.4}})
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    assert list(loaded["train"]) == read(out)
    trl = pytest.importorskip("trl.data_utils")
    example = loaded["train"][0]
    assert trl.is_conversational(example) == (name == "messages")
    assert trl.maybe_extract_prompt(example) == example


def test_kinds_do_not_mix(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", [ranking(1)])
    b = lines(tmp_path / "b.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y"}])
    c = lines(tmp_path / "c.jsonl", [MESSAGES])
    with pytest.raises(DataError, match=r"b\.jsonl:1: one folder holds rows of one kind: .*a\.jsonl has ranking rows"):
        make(tmp_path / "out", [a, b])
    with pytest.raises(DataError, match="preference rows of text, this is one of the preference rows of messages"):
        make(tmp_path / "out", [b, c])
    assert not (tmp_path / "out").exists()


def test_steps_that_do_not_fit(tmp_path: Path) -> None:
    pair = lines(tmp_path / "p.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y"}])
    order = lines(tmp_path / "o.jsonl", [{"prompt": "p", "completions": ["a", "b"], "ranking": [0, 1]}])
    out = tmp_path / "out"
    with pytest.raises(DataError, match="needs rankings, this is a preference row"):
        make(out, [pair], {"pairs": {}})
    with pytest.raises(DataError, match="only an order"):
        make(out, [order], {"pairs": {"min_margin": 1.0}})
    with pytest.raises(DataError, match="no such column; these rows have prompt, chosen, rejected"):
        make(out, [pair], {"dedup": {"column": "text"}})
    with pytest.raises(DataError, match="no such column"):
        make(out, [pair], {"split": {"by": "topic"}})
    with pytest.raises(DataError, match=r"no row is left after step 1.*tie"):
        make(out, [lines(tmp_path / "t.jsonl", [ranking(1, scores=[1, 1, 1])])], {"pairs": {}})
    with pytest.raises(RecipeError, match="split must be the last step"):
        make(out, [pair], {"split": {}}, {"dedup": {}})


def test_the_pairs_of_one_ranking_are_one_text_to_dedup(tmp_path: Path) -> None:
    """Dedup on the prompt takes repeated rankings out, not the pairs that pairs has just made."""
    path = lines(tmp_path / "r.jsonl", [ranking(1), ranking(2), ranking(1)])
    report = make(tmp_path / "out", [path, path], {"pairs": {}}, {"dedup": {}})
    balanced(report)
    assert [(r["prompt"], r["rejected"]) for r in read(tmp_path / "out")] == [
        ("prompt 1", "b"),
        ("prompt 1", "c"),
        ("prompt 2", "b"),
        ("prompt 2", "c"),
    ]
    assert report["dropped"] == {"duplicate": 8}
    assert len(jsonl(tmp_path / "out" / "removed.jsonl")) == 8


def test_the_reports_table_names_sources_and_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "out", [lines(tmp_path / "[x].jsonl", [ranking(1)])], {"pairs": {}})
    shown = capsys.readouterr().out
    assert "pairs" in shown and "1 tie" in shown


def sides(keys: list[str], share: float, seed: int) -> set[str]:
    """The keys that go to test."""
    return {key for key, is_test in zip(keys, held_out(places(keys, seed), share), strict=True) if is_test}


@given(st.sets(st.text(max_size=5), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_split_is_stable(keys: set[str], share: float, seed: int) -> None:
    keys_in_order = sorted(keys)
    test = sides(keys_in_order, share, seed)
    assert 0 < len(test) < len(keys)
    assert test == sides(keys_in_order[::-1] * 2, share, seed), "neither order nor repetition matters"


def test_added_rows_move_nobody_and_the_share_is_kept() -> None:
    keys = [f"prompt {i}" for i in range(4000)]
    test = sides(keys, 0.1, seed=1)
    assert sides(keys + [f"new {i}" for i in range(4000)], 0.1, seed=1) & set(keys) == test
    assert 300 < len(test) < 500
    assert sides(keys, 0.1, seed=2) != test


_rankings = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["p", "q", "r", "", "the same long prompt, nearly", "the same long prompt nearly!"]),
        "completions": st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=4),
    },
    optional={"scores": st.lists(st.integers(0, 2), min_size=1, max_size=4), "ranking": st.permutations(range(3))},
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(_rankings, max_size=10),
    pairs=st.fixed_dictionaries(
        {
            "strategy": st.sampled_from(["all", "best_vs_rest", "best_vs_worst", "adjacent"]),
            "ties": st.sampled_from(["drop", "both"]),
            "max_pairs_per_prompt": st.none() | st.integers(1, 3),
        }
    ),
    steps=st.permutations(["pairs", "exact", "datasketch"]).flatmap(lambda p: st.integers(0, 3).map(lambda n: p[:n])),
    split=st.booleans(),
)
def test_the_balance_always_holds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict], pairs: dict, steps: list[str], split: bool
) -> None:
    folder = tmp_path_factory.mktemp("p")
    path = lines(folder / "r.jsonl", [*rows, ranking(1), ranking(2), "bad"])
    recipe = [{"pairs": pairs} if s == "pairs" else {"dedup": {"engine": s, "threshold": 0.7}} for s in steps]
    report = make(folder / "out", [path], *recipe, *([{"split": {"test": 0.5}}] if split else []))
    balanced(report)
    assert report["rows_in"] == len(rows) + 3
    assert sum(len(read(folder / "out", side)) for side in report["splits"]) == report["rows_out"]
    quarantined = jsonl(folder / "out" / "quarantine.jsonl")
    assert len(quarantined) == report["rows_in"] - report["sources"][0]["rows_out"]
    assert all(e["file"] and e["row"] and e["reason"] for e in quarantined)


def test_write_rows_keeps_a_kinds_schema(tmp_path: Path) -> None:
    """Rows of `rlhf generate` without scorers: completions alone."""
    write_rows(tmp_path / "train" / "0.parquet", [{"prompt": "p", "completions": ["a"]}])
    table = pq.read_table(tmp_path / "train" / "0.parquet")
    assert [str(t) for t in table.schema.types] == ["string", "list<element: string>"]


def test_real_rankings_with_both_kochatgpt_strategies(tmp_path: Path) -> None:
    path = real("ko_rankings/kochatgpt_2_RM.derived.json")
    for strategy, each in (("all", 3), ("best_vs_rest", 2)):
        report = make(tmp_path / strategy, [path], {"pairs": {"strategy": strategy}}, {"split": {}})
        balanced(report)
        assert report["rows_out"] == 677 * each
        assert set(report["splits"]) == {"train", "test"}
    best = {(r["prompt"], r["chosen"]) for r in read(tmp_path / "best_vs_rest")}
    rankings = load_one(path).rows
    by_prompt = {(r.data["prompt"], r.data["completions"][r.data["ranking"][0]]) for r in rankings}
    assert best <= by_prompt


def test_real_scores_and_real_dialogues(tmp_path: Path) -> None:
    options = {"min_margin": 0.5, "max_pairs_per_prompt": 5}
    report = make(tmp_path / "scored", [real("ko_rankings/scored.jsonl")], {"pairs": options}, {"split": {}})
    balanced(report)
    assert all(r["margin"] >= 0.5 for r in read(tmp_path / "scored"))
    report = make(tmp_path / "hh", [real("hh_rlhf/harmless-base_test.jsonl.gz")], {"dedup": {"engine": "exact"}})
    balanced(report)
    assert report["sources"][0]["dropped"]["rejected: does not share chosen's prompt"] == 5
    assert report["rows_out"] == len({r["prompt"] for r in read(tmp_path / "hh")})
