"""Conversations as data sets publish them: HH's two transcripts, ShareGPT, messages, OpenAssistant's trees.

The last assistant turn is the completion; what comes before it is the prompt. HH's rows are two whole transcripts, and that they
share their prompt is checked, not assumed (5 of the 2,312 rows of harmless-base's test part do not). `hh` leaves them text, `hh_turns` makes
messages of them, for a chat template.
"""

from __future__ import annotations

import re
from typing import Any

from rlhf.data.formats.fields import Fields, Spec, distinct, is_judgement
from rlhf.data.messages import (
    as_messages,
    conversational_completion,
    conversational_prompt,
    dialogue,
    pair_of_dialogues,
)
from rlhf.data.rows import Message, Row

ASSISTANT = "\n\nAssistant:"
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def _hh(f: Fields) -> Row:
    chosen, rejected = f.text("chosen"), f.text("rejected")
    prompts, answers = [], []
    for name, transcript in (("chosen", chosen), ("rejected", rejected)):
        at = transcript.rfind(ASSISTANT)
        if at < 0:
            raise f.error(name, "holds no assistant turn")
        prompts.append(transcript[: at + len(ASSISTANT)])
        answers.append(transcript[at + len(ASSISTANT) :])
        if not answers[-1].strip():
            raise f.error(name, "is empty after the last assistant turn")
    if prompts[0] != prompts[1]:
        raise f.error("rejected", "does not share chosen's prompt")
    return distinct(f, {"prompt": prompts[0], "chosen": answers[0], "rejected": answers[1]})


def _hh_turns(f: Fields) -> Row:
    return pair_of_dialogues(f, *(_turns(f, name) for name in ("chosen", "rejected")))


def _turns(f: Fields, name: str) -> list[Message]:
    """A transcript as messages. Raises DataError for one whose turns cannot be told: a blank turn, two of one speaker in a row."""
    before, *pieces = _SPEAKER.split(f.text(name))
    if before.strip() or not pieces or pieces[0] != "Human":
        raise f.error(name, "does not start with Human:")
    turns: list[Message] = []
    for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if not text.strip():
            raise f.error(name, "holds a turn without text")
        if turns and turns[-1]["role"] == role:
            raise f.error(name, f"holds two turns in a row of one speaker: {speaker}")
        turns.append({"role": role, "content": text.strip()})
    return turns


def _messages(f: Fields) -> Row:
    return dialogue(f, "messages")


def _share_gpt(f: Fields) -> Row:
    """A demonstration; a preference where chosen and rejected stand beside it; unpaired with `kto_tag` or `label`."""
    system: list[Message] = [{"role": "system", "content": f.text("system")}] if f.optional_text("system") else []
    if f.has("chosen") or f.has("rejected"):
        start = system + as_messages(f, "conversations", f.list("conversations"))
        row: Row = {"prompt": conversational_prompt(f, "conversations", start)}
        return distinct(f, row | {k: conversational_completion(f, k, f.get(k)) for k in ("chosen", "rejected")})
    row = dialogue(f, "conversations", system)
    for name in ("kto_tag", "label"):
        if f.has(name):
            return row | {"label": f.boolean(name)}
    return row


def _oasst(f: Fields) -> Row:
    """The assistant's replies to one message, by their `rank` (0 is the best): see `readers.trees` for how a tree becomes these rows."""
    prompt = conversational_prompt(f, "prompt", as_messages(f, "prompt", f.list("prompt")))
    replies = list(f.objects("replies"))
    if len(replies) < 2:
        raise f.error(
            "replies", f"needs two ranked replies at least: message {f.data.get('message_id')} has {len(replies)}"
        )
    ranks = [reply.get("rank") for reply in replies]
    if any(isinstance(r, bool) or not isinstance(r, int) for r in ranks):
        raise f.error("replies", f"needs a rank in each: message {f.data.get('message_id')}")
    if len(set(ranks)) < len(ranks):
        raise f.error("replies", f"two have the same rank: message {f.data.get('message_id')}")
    said: list[Any] = [{"role": reply.get("role"), "content": reply.get("text")} for reply in replies]
    completions = [conversational_completion(f, "replies", message) for message in said]
    return {"prompt": prompt, "completions": completions, "ranking": sorted(range(len(ranks)), key=lambda i: ranks[i])}


def _is_transcript(f: Fields) -> bool:
    return not f.has("prompt") and isinstance(f.data["chosen"], str) and ASSISTANT in f.data["chosen"]


HH = Spec(_hh, (("chosen", "rejected"),), _is_transcript)
HH_TURNS = Spec(_hh_turns, (("chosen", "rejected"),), None)
MESSAGES = Spec(_messages, (("messages",),), lambda f: not is_judgement(f.data.get("label")), ("tools",))
SHARE_GPT = Spec(
    _share_gpt,
    (("conversations",),),
    lambda f: isinstance(f.data["conversations"], list),
    ("chosen", "rejected", "kto_tag", "label", "system", "tools"),
)
OASST = Spec(_oasst, (("prompt", "replies"),), lambda f: isinstance(f.data["prompt"], list))
