"""Rows are tokenised once: whoever comes second finds them, and whatever changes makes them anew."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from filelock import FileLock

from rlhf.errors import DataError, SetupError
from rlhf.recipe.schema import row_kinds
from rlhf.recipe.sections import DataSection, SourceSection, TemplateSection
from rlhf.runs import cache as disk
from rlhf.runs import identity
from rlhf.tokens import cache as token_cache
from rlhf.tokens import dataset
from rlhf.tokens.dataset import TokenizedRows, prompts, tokenize
from rlhf.tokens.sampler import Sampler
from tests.data.support import lines
from tests.tiny import tiny_tokenizer

PAIRS = [
    {"prompt": f"film {i}", "chosen": "good " * (i % 5 + 1), "rejected": "bad", "margin": i / 2} for i in range(40)
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_TOKENS", str(tmp_path / "tokens"))
    return tmp_path / "tokens"


def section(path: str, source: dict[str, Any] | None = None, **options: Any) -> DataSection:
    return DataSection(train=[SourceSection(path=path, **(source or {}))], **options)


def rows_of(data: DataSection, seed: int = 0) -> TokenizedRows:
    return tokenize(data, tiny_tokenizer(), row_kinds("dpo"), seed=seed)


def test_the_second_time_nothing_is_tokenised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = section(lines(tmp_path / "r.jsonl", PAIRS))
    first = rows_of(data)
    monkeypatch.setattr(dataset, "Renderer", lambda *a: pytest.fail("tokenised again"))
    again = rows_of(data)
    assert list(again.segments) == list(first.segments) and again.report == first.report
    assert [(r.file, r.row) for r in again.rows] == [(data.train[0].path, i + 1) for i in range(40)]
    assert again.fingerprint == first.fingerprint
    assert [s.margin for s in again.segments] == [i / 2 for i in range(40)]


def test_a_touched_file_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "r.jsonl", PAIRS)
    rows_of(section(path))
    os.utime(path, (1, 1))
    monkeypatch.setattr(dataset, "Renderer", lambda *a: pytest.fail("tokenised again"))
    assert len(rows_of(section(path)).segments) == 40


@pytest.mark.parametrize("package", ["data/formats", "tokens"])
def test_the_code_that_makes_rows_and_tokens_is_in_the_key(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that another version of a format made are not the same rows."""
    (tmp_path / package).mkdir(parents=True)
    monkeypatch.setattr(token_cache, "PACKAGES", tmp_path)
    hashes = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / package / "code.py").write_text(text)
        hashes.add(token_cache.code_of.__wrapped__("data", "tokens"))
    assert len(hashes) == 2


def test_every_setting_is_in_the_key(tmp_path: Path) -> None:
    """A cache that leaves one out trains on other rows than the recipe says."""
    path = lines(tmp_path / "r.jsonl", PAIRS)
    variants = [
        section(path),
        section(path, max_length=512),
        section(path, on_overflow="drop"),
        section(path, template=TemplateSection(kind="chat")),
        section(path, template=TemplateSection(prompt="Film: {prompt}")),
        section(path, template=TemplateSection(add_eos=False)),
        section(path, source={"max_rows": 39}),
        section(path, source={"weight": 0.5}),
        section(path, source={"columns": {"chosen": "rejected", "rejected": "chosen"}}),
        section(lines(tmp_path / "copy.jsonl", PAIRS)),
    ]
    for number, data in enumerate(variants, 1):
        rows_of(data)
        assert len(list(token_cache.entries())) == number
    rows_of(variants[7], seed=1)
    assert len(list(token_cache.entries())) == len(variants) + 1, "the seed draws the rows"
    tokenize(variants[0], tiny_tokenizer(), row_kinds("reward"), seed=0)
    prompts(variants[0].train, tiny_tokenizer(), TemplateSection(), seed=0)
    other = copy.deepcopy(tiny_tokenizer())
    other.add_tokens(["good"])
    tokenize(variants[0], other, row_kinds("dpo"), seed=0)
    assert len(list(token_cache.entries())) == len(variants) + 4, "method and tokenizer count"


def test_a_changed_file_of_the_same_size_and_a_changed_order(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", PAIRS)
    first = rows_of(section(path))
    lines(Path(path), PAIRS[::-1])
    second = rows_of(section(path))
    assert second.segments[0] == first.segments[39] and second.fingerprint != first.fingerprint


def test_a_file_of_the_same_size_and_date_is_told_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size, date and inode stay, as with a tool that keeps dates or two writes within a tick of the clock."""
    monkeypatch.setattr(identity, "SETTLED", -1.0)
    path = lines(tmp_path / "r.jsonl", PAIRS)
    first = rows_of(section(path))
    dates = os.stat(path).st_mtime_ns
    time.sleep(0.05)  # a tick
    lines(Path(path), PAIRS[::-1])
    os.utime(path, ns=(dates, dates))
    assert rows_of(section(path)).fingerprint != first.fingerprint

    monkeypatch.setattr(identity, "SETTLED", 3600.0)
    lines(tmp_path / "fresh.jsonl", PAIRS)
    before = set((disk.root() / "digests").iterdir())
    rows_of(section(str(tmp_path / "fresh.jsonl")))
    assert set((disk.root() / "digests").iterdir()) == before, "the digest of what may still change is not kept"


def test_a_file_that_changes_while_it_is_tokenised_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "r.jsonl", PAIRS)
    real = dataset.Renderer

    def slow(*arguments: Any) -> Any:
        lines(Path(path), PAIRS[:20])
        return real(*arguments)

    monkeypatch.setattr(dataset, "Renderer", slow)
    with pytest.raises(DataError, match=r"r\.jsonl: changed while its rows were tokenised"):
        rows_of(section(path))
    assert list(token_cache.entries()) == []
    monkeypatch.setattr(dataset, "Renderer", real)
    assert len(rows_of(section(path)).segments) == 20


def test_other_versions_of_the_libraries_tokenise_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = section(lines(tmp_path / "r.jsonl", PAIRS))
    rows_of(data)
    assert token_cache.versions_of(token_cache.LIBRARIES)["transformers"] == transformers.__version__
    monkeypatch.setattr(token_cache, "versions_of", lambda names: {"transformers": "0"})
    rows_of(data)
    assert len(list(token_cache.entries())) == 2


def test_a_list_of_groups_is_part_of_the_key(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [row | {"qid": str(i)} for i, row in enumerate(PAIRS)])
    wanted = tmp_path / "qids.txt"
    wanted.write_text("1\n2\n")
    data = section(path, source={"where": {"qid": str(wanted)}})
    assert len(rows_of(data).segments) == 2
    wanted.write_text("1\n2\n3\n")
    assert len(rows_of(data).segments) == 3


def test_a_damaged_folder_is_made_again(tmp_path: Path) -> None:
    data = section(lines(tmp_path / "r.jsonl", PAIRS))
    first = list(rows_of(data).segments)
    ids = next(token_cache.root().glob("*/ids.bin"))
    spoiled = bytearray(ids.read_bytes())
    spoiled[8] ^= 1
    ids.write_bytes(spoiled)
    assert list(rows_of(data).segments) == first


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_TOKENS", str(tmp_path / "file"))
    with pytest.raises(SetupError, match="cannot be written"):
        rows_of(section(lines(tmp_path / "r.jsonl", PAIRS)))


PROCESS = """
import sys
from pathlib import Path
from rlhf.recipe.schema import row_kinds
from rlhf.tokens import dataset
from rlhf.recipe.sections import DataSection, SourceSection
from tests.tiny import tiny_tokenizer
real, log = dataset.Renderer, Path(sys.argv[2])
def counted(*arguments):
    with log.open("a") as file:
        file.write("tokenised\\n")
    return real(*arguments)
dataset.Renderer = counted
rows = dataset.tokenize(DataSection(train=[SourceSection(path=sys.argv[1])]), tiny_tokenizer(), row_kinds("dpo"), seed=0)
print(rows.fingerprint, len(rows.segments))
"""


def test_two_ranks_tokenise_once(tmp_path: Path) -> None:
    path, log = lines(tmp_path / "r.jsonl", PAIRS * 50), tmp_path / "log"
    command = [sys.executable, "-c", PROCESS, path, str(log)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert said[0] == said[1] and said[0].endswith(" 2000\n")
    assert log.read_text() == "tokenised\n"


def test_listing_and_cleaning(tmp_path: Path) -> None:
    data = section(path := lines(tmp_path / "r.jsonl", PAIRS))
    rows_of(data)
    (entry,) = token_cache.entries()
    assert (entry.rows, entry.sources) == (40, [path]) and entry.bytes > 1000
    assert token_cache.clean(older_than_days=1) == (0, 0)
    assert token_cache.clean() == (1, entry.bytes)
    assert list(token_cache.entries()) == []


def test_what_a_killed_process_left_is_listed_and_cleaned_and_what_is_being_made_is_not(tmp_path: Path) -> None:
    rows_of(section(lines(tmp_path / "r.jsonl", PAIRS)))
    for name in ("dead", "alive"):
        partial = token_cache.root() / f".tmp-{name}-123"
        partial.mkdir()
        (partial / "ids.bin").write_bytes(b"1234")
    with FileLock(token_cache.root() / ".alive.lock"):
        dead = next(entry for entry in token_cache.entries() if entry.path.name == ".tmp-dead-123")
        assert (dead.bytes, dead.rows, dead.sources) == (4, 0, ["not whole: the process that made it was stopped"])
        assert token_cache.clean()[0] == 2
    assert [p.name for p in token_cache.root().glob(".tmp-*")] == [".tmp-alive-123"]


def test_rows_are_read_from_anywhere_without_those_before(tmp_path: Path) -> None:
    """What a resumed run asks for: the sampler's window, and of the file only its rows."""
    rows = rows_of(section(lines(tmp_path / "r.jsonl", PAIRS)))
    everything = list(rows.segments)
    assert rows.segments[-1] == everything[-1] and rows.segments[38:] == everything[38:]
    assert rows.segments.lengths.tolist() == [s.num_tokens for s in everything]  # type: ignore[attr-defined]
    fresh = Sampler(rows.segments.lengths, batch_size=3, seed=1)  # type: ignore[attr-defined]
    gone_through = Sampler([s.num_tokens for s in everything], batch_size=3, seed=1)
    windows = [gone_through.window(step) for step in range(30)]
    assert fresh.window(29) == windows[29]
    with pytest.raises(IndexError):
        rows.segments[40]


def test_prompts_come_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [{"prompt": [{"role": "user", "content": "\u00fcber\n"}]}, {"prompt": [{"role": "user", "content": "b"}]}]
    source = [SourceSection(path=lines(tmp_path / "r.jsonl", chat))]
    first = prompts(source, tiny_tokenizer(), TemplateSection(kind="chat"), seed=0)
    monkeypatch.setattr(dataset, "Renderer", lambda *a: pytest.fail("tokenised again"))
    again = prompts(source, tiny_tokenizer(), TemplateSection(kind="chat"), seed=0)
    assert list(again) == list(first) and again.report == first.report
    assert [prompt.content for prompt in again] == [row["prompt"] for row in chat]


def test_numbers_survive(tmp_path: Path) -> None:
    ranking = {"prompt": "p", "completions": ["a", "b", "c"], "scores": [0.1, 1e9, -3.5]}
    rows = tokenize(section(lines(tmp_path / "r.jsonl", [ranking])), tiny_tokenizer(), row_kinds("reward"), seed=0)
    assert list(rows.segments[0].grades) == [0.1, 1e9, -3.5] and rows.segments[0].margin is None
    assert np.asarray(rows.segments[0].grades).dtype == np.float64
