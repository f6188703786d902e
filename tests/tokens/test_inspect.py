"""What `rlhf inspect` shows is what is trained; a row that breaks an invariant is an error."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.schema import RECIPE, row_kinds
from rlhf.tokens.dataset import TokenizedRows, tokenize
from rlhf.tokens.inspect import CLOSE, OPEN, _pieces, check_rows, inspect
from rlhf.tokens.recipe_rows import with_template
from rlhf.tokens.segments import pad
from tests.data.support import console, lines
from tests.tiny import CHATML, tiny_tokenizer

PAIR = {"prompt": "the film", "chosen": " was good", "rejected": " was not"}
PPO = {"rewards": [{"callable": "rlhf.rewards:ended"}]}


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("rlhf.tokens.tokenizer")
    module.load_tokenizer = lambda name: tiny_tokenizer()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rlhf.tokens.tokenizer", module)


def recipe(path: str, method: str = "dpo", data: dict | None = None, **sections: Any) -> Any:
    base = {"method": method, "output_dir": "unused", "model": {"name_or_path": "tiny"}}
    return RECIPE.validate_python(base | {"data": {"train": [{"path": path}]} | (data or {})} | sections)


def shown(path: str, **options: Any) -> str:
    screen, out = console()
    inspect(recipe(path, **options), screen)
    return out.getvalue()


def test_a_pair(tmp_path: Path) -> None:
    text = shown(lines(tmp_path / "r.jsonl", [PAIR | {"margin": 0.5}]))
    assert "\nprompt: the film\n" in text
    assert f"chosen (margin 0.5): {OPEN} was good<|im_end|>{CLOSE}\n" in text
    assert f"rejected: {OPEN} was not<|im_end|>{CLOSE}\n" in text
    assert "checked 2 completions of 1 row:" in text
    assert "preference (recognised by its columns), 1 row, 1 usable" in text


def test_chat_trains_the_answer_only(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "hello", "completion": "I am well"}])
    text = shown(path, method="sft", data={"template": {"kind": "chat"}})
    assert "prompt: <|im_start|>user↵\nhello<|im_end|>↵\n<|im_start|>assistant↵\n" in text
    assert f"completion: {OPEN}I am well<|im_end|>{CLOSE}" in text


def test_loss_on_all_trains_the_prompt_but_its_first_token(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "1 2 3", "completion": " 4"}])
    text = shown(path, method="sft", sft={"loss_on": "all"})
    assert f"prompt: 1{OPEN} 2 3{CLOSE}" in text


def test_colour_instead_of_brackets_on_a_terminal(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    inspect(recipe(lines(tmp_path / "r.jsonl", [PAIR])), Console(file=out, force_terminal=True, width=100))
    assert OPEN not in out.getvalue() and "\x1b[32m was good<|im_end|>" in out.getvalue()


def test_rankings_and_prompts(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "p", "completions": ["a", "b"], "ranking": [1, 0]}])
    assert f"completion 1 (grade 1): {OPEN}b<|im_end|>{CLOSE}" in shown(path, method="reward")
    assert "prompt 1, 1 tokens: p" in shown(path, method="ppo", ppo=PPO)


def test_a_recipe_that_trains_nothing(tmp_path: Path) -> None:
    screen, _ = console()
    with pytest.raises(RecipeError, match="trains nothing"):
        inspect(RECIPE.validate_python({"method": "data", "output_dir": "x", "sources": [{"path": "y"}]}), screen)


def test_what_cannot_be_seen_is_shown(tmp_path: Path) -> None:
    row = {"prompt": "a\tb [red]", "completion": " one\n\ntwo\u200b <|im_end|>\n"}
    text = shown(lines(tmp_path / "r.jsonl", [row]), method="sft")
    assert "prompt: a\\tb [red]\n" in text
    assert f"completion: {OPEN} one↵\n↵\ntwo\\u200b <|im_end|>↵\n<|im_end|>{CLOSE}\n" in text


def test_a_word_start_tokenizer_keeps_the_space_between_prompt_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded alone, the answer's tokens would lose the space before their first word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"</s>": 0, "▁the": 1, "▁film": 2, "<unk>": 3}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    assert tokenizer.decode([2, 0]) == "film</s>"
    pieces = list(_pieces([1, 2, 0], [False, True, True], 1, tokenizer))
    assert [(p.text, p.trained, p.in_prompt) for p in pieces] == [("the", False, True), (" film</s>", True, False)]


def test_as_many_rows_as_asked_for(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [PAIR | {"prompt": f"film {i}"} for i in range(6)])
    for rows, expected in ((1, 1), (6, 6), (50, 6)):
        screen, out = console()
        inspect(recipe(path), screen, rows)
        assert out.getvalue().count("chosen: ") == expected
        assert ("more (--rows" in out.getvalue()) == (expected < 6)
        screen, out = console()
        inspect(recipe(path, method="ppo", ppo=PPO), screen, rows)
        assert out.getvalue().count(" tokens: film") == expected


def test_a_ranking_of_three_shows_every_completion_with_its_grade(tmp_path: Path) -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [1, 2, 0]}
    text = shown(lines(tmp_path / "r.jsonl", [row]), method="reward")
    assert all(
        f"completion {i} (grade {g}): {OPEN}{c}<|im_end|>{CLOSE}" in text
        for i, g, c in ((0, 0, "a"), (1, 2, "b"), (2, 1, "c"))
    )
    assert "checked 3 completions of 1 row:" in text


# --- every invariant, broken ----------------------------------------------------------------------------------------


def sound(tmp_path: Path, **options: Any) -> tuple[Any, TokenizedRows]:
    """A recipe and its rows; the second row is the one that the tests break."""
    path = lines(tmp_path / "r.jsonl", [PAIR, PAIR | {"prompt": "a film"}, PAIR | {"prompt": "it"}])
    found = with_template(recipe(path, **options))
    rows = tokenize(found.data, tiny_tokenizer(), row_kinds("dpo"), seed=0)
    assert check_rows(rows, found, tiny_tokenizer()) == 6
    return found, rows


def broken(rows: TokenizedRows, **changes: Any) -> TokenizedRows:
    """The rows with the second one changed; segments that the class itself would refuse are made past it."""
    segments = [rows.segments[i] for i in range(len(rows.segments))]
    segments[1] = replace(segments[1], **changes)
    return replace(rows, segments=segments)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"completion_ids": [[5, 1], [6, 7]]}, "does not train EOS"),
        ({"completion_ids": [[5, 1, 1], [6, 1]]}, "trains EOS twice"),
        ({"prompt_ids": [0, 0, 9]}, "beginning-of-text token twice"),
        ({"prompt_ids": [0, 9], "completion_ids": [[0, 5, 1], [6, 1]]}, "beginning-of-text token twice"),
        ({"prompt_ids": [5] * 2000}, "longer than max_length: 200"),
    ],
)
def test_broken_rows_are_found(tmp_path: Path, changes: dict, reason: str) -> None:
    assert (tiny_tokenizer().bos_token_id, tiny_tokenizer().eos_token_id) == (0, 1)
    found, rows = sound(tmp_path)
    with pytest.raises(DataError, match=rf"r\.jsonl:2: .*{reason}"):
        check_rows(broken(rows, **changes), found, tiny_tokenizer())


def test_padding_that_is_a_token_of_its_own_is_found_in_a_completion(tmp_path: Path) -> None:
    found, rows = sound(tmp_path)
    with pytest.raises(DataError, match=r"r\.jsonl:2: trains the padding token"):
        check_rows(broken(rows, completion_ids=[[5, 2, 1], [6, 1]]), found, tiny_tokenizer(pad_is_eos=False))


def all_but_padding(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask.bool(), ids, -100)


@pytest.mark.parametrize(
    ("labels_of", "reason"),
    [
        (all_but_padding, "trains the prompt"),  # the mistake of `labels = input_ids.clone()`
        (lambda ids, mask: ids, "trains padding"),
        (lambda ids, mask: torch.full_like(ids, -100), "trains no token"),
        (
            lambda ids, mask: torch.where(ids == 1, -100, ids),
            "does not train every token",
        ),  # `labels[labels == pad] = -100`
        (lambda ids, mask: all_but_padding(ids.roll(1, dims=1), mask), "does not train every token"),  # shifted by one
    ],
)
def test_broken_labels_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels_of: Any, reason: str) -> None:
    """The masks that are made wrongly elsewhere, put in place of ours; some padding is there, as lengths differ."""
    found, rows = sound(tmp_path)

    def wrong(batch: Any, pad_token_id: int) -> Any:
        padded = pad(batch, pad_token_id)
        assert int(padded.attention_mask.min()) == 0
        return replace(padded, labels=labels_of(padded.input_ids, padded.attention_mask))

    monkeypatch.setattr("rlhf.tokens.inspect.pad", wrong)
    with pytest.raises(DataError, match=rf"r\.jsonl:1: {reason}"):
        check_rows(rows, found, tiny_tokenizer())


def test_loss_on_all_is_checked_too(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "the film", "completion": " was good"}])
    found = recipe(path, method="sft", sft={"loss_on": "all"})
    rows = tokenize(found.data, tiny_tokenizer(), row_kinds("sft"), seed=0)
    assert check_rows(rows, found, tiny_tokenizer(), score_prompt=True) == 1
    with pytest.raises(ValueError, match="one completion"):
        check_rows(sound(tmp_path)[1], found, tiny_tokenizer(), score_prompt=True)


def test_a_cut_row_may_end_without_eos(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "the film", "completion": " was good 1 2 3 4 5 6 7 8"}])
    cut = recipe(path, method="sft", data={"max_length": 8, "on_overflow": "truncate"})
    rows = tokenize(cut.data, tiny_tokenizer(), row_kinds("sft"), seed=0)
    assert rows.segments[0].completion_ids[0][-1] != tiny_tokenizer().eos_token_id
    assert check_rows(rows, cut, tiny_tokenizer()) == 1
    strict = recipe(path, method="sft", data={"max_length": 8, "on_overflow": "drop"})
    with pytest.raises(DataError, match=r"r\.jsonl:1: does not train EOS"):
        check_rows(rows, strict, tiny_tokenizer())


def test_cut_rows_are_said_to_train_no_eos(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "the film", "completion": " was good 1 2 3 4 5 6 7 8"}])
    text = shown(path, method="sft", data={"max_length": 8, "on_overflow": "truncate"})
    assert "but 1 row was cut at max_length: a completion that was cut has lost its end, and does not train EOS" in text


def test_more_rows_than_a_microbatch_go_on_to_the_next(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [PAIR | {"prompt": f"film {i}"} for i in range(5)])
    screen, out = console()
    inspect(recipe(path, training={"per_device_train_batch_size": 2}), screen, 100)
    assert out.getvalue().count("chosen: ") == 5
    assert "step 1, microbatch 1: 2 rows" in out.getvalue() and "step 3, microbatch 1: 1 row\n" in out.getvalue()


TWICE = "{{ '<|im_start|>' }}" + CHATML


@pytest.mark.parametrize(
    ("method", "template", "chat"),
    [
        ("dpo", {"prompt": "<|im_start|>{prompt}"}, None),  # the tokenizer adds it as well
        ("dpo", {"kind": "chat"}, TWICE),
        ("ppo", {"prompt": "<|im_start|>{prompt}"}, None),
        ("ppo", {"kind": "chat"}, TWICE),
    ],
)
def test_a_template_that_doubles_bos_ends_the_command_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, template: dict, chat: str | None
) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer(adds_bos=True))
    tokenizer.chat_template = chat or CHATML
    monkeypatch.setattr(sys.modules["rlhf.tokens.tokenizer"], "load_tokenizer", lambda name: tokenizer)
    path = lines(tmp_path / "r.jsonl", [PAIR])
    text = {"method": method, "output_dir": "o", "model": {"name_or_path": "tiny"}}
    text |= {"data": {"train": [{"path": path}], "template": template}} | ({"ppo": PPO} if method == "ppo" else {})
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(text))
    result = CliRunner().invoke(app, ["inspect", str(file)])
    assert result.exit_code == 3
    assert "begins with the beginning-of-text token twice" in result.output
    assert path in result.output and (method == "ppo" or f"{path}:1: " in result.output)
    file.write_text(json.dumps(text | {"data": {"train": [{"path": path}]}}))
    assert CliRunner().invoke(app, ["inspect", str(file)]).exit_code == 0
