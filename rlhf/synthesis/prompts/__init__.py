"""The prompts that ask models for data: the text files in this folder, or the user's own.

A built-in prompt has its step and its language in its name: judge.en.txt. A recipe's `prompt:` is a text, or the path of a
UTF-8 text file. Both hold placeholders such as {prompt}. All placeholders are filled in one pass, so other braces stay.

Texts that the step did not write (prompts and candidate answers) stand between fences. A fence is a tag with 16 hex digits:

    <answer 3b1f0c5d8e7a9210>
    ...
    </answer 3b1f0c5d8e7a9210>

The digits are computed from these texts, and never occur in them. So no text can close its own fence and pass for the
judge's prompt or for another candidate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from rlhf.data.formats.templates import fill, placeholders
from rlhf.data.rows import Text
from rlhf.errors import RecipeError

FOLDER = Path(__file__).parent

# step: (the placeholders that its prompt must hold, those that it may hold)
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
    """A step's prompt: the recipe's text or file. None is the built-in one (for generate and pool: the row's prompt alone).

    Raises RecipeError for a file that cannot be read, and for a text without a placeholder that the step needs.
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


def fill_fenced(text: str, fences: Mapping[str, tuple[str, str]], **words: str) -> tuple[str, str]:
    """The template filled with texts between fences, and with our own `words`; also the digits of the fences.

    `fences`: placeholder -> (tag, text).
    """
    number = nonce(inner for _, inner in fences.values())
    return fill(text, {name: fenced(tag, number, inner) for name, (tag, inner) in fences.items()} | words), number


def with_system(system: str | None, prompt: Text) -> Text:
    """The prompt with a system message. A system message of the row's own is joined to it: chat templates take only one."""
    if system is None:
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if turns and turns[0]["role"] == "system":
        system, turns = f"{system}\n\n{turns[0]['content']}", turns[1:]
    return [{"role": "system", "content": system}, *turns]


def nonce(texts: Iterable[str]) -> str:
    """16 hex digits that occur in none of the texts. Other texts give other digits."""
    held = list(texts)
    digest = hashlib.blake2b(digest_size=8)
    for text in held:
        digest.update(len(text).to_bytes(8, "big") + text.encode("utf-8", "surrogatepass"))
    while any(digest.hexdigest() in text for text in held):
        digest.update(b"again")
    return digest.hexdigest()


def fenced(tag: str, number: str, text: str) -> str:
    """A text between fences with these digits."""
    return f"<{tag} {number}>\n{text}\n</{tag} {number}>"


def without_fence(text: str, number: str) -> str | None:
    """A model's answer without the fence that it copied around it; None if the digits occur anywhere else in it."""
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
