"""Stack Exchange: a site's dump, held against the pairs that were published of it."""

from __future__ import annotations

import gzip
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.formats.stack_exchange import score_of
from rlhf.errors import DataError, SetupError
from tests.data.support import load_one, read_all, read_in_a_process, real, refused

HEAD, TAIL = '<?xml version="1.0" encoding="utf-8"?>\n<posts>\n', "</posts>\n"


def post(**attributes: object) -> str:
    from xml.sax.saxutils import quoteattr

    return "  <row " + " ".join(f"{k}={quoteattr(str(v), {chr(10): '&#xA;'})}" for k, v in attributes.items()) + " />\n"


def question(number: int, accepted: int | None = None, **more: Any) -> str:
    extra = {} if accepted is None else {"AcceptedAnswerId": accepted}
    return post(
        Id=number, PostTypeId=1, Title=f"T{number}", Score=1, Body=f"<p>Q{number} &amp; <b>x</b></p>\n", **extra, **more
    )


def reply(number: int, parent: int, score: object = 0, body: str = "<p>A{}</p>") -> str:
    return post(Id=number, PostTypeId=2, ParentId=parent, Score=score, Body=body.format(number))


def dump(path: Path, *posts: str, bom: bool = True) -> Path:
    text = HEAD + "".join(posts) + TAIL
    data = text.encode("utf-8-sig" if bom else "utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(
    ("votes", "accepted", "score"),
    [(-1, False, -1), (-9, True, -1), (0, False, 0), (0, True, 1), (1, False, 1), (2, False, 2), (4, False, 2), (5, False, 3), (15, True, 5), (1000, False, 10)],
)  # fmt: skip
def test_the_score(votes: int, accepted: bool, score: int) -> None:
    """By hand: log2(1 + votes) is 0, 1, 1.58, 2.32, 2.58, 4, 9.97."""
    assert score_of(votes, accepted) == score


@pytest.mark.parametrize("name", ["Posts.xml", "Posts.xml.gz"])
def test_a_dump(tmp_path: Path, name: str) -> None:
    """Answers stand before and far from their questions."""
    posts = [reply(10, 2, 7), question(1, accepted=12), question(2), reply(12, 1, 0), reply(11, 1, 3), reply(13, 2, -1)]
    loaded = load_one(dump(tmp_path / name, *posts))
    first, second = loaded.rows
    assert first.data == {
        "prompt": "Question: Q1 & **x**\n\nAnswer: ",
        "completions": ["A11", "A12"],
        "scores": [2.0, 1.0],
    }
    assert second.data["scores"] == [3.0, -1.0]
    assert [(r.row, r.group) for r in loaded.rows] == [(2, "1"), (3, "2")]
    assert (loaded.sources[0]["format"], loaded.sources[0]["recognised"], loaded.dropped) == (
        "stack_exchange_dump",
        True,
        {},
    )
    titled = load_one(tmp_path / name, template="Question: {title}\n\n{question}\n\nAnswer: ")
    assert titled.rows[0].data["prompt"].startswith("Question: T1\n\nQ1")


def test_two_sites_do_not_share_their_questions(tmp_path: Path) -> None:
    for site in ("a", "b"):
        dump(tmp_path / f"{site}.xml", question(1), reply(2, 1), reply(3, 1))
    rows, _ = read_all(tmp_path / "*.xml")
    assert [r.data["qid"] for r in rows] == [1, 1] and len({r.group for r in rows}) == 2


def test_every_post_that_is_no_part_of_a_row_is_counted(tmp_path: Path) -> None:
    posts = [
        question(1),
        reply(2, 1),
        reply(3, 1),
        question(1),  # twice
        reply(4, 99),  # no such question
        post(Id=5, PostTypeId=5, Body="tag wiki"),
        reply(6, 1, score="many"),
        post(Id=7, PostTypeId=2, ParentId=1, Score=1),  # no body
        '  <row Id="8" PostTypeId="2" Body="&bad;" />\n',
        '  <row Id="9" PostTypeId="2" ParentId="1" Score="1" Body="\udcff" />\n',
        question(20),
        "  stray\n",
    ]
    loaded = load_one(dump(tmp_path / "Posts.xml", *posts))
    assert [r.data["completions"] for r in loaded.rows] == [["A2", "A3"]]
    assert loaded.dropped == {
        "Id: stands twice": 1,
        "ParentId: an answer without its question": 1,
        "PostTypeId: neither a question nor an answer": 1,
        "Score: must be a whole number": 1,
        "Body: is missing": 1,
        "not XML": 2,
        "answers: needs two answers at least": 1,
        "not a <row>": 1,
    }
    assert loaded.sources[0]["rows_in"] == 10
    assert {e["row"] for e in loaded.quarantine.entries if e["reason"].startswith("not XML")} == {9, 10}


def test_a_row_over_several_lines_and_a_dump_that_breaks_off(tmp_path: Path) -> None:
    posts = [
        question(1).replace(" Title", "\n Title"),
        *(reply(i, 1, body="<p>{} is long enough</p>") for i in range(2, 3000)),
    ]
    path = dump(tmp_path / "Posts.xml.gz", *posts)
    (located,) = read_all(path)[0]
    assert len(located.data["answers"]) == 2998 and located.data["title"] == "T1"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rows, quarantine = read_all(path)
    assert 100 < len(rows[0].data["answers"]) < 2900
    (entry,) = quarantine.entries
    assert "gzip stream ends too early" in entry["reason"] and quarantine.rows_in == 2


def test_what_is_no_dump(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text("<html><body/></html>")
    with pytest.raises(DataError, match=r"Posts\.xml of a Stack Exchange dump"):
        read_all(tmp_path / "x.xml")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf.data.formats import stack_exchange

    monkeypatch.setitem(sys.modules, "markdownify", None)
    stack_exchange._converter.cache_clear()
    with pytest.raises(SetupError, match=r"rlhf\[dump\]"):
        load_one(dump(tmp_path / "Posts.xml", question(1), reply(2, 1), reply(3, 1)))


def test_refusals() -> None:
    data = {"qid": 1, "question": "<p>q</p>"}
    two = [{"id": 2, "score": 1, "body": "<p>a</p>"}, {"id": 3, "score": 1, "body": "<p> </p>"}]
    assert refused("stack_exchange_dump", **data, answers=two) == ("answers", "is empty")
    assert refused("stack_exchange_dump", **data, answers=[{**a, "score": "x"} for a in two])[0] == "answers"
    deep = [two[0], {**two[0], "body": "<div>" * 5000 + "a"}]
    assert refused("stack_exchange_dump", **data, answers=deep) == ("answers", "nests its HTML too deeply")


@pytest.mark.parametrize("site", ["beer", "history_meta"])
def test_a_real_dump_agrees_with_the_pairs_made_of_it(site: str) -> None:
    """The published pairs go by votes alone, ours by the rounded logarithm and the asker's choice: where both see a difference, the sides agree.

    Every pair's question and both of its answers have to be here, and no question may be missing that has two answers of different score.
    """
    rows, _ = read_all(real(f"stackexchange/{site}_Posts.xml.gz"))
    of = {r.data["qid"]: r.data for r in rows}
    pairs = [
        json.loads(line)
        for line in gzip.decompress(Path(real(f"stackexchange/{site}_pairs.jsonl.gz")).read_bytes()).splitlines()
    ]
    agree = tied = by_choice = 0
    for pair in pairs:
        found = of[pair["qid"]]
        assert found["question"] == pair["question"] and found["title"] == pair["metadata"][0]
        sides = [next(a for a in found["answers"] if a["body"] == pair[f"response_{k}"]) for k in "jk"]
        assert [a["score"] for a in sides] == [pair["pm_score_j"], pair["pm_score_k"]]
        better, worse = (score_of(a["score"], a["id"] == found["accepted"]) for a in sides)
        agree, tied = agree + (better > worse), tied + (better == worse)
        if better < worse:  # only because the asker accepted the one with fewer votes
            assert sides[1]["id"] == found["accepted"]
            by_choice += 1
    assert agree + tied + by_choice == len(pairs)
    assert agree > 0.75 * len(pairs) and by_choice < 0.05 * len(pairs)
    theirs = {pair["qid"] for pair in pairs}
    by_votes = {q for q, d in of.items() if len({a["score"] for a in d["answers"]}) > 1}
    assert theirs <= by_votes
    assert by_votes - theirs == ({894} if site == "history_meta" else set()), "894 was asked by the site's own robot"


@pytest.mark.parametrize(("site", "questions"), [("beer", 410), ("history_meta", 287)])
def test_the_real_rankings(site: str, questions: int) -> None:
    loaded = load_one(real(f"stackexchange/{site}_Posts.xml.gz"))
    assert len(loaded.rows) == questions
    for located in loaded.rows:
        data = located.data
        assert data["prompt"].startswith("Question: ") and data["prompt"].endswith("\n\nAnswer: ")
        assert "<p>" not in data["prompt"] and len(data["completions"]) == len(data["scores"]) >= 2
    assert max(max(r.data["scores"]) for r in loaded.rows) <= math.log2(100) + 1


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    """60 MB of posts add less than 60 MB to the interpreter and its imports."""
    path = tmp_path / "Posts.xml"
    with path.open("w") as f:
        f.write(HEAD)
        for i in range(0, 30_000, 3):
            f.write(question(i + 1))
        for i in range(0, 30_000, 3):
            f.writelines((reply(i + 2, i + 1, body="<p>" + "long " * 1200 + "</p>"), reply(i + 3, i + 1)))
        f.write(TAIL)
    assert path.stat().st_size > 60e6
    rows, peak = read_in_a_process(path)
    assert rows == 10_000 and peak < 130_000, f"{peak} KiB"
