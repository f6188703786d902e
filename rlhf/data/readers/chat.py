"""KoChatGPT's conversations: a text file of blocks, although its name says JSON Lines.

    <<start conversation>>
    <사람>: what the person says
    <챗봇>: what the assistant answers

Each block becomes a row {conversation: [{from, value}, ...]}, numbered from 1. A line without a speaker belongs to the turn before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rlhf.data.readers.text_files import BROKEN_OFF, TextFile
from rlhf.data.rows import Located

START = "<<start conversation>>"
_TURN = re.compile(r"<([^<>]+)>\s*:\s?(.*)", re.DOTALL)


def read_conversations(file: TextFile, lines: Iterable[str]) -> Iterator[Located]:
    """The blocks of a file whose first line is the start of a block."""
    block = 0
    turns: list[dict[str, str]] = []
    fault: str | None = None
    for number, line in enumerate(lines, 1):
        if line.strip() == START:
            if block:
                yield from _row(file, block, turns, fault)
            block, turns, fault = block + 1, [], None
        elif found := _TURN.match(line.strip()):
            turns.append({"from": found.group(1).strip(), "value": found.group(2)})
        elif turns:
            turns[-1]["value"] += "\n" + line.rstrip("\r\n")
        elif line.strip():
            fault = fault or f"text before the first speaker: line {number}"
    if file.broken:  # the last block is incomplete
        file.reject(block, f"{BROKEN_OFF}: {file.broken}")
    elif block:
        yield from _row(file, block, turns, fault)


def _row(file: TextFile, block: int, turns: list[dict[str, str]], fault: str | None) -> Iterator[Located]:
    if fault or not turns:
        file.reject(block, fault or "a conversation without a turn", "conversation")
        return
    said = [{"from": turn["from"], "value": turn["value"].strip()} for turn in turns]
    if located := file.accept(block, {"conversation": said}):
        yield located
