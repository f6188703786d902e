"""Control tokens that are written out in a user's text stay text: one private-use character stands for each until the text becomes ids.

Used by `template`. Only a template's own control tokens then look like control tokens, so the text of a conversation shows where they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST = 0xF8000
_STAND_IN = re.compile(f"([{chr(FIRST)}-{chr(FIRST + 0xFFF)}])")


class Guard:
    """The control tokens of a tokenizer, and their stand-ins."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        names = {str(t) for t in tokenizer.all_special_tokens} | {t.content for t in added.values() if t.special}
        self.tokens = sorted(names, key=lambda s: (-len(s), s))
        self._pattern = re.compile("|".join(map(re.escape, self.tokens)) or "(?!)")
        self.ids = set(tokenizer.all_special_ids) | {i for i, t in added.items() if t.special}

    def hide(self, text: str) -> tuple[str, int]:
        """The text with a stand-in for each control token in it, and how many there are."""
        return self._pattern.subn(lambda m: chr(FIRST + self.tokens.index(m[0])), text)

    def show(self, text: str) -> str:
        """The text with the control tokens that the stand-ins stand for."""
        return _STAND_IN.sub(lambda m: self._token(m[0]), text)

    def hides_any(self, text: str) -> bool:
        """Whether the text holds a stand-in."""
        return _STAND_IN.search(text) is not None

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """The text in pieces, and whether each is a hidden control token (which is then written out)."""
        split = filter(None, _STAND_IN.split(text))
        return [(self._token(p), True) if _STAND_IN.fullmatch(p) else (p, False) for p in split]

    def _token(self, stand_in: str) -> str:
        index = ord(stand_in) - FIRST
        return self.tokens[index] if index < len(self.tokens) else stand_in
