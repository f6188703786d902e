"""Conversations: our rendering against TRL's, on ChatML with its newline after the end of a turn."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.recipe.sections import TemplateSection
from rlhf.tokens.template import Renderer
from tests.parity.support import CHAT_PAIRS, TURNS, needs_trl, trl
from tests.tiny import tiny_tokenizer

pytestmark = needs_trl


def up_to_eos(ids: list[int], eos: int) -> tuple[list[int], list[int]]:
    """Ids through their last EOS, and what comes after it."""
    end = len(ids) - ids[::-1].index(eos)
    return ids[:end], ids[end:]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("row", CHAT_PAIRS, ids=["one turn", "system", "several turns"])
def test_prompt_and_completions(row: dict[str, Any], adds_bos: bool) -> None:
    """The newline after EOS is the template's, not the model's: generation stops at EOS, and so do our rows.

    A tokenizer that puts a BOS before every text does not put a second one before a rendered conversation.
    """
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    segment = Renderer(tokenizer, TemplateSection(kind="chat")).segment(row)
    theirs = trl("trl.data_utils").maybe_apply_chat_template(row, tokenizer)
    assert theirs == trl("trl.data_utils").apply_chat_template(row, tokenizer)
    prompt = tokenizer(theirs["prompt"], add_special_tokens=False).input_ids
    assert list(segment.prompt_ids) == prompt
    newline = tokenizer("\n", add_special_tokens=False).input_ids
    for ours, side in zip(segment.completion_ids, ("chosen", "rejected"), strict=True):
        kept, trimmed = up_to_eos(tokenizer(theirs[side], add_special_tokens=False).input_ids, tokenizer.eos_token_id)
        assert list(ours) == kept
        assert trimmed == newline


@pytest.mark.parametrize("turns", TURNS, ids=["one turn", "system", "several turns"])
def test_what_generation_starts_from(turns: list[dict[str, str]]) -> None:
    tokenizer = tiny_tokenizer()
    theirs = trl("trl.data_utils").maybe_apply_chat_template({"prompt": turns}, tokenizer)["prompt"]
    renderer = Renderer(tokenizer, TemplateSection(kind="chat"))
    assert renderer.render_prompt(turns) == theirs
    assert renderer.prompt_ids(turns) == tokenizer(theirs, add_special_tokens=False).input_ids
    assert renderer.prompt_ids(turns).count(tokenizer.eos_token_id) == len(turns)


def test_demonstrations() -> None:
    tokenizer = tiny_tokenizer()
    answer = [{"role": "assistant", "content": "the one that you like."}]
    row = {"prompt": TURNS[2], "completion": answer}
    theirs = trl("trl.data_utils").maybe_apply_chat_template(row, tokenizer)
    segment = Renderer(tokenizer, TemplateSection(kind="chat")).segment(row)
    assert list(segment.prompt_ids) == tokenizer(theirs["prompt"]).input_ids
    assert (
        list(segment.completion_ids[0])
        == up_to_eos(tokenizer(theirs["completion"]).input_ids, tokenizer.eos_token_id)[0]
    )
