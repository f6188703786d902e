"""The built-in models and data: `embedded:NAME` wherever a recipe takes a path.

They come from ordinary packages of the package index, so that the quickstart and the tests run a real model on real
data with no model hub. `gemma3-270m` is opt-in: nothing here depends on it or installs it, and Gemma's terms apply to it.
Importing this module imports neither torch nor pyarrow; making a folder does, on first use.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
from pathlib import Path

from rlhf.errors import RecipeError, SetupError
from rlhf.runs import cache, manifest

PREFIX = "embedded:"
NAMES = (f"{PREFIX}smollm2-135m-instruct", f"{PREFIX}film-reviews", f"{PREFIX}gemma3-270m")
HUB_NAMES = {NAMES[0]: "HuggingFaceTB/SmolLM2-135M-Instruct", NAMES[2]: "google/gemma-3-270m"}
OPT_IN = {NAMES[2]: "opt-in, under the Gemma Terms of Use"}


def resolve(name_or_path: str) -> str:
    """The local folder behind `embedded:NAME`; a run's folder becomes its `final/`; any other string comes back as it is.

    A model is a Hugging Face folder (bfloat16 safetensors, tokenizer, chat template if it has one); the data a folder with
    `train/*.parquet` and `test/*.parquet` of {prompt, completion}. Made on first use, verified on every use.
    Raises RecipeError for an unknown name, SetupError when a package that it is made from is missing.
    """
    if not name_or_path.startswith(PREFIX):
        final = os.path.join(name_or_path, "final")
        return final if os.path.isdir(final) else name_or_path  # isdir: False for what cannot be a path
    if name_or_path == NAMES[0]:
        from rlhf.embedded import smollm2

        return str(cache.folder("smollm2-135m-instruct", smollm2.VERSION, smollm2.convert))
    if name_or_path == NAMES[1]:
        from rlhf.embedded import reviews

        return str(cache.folder("film-reviews", reviews.VERSION, reviews.write_openings))
    if name_or_path == NAMES[2]:
        from rlhf.embedded import gemma3

        return str(cache.folder("gemma3-270m", gemma3.VERSION, gemma3.convert))
    raise RecipeError(unknown(name_or_path))


def hub_name(name_or_path: str) -> str:
    """The name under which others find a model: an embedded model's on the hub; any other comes back as it is."""
    return HUB_NAMES.get(name_or_path, name_or_path)


def unknown(name: str) -> str:
    """What to say of an `embedded:` name that there is not."""
    short = [known.removeprefix(PREFIX) for known in NAMES]  # the prefix would make everything look alike
    close = difflib.get_close_matches(name.removeprefix(PREFIX), short, n=1, cutoff=0.5)
    hint = f"did you mean '{PREFIX}{close[0]}'?" if close else f"there are {', '.join(NAMES)}"
    return f"no such embedded model or data: {name}; {hint}"


def packaged_file(package: str, relative: str, sha256: str, install: str) -> Path:
    """A data file inside an installed package, found without importing the package, and checked.

    Importing would run code that nothing here needs (one of them wants llama.cpp). Raises SetupError with the command
    that mends it.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders if (path := Path(folder) / relative).is_file()]
    if not found:
        raise SetupError(f"the package {package} is not installed; run: {install}")
    if manifest.sha256(found[0]) != sha256:
        raise SetupError(
            f"{found[0]} is not the file this was built for (SHA-256 differs); run: {install} --force-reinstall"
        )
    return found[0]
