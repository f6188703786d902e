"""The journal: what was written is there again, whatever the moment at which writing stopped; what was not is not."""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import RlhfError
from rlhf.generation.text_engine import Answer
from rlhf.synthesis.journal import Journal, _line, digest_of

HEADER = {"step": "generate", "seed": 0}
TEXTS = st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=2)


def answer(*texts: str, **more: object) -> Answer:
    return Answer(list(texts), [True] * len(texts), 3, 4, **more)  # type: ignore[arg-type]


def filled(path: Path, count: int, header: dict[str, object] = HEADER) -> None:
    with Journal(path, header) as journal:
        for i in range(count):
            journal.add(f"{i}/0/d{i}", answer(f"text {i}\n둘째 줄\u2028"))


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_what_was_added_is_there_again(tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("j") / "step-1.jsonl"
    with Journal(path, HEADER) as journal:
        for i, given_texts in enumerate(texts):
            journal.add(f"{i}/a.{i % 2}/x", answer(*given_texts, retries=i))
            assert journal.get(i, f"a.{i % 2}") == answer(*given_texts, retries=i)
    with Journal(path, HEADER) as journal:
        assert journal.kept == len(texts)
        for i, given_texts in enumerate(texts):
            assert journal.get(i, f"a.{i % 2}", f"{i}/a.{i % 2}/x") == answer(*given_texts, retries=i)
            assert journal.get(i, f"a.{(i + 1) % 2}") is None
        assert journal.get(len(texts), "a.0") is None


def test_another_request_in_the_same_place_is_not_answered_by_it(tmp_path: Path) -> None:
    path = tmp_path / "step-1.jsonl"
    filled(path, 3)
    with Journal(path, HEADER) as journal:
        assert journal.get(1, "0", "1/0/other") is None
        journal.add("1/0/other", answer("new"))
        assert journal.get(1, "0") == answer("new")
    with Journal(path, HEADER) as journal:
        assert journal.get(1, "0", "1/0/other") == answer("new")  # the later of the two lines
        assert journal.get(1, "0", "1/0/d1") is None


def test_cut_off_anywhere_the_whole_lines_are_kept_and_writing_goes_on(tmp_path: Path) -> None:
    whole_path = tmp_path / "whole.jsonl"
    filled(whole_path, 4)
    whole = whole_path.read_bytes()
    header_end = whole.index(b"\n") + 1
    for cut in range(header_end, len(whole) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:cut])
        lines = whole[:cut].count(b"\n") - 1
        with Journal(path, HEADER) as journal:
            assert (journal.kept, journal.damaged) == (lines, 0)
            journal.add("9/0/d", answer("after"))
        with Journal(path, HEADER) as journal:
            assert (journal.kept, journal.damaged) == (lines + 1, 0)
            assert journal.get(9, "0") == answer("after")
            assert (journal.get(lines - 1, "0") if lines else None) == (
                answer(f"text {lines - 1}\n둘째 줄\u2028") if lines else None
            )


def test_a_header_cut_off_is_not_taken_for_another_recipe(tmp_path: Path) -> None:
    path = tmp_path / "step-1.jsonl"
    filled(path, 0)
    path.write_bytes(path.read_bytes()[:-9])
    said: list[str] = []
    with Journal(path, HEADER, said.append) as journal:
        journal.add("0/0/d", answer("x"))
    assert "cannot be read" in said[0]
    with Journal(path, HEADER) as journal:
        assert journal.kept == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"text 1", b"tExt 1"),  # what the model said, still JSON
        (b'"texts": ["', b'"texts": [3, "'),
        (b'"1/0/d1"', b'"-1/0/d1"'),
        (b'"1/0/d1"', b'"3/0/d1"'),
        (b'"ended": [true]', b'"ended": null'),
        (b"{", b"\xff"),
        (b"text 1", b"\n"),
        (b'"sum"', b'"som"'),
    ],
)
def test_a_damaged_line_is_counted_passed_over_and_asked_again(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "step-1.jsonl"
    filled(path, 6)
    lines = path.read_bytes().split(b"\n")
    assert old in lines[2]
    lines[2] = lines[2].replace(old, new, 1)
    path.write_bytes(b"\n".join(lines))
    said: list[str] = []
    with Journal(path, HEADER, said.append) as journal:
        assert journal.kept == 5 and journal.damaged >= 1
        assert [i for i in range(6) if journal.get(i, "0") is None] == [1]
    assert "damaged lines are left out" in said[0]


def test_a_line_of_another_journal_is_not_taken(tmp_path: Path) -> None:
    path, other = tmp_path / "step-1.jsonl", tmp_path / "step-2.jsonl"
    filled(path, 2)
    filled(other, 4, {**HEADER, "seed": 1})
    path.write_bytes(path.read_bytes() + other.read_bytes().split(b"\n")[4] + b"\n")
    with Journal(path, HEADER) as journal:
        assert (journal.kept, journal.damaged) == (2, 1)


def test_a_damaged_header_loses_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "step-1.jsonl"
    filled(path, 5)
    path.write_bytes(b"#" + path.read_bytes()[1:])
    said: list[str] = []
    with Journal(path, HEADER, said.append) as journal:
        assert (journal.kept, journal.damaged) == (5, 0)
        journal.add("5/0/d5", answer("more"))
    assert "its first line cannot be read; kept as step-1.unreadable.jsonl; 5 of its answers are used" in said[0]
    with Journal(path, HEADER) as journal:
        assert journal.kept == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1.jsonl", "step-1.lock", "step-1.unreadable.jsonl"]


def test_a_step_finds_its_answers_under_another_number(tmp_path: Path) -> None:
    filled(tmp_path / "step-1.jsonl", 3)
    filled(tmp_path / "step-2.jsonl", 2, {**HEADER, "seed": 1})
    with Journal(tmp_path / "step-2.jsonl", HEADER, kin="step-*.jsonl") as journal:
        assert journal.kept == 3
    with Journal(tmp_path / "step-3.jsonl", {**HEADER, "seed": 1}, kin="step-*.jsonl") as journal:
        assert journal.kept == 2
    with Journal(tmp_path / "step-4.jsonl", HEADER) as journal:  # a user's own file takes no other's answers
        assert journal.kept == 0


def test_other_settings_start_anew_keep_the_old_and_find_it_again(tmp_path: Path) -> None:
    path = tmp_path / "step-1.jsonl"
    filled(path, 3)
    said: list[str] = []
    with Journal(path, {**HEADER, "seed": 1}, said.append) as journal:
        assert journal.kept == 0
        journal.add("0/0/d", answer("seed 1"))
    assert "kept as step-1." in said[0]
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    with Journal(path, HEADER, said.append) as journal:
        assert journal.kept == 3
    assert "goes on from" in said[2]
    with Journal(path, {**HEADER, "seed": 1}) as journal:
        assert journal.get(0, "0") == answer("seed 1")


def test_what_failed_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "step-1.jsonl"
    failed = Answer([], [], 0, 0, 5, "HTTP 500")
    with Journal(path, HEADER) as journal:
        journal.add("0/0/d", failed)
        assert journal.get(0, "0") == failed
    with Journal(path, HEADER) as journal:
        assert journal.get(0, "0") is None


def test_lone_surrogates_do_not_break_the_file(tmp_path: Path) -> None:
    path = tmp_path / "step-1.jsonl"
    with Journal(path, HEADER) as journal:
        journal.add("0/0/d", answer("a\ud83d b \ud83d\ude00", error=None))
        assert journal.get(0, "0") == answer("a\ufffd b 😀")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "step-1.jsonl"
    with Journal(path, HEADER), pytest.raises(RlhfError, match="another run is writing"):
        Journal(path, HEADER).__enter__()
    with Journal(path, HEADER):
        pass


def _fill_until_full(path: str, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        filled(Path(path), 100)
    except RlhfError as error:
        queue.put(str(error))


def test_no_room_is_said_and_what_was_written_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "step-1.jsonl"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_fill_until_full, args=(str(path), queue))
    child.start()
    message = queue.get(timeout=30)
    child.join()
    assert path.stat().st_size <= 5000
    with Journal(path, HEADER) as journal:
        assert 20 < journal.kept < 100
        assert f"the {journal.kept} answers so far are kept" in message
        assert "run the same command again" in message
        assert journal.damaged == 0
        assert all(journal.get(i, "0") == answer(f"text {i}\n둘째 줄\u2028") for i in range(journal.kept))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RlhfError, match="cannot be written"):
        Journal(tmp_path / "file" / "step-1.jsonl", HEADER).__enter__()


def test_a_hundred_thousand_answers_cost_no_memory_to_speak_of(tmp_path: Path) -> None:
    path = tmp_path / "step-1.jsonl"
    filled(path, 1)
    with path.open("ab") as file:
        for i in range(1, 100_000):
            file.write(_line(f"{i}/0/d{i}", answer("text 0\n둘째 줄\u2028"), digest_of(HEADER)))
    tracemalloc.start()
    with Journal(path, HEADER) as journal:
        assert journal.kept == 100_000
        assert journal.get(99_999, "0", "99999/0/d99999") == answer("text 0\n둘째 줄\u2028")
        held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3_000_000, (held, most)
    assert json.loads(path.open().readline())["step"] == "generate"
