"""The prompts that ask models for data: those that come with rlhf (the text files here), a user's own, and how they are filled.

A built-in prompt is named by what it is for and its language: judge.en.txt. A recipe's `prompt:` is a text, or the path of a UTF-8 text
file. Either holds placeholders such as {prompt}, filled in one pass, so that braces in a text stay what they are.

Texts of others (prompts and candidates) are put between fences, a tag with 16 hex digits that depend on the very texts:

    <answer 3b1f0c5d8e7a9210>
    ...
    </answer 3b1f0c5d8e7a9210>

Whoever wrote a candidate cannot have known them, and digits that do occur in a text are never taken; so no text can close its own
fence and speak as the judge's prompt or as another candidate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from rlhf.data.formats.templates import fill, placeholders
from rlhf.errors import RecipeError

FOLDER = Path(__file__).parent

# what a step's prompt must hold, and what it may
PLACEHOLDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "generate": (("prompt",), ()),
    "pool": (("prompt",), ()),
    "evolve": (("prompt", "completion"), ("method",)),
    "score": (("prompt", "completion"), ("aspect", "form")),
    "judge": (("prompt", "a", "b"), ("form",)),
    "paraphrase": (("prompt",), ()),
}


def built_in(name: str, language: str) -> str:
    """The text of a prompt that comes with rlhf."""
    return (FOLDER / f"{name}.{language}.txt").read_text(encoding="utf-8").strip()


def template(value: str | None, step: str, language: str) -> str:
    """A step's prompt: the recipe's own text or file, or with None the one that comes with rlhf (generate and pool: the row's prompt alone).

    Raises RecipeError for a file that cannot be read, and for a text without one of the placeholders that the step needs.
    """
    needs, may = PLACEHOLDERS[step]
    if value is None:
        return built_in(step, language) if step not in ("generate", "pool") else "{prompt}"
    text = _read(value) if "\n" not in value and (value.endswith(".txt") or _is_file(value)) else value
    there = placeholders(text)
    for needed in needs:
        if needed not in there:
            near = get_close_matches(needed, there, n=1)
            hint = f"; did you mean it by {{{near[0]}}}?" if near else ""
            others = f" (it may hold {', '.join(f'{{{m}}}' for m in may)} too)" if may else ""
            raise RecipeError(f"must hold {{{needed}}}{others}{hint}")
    return text


def filled(text: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders filled, once each; braces around anything else stay."""
    return fill(text, values)


def nonce(texts: Iterable[str]) -> str:
    """16 hex digits that occur in none of the texts, and that change with any of them."""
    held = list(texts)
    digest = hashlib.blake2b(digest_size=8)
    for text in held:
        digest.update(len(text).to_bytes(8, "big") + text.encode("utf-8", "surrogatepass"))
    while any(digest.hexdigest() in text for text in held):
        digest.update(b"again")
    return digest.hexdigest()


def fenced(tag: str, number: str, text: str) -> str:
    """A text between fences of `nonce`'s digits."""
    return f"<{tag} {number}>\n{text}\n</{tag} {number}>"


def without_fence(text: str, number: str) -> str | None:
    """A model's answer without the fence that it copied around it; None when the digits occur elsewhere in it."""
    lines = text.strip().split("\n")
    if lines[0].startswith("<") and number in lines[0]:
        lines = lines[1:]
    if lines and lines[-1].startswith("</") and number in lines[-1]:
        lines = lines[:-1]
    bare = "\n".join(lines).strip()
    return None if number in bare else bare


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # too long for a path: it is a text
        return False


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
