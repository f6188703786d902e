"""Whether a completion ended: from the sampler's file through pairs, dedup and split to the ids that are trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.parquet_rows import write_rows
from rlhf.data.rows import Row, ended_of, trained_as
from rlhf.errors import DataError
from rlhf.recipe.sections import DataSection, SourceSection, TemplateSection
from rlhf.synthesis import evolve, generate, score, select
from rlhf.tokens.dataset import tokenize
from rlhf.tokens.template import Renderer
from tests.data.support import lines, load_one
from tests.data.test_build import make, read
from tests.synthesis.support import FakeEngine
from tests.tiny import tiny_tokenizer

PROMPTS = ["The film was", "I like", "the answer is", "you are", "It is", "there is"]


def sampled(i: int) -> Row:
    """What `rlhf generate` writes: the longest of four was cut off."""
    texts = [f" good {i}", f" the film {i}", f" no {i}", f" well, and {i} " + "the film " * 4]
    return {"prompt": PROMPTS[i], "completions": texts, "scores": [1.0, 4.0, 2.0, 3.0], "ended": [True] * 3 + [False]}


def test_it_travels_from_the_samples_to_the_trained_ids(tmp_path: Path) -> None:
    write_rows(tmp_path / "samples/train/part-0.parquet", [sampled(i) for i in range(6)])
    steps = [{"pairs": {"strategy": "all"}}, {"dedup": {"column": "prompt"}}, {"split": {"test": 0.3}}]
    make(tmp_path / "pairs", [tmp_path / "samples/train"], *steps)
    rows = read(tmp_path / "pairs") + read(tmp_path / "pairs", "test")
    assert len(rows) == 36
    for row in rows:
        assert [row["chosen_ended"], row["rejected_ended"]] == [len(row[k]) < 30 for k in ("chosen", "rejected")]
    assert {row["chosen_ended"] for row in rows} == {row["rejected_ended"] for row in rows} == {True, False}

    eos = tiny_tokenizer().eos_token_id
    section = DataSection(train=[SourceSection(path=str(tmp_path / "pairs/train"))], max_length=128)
    for kind in ("plain", "chat"):
        of_kind = section.model_copy(update={"template": TemplateSection(kind=kind)})  # type: ignore[arg-type]
        made = tokenize(of_kind, tiny_tokenizer(), {"preference"}, seed=0)
        cut = 0
        for segment, located in zip(made.segments, made.rows, strict=True):
            assert located.file.startswith(str(tmp_path))
            for ids in segment.completion_ids:
                text = tiny_tokenizer().decode(ids, skip_special_tokens=True)
                assert (ids[-1] == eos) == (len(text) < 30), text
                assert eos not in list(ids)[:-1]
                cut += len(text) >= 30
        assert made.report["unfinished"] == cut > 0
    demonstrations = tokenize(section, tiny_tokenizer(), {"demonstration"}, seed=0)
    ends = [s.completion_ids[0][-1] == eos for s in demonstrations.segments]
    assert ends.count(False) == demonstrations.report["unfinished"] > 0


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_without_the_column_every_completion_ends(kind: Any) -> None:
    renderer = Renderer(tiny_tokenizer(), TemplateSection(kind=kind))
    row = {"prompt": "The film was", "chosen": " good", "rejected": " bad"}
    assert all(ids[-1] == tiny_tokenizer().eos_token_id for ids in renderer.segment(row).completion_ids)
    assert renderer.unfinished == 0


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_with_and_without_an_end_are_each_others_inverse(kind: Any) -> None:
    """Also where the template's end of turn is not EOS: then a completion that ended has both, and one that did not neither."""
    tokenizer = copy.deepcopy(tiny_tokenizer(pad_is_eos=False))
    tokenizer.eos_token = "<|pad|>"
    renderer = Renderer(tokenizer, TemplateSection(kind=kind))
    row = {"prompt": "The film was", "completion": " good"}
    [whole] = renderer.segment(row).completion_ids
    [bare] = renderer.segment(row | {"ended": False}).completion_ids
    end = [tokenizer.convert_tokens_to_ids(t) for t in (["<|im_end|>", "<|pad|>"] if kind == "chat" else ["<|pad|>"])]
    assert list(whole) == [*bare, *end] == renderer.with_end(bare)
    assert renderer.without_end(whole) == list(bare) == renderer.without_end(bare)
    assert renderer.unfinished == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (sampled(0) | {"ended": [True, False]}, "ended: has 2 values for 4 completions"),
        (sampled(0) | {"ended": [True, True, None, False]}, "ended: must be true or false"),
        ({"prompt": "p", "completion": "c", "ended": "perhaps"}, "ended: must be true or false (or 1 or 0)"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "rejected_ended": 2}, "rejected_ended: must be true or false"),
    ],
)
def test_a_flag_that_is_none_is_named(tmp_path: Path, row: Row, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    lines(path, [row])
    with pytest.raises(DataError) as error:
        load_one(path)
        make(tmp_path / "out", [{"path": str(path)}])
    assert reason in str(error.value) and "rows.jsonl" in str(error.value)


def test_rows_of_other_methods_keep_it() -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_ended": False, "rejected_ended": True}
    assert trained_as(pair, {"demonstration"}) == {"prompt": "p", "completion": "a", "ended": False}
    unpaired = {"prompt": "p", "completion": "a", "label": True, "ended": False}
    assert trained_as(unpaired, {"demonstration"}) == {"prompt": "p", "completion": "a", "ended": False}
    assert ended_of({"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}) == [True, True]


class CutsOff(FakeEngine):
    """Every second answer is cut off."""

    def answer(self, request, sampling, seed):  # type: ignore[no-untyped-def]
        from rlhf.generation.text_engine import Answer

        n = sampling.n
        return Answer([f"{request.key} says {i}" for i in range(n)], [i % 2 == 0 for i in range(n)], 1, 3)


def test_steps_that_ask_models_keep_it() -> None:
    two = {"n": 2, "temperature": 1.0}
    (row,), _ = generate([{"prompt": "q", "completion": "own", "ended": False}], CutsOff(), sampling=two)
    assert row["ended"] == [False, True, False]
    (pair, cut), _ = generate([{"prompt": "q", "completion": "own"}], CutsOff(), into="rejected", sampling=two)
    assert "chosen_ended" not in pair and (cut["chosen_ended"], cut["rejected_ended"]) == (True, False)
    (_, second), _ = generate([{"prompt": "q"}], CutsOff(), into="completion", sampling=two)
    assert second["ended"] is False
    (scored,), _ = score([row], callable="tests.train.rewards:count_letters")
    assert scored["ended"] == row["ended"]
    (chosen,), _ = select([scored | {"scores": [1.0, 2.0, 3.0]}])
    assert (chosen["chosen_ended"], chosen["rejected_ended"]) == (False, False)
    (evolved,), _ = evolve([row], CutsOff(), keep="all")
    assert evolved["ended"] == [False, True, False] + [True] * 3
