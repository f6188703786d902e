"""A model's tokenizer, and the folder that a model's name stands for."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf.embedded import resolve
from rlhf.errors import RecipeError, first_line


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer. If it has no pad token, it pads with EOS; no code here recognises padding by its id.

    Raises RecipeError if there is no tokenizer, or if it has no EOS token.
    """
    path = find_model(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.name_or_path: no tokenizer in {path!r}: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise RecipeError(f"model.name_or_path: the tokenizer of {path!r} has no EOS token, so no completion could end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def find_model(name_or_path: str) -> str:
    """The local folder of a model (a run's folder means its `final/`), or its hub name.

    Raises RecipeError for a local path that does not exist.
    """
    path = resolve(name_or_path)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise RecipeError(f"model.name_or_path: no such folder: {path} (has the stage that makes it been run?)")
    return path
