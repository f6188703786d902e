"""A model's tokenizer, and the place that a model's name stands for."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf.embedded import resolve
from rlhf.errors import RecipeError, first_line


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer. One without a pad token pads with EOS: nothing here tells padding by its id.

    Raises RecipeError where there is none, or it has no EOS token.
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
    """The local folder of a model, or its hub name; a run's folder means its `final/`.

    Raises RecipeError for a path that is not there.
    """
    path = resolve(name_or_path)
    if (Path(path) / "final").is_dir():
        return str(Path(path) / "final")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise RecipeError(f"model.name_or_path: no such folder: {path} (has the stage that makes it been run?)")
    return path
