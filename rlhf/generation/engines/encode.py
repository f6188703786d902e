"""Requests as token ids, the same for every engine that runs a model of ours: one template, one check of the length.

Between the requests and the engines in this process (and vLLM's server where rlhf runs it). The ids come from
`data.template`, so a control token spelled out in a user's text stays text; a server's own chat template would obey it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from rlhf.embedded import resolve
from rlhf.errors import DataError, RecipeError
from rlhf.generation.text_engine import Request
from rlhf.models.lineage import adapter_lineage, problem_with_policy, saved_template
from rlhf.recipe.sections import TemplateSection
from rlhf.tokens.template import Renderer
from rlhf.tokens.tokenizer import find_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat = Literal["auto", "chat", "plain"]
T = TypeVar("T")


class Encoder:
    """A model's tokenizer and template. Its calls may come from several threads."""

    def __init__(self, path: str, chat: Chat, template: TemplateSection | None = None) -> None:
        """`template` overrides what `chat` says. Raises RecipeError where they do not go together."""
        self.tokenizer = load_tokenizer(path)
        self._renderer = Renderer(self.tokenizer, template or _template_of(path, self.tokenizer, chat))
        self._lock = threading.Lock()

    def ids(self, requests: Sequence[Request]) -> list[list[int] | str]:
        """Each request's ids, or why there are none."""
        try:
            with self._lock:
                found = self._renderer.batch_prompt_ids([r.prompt for r in requests])
            return [ids or "an empty prompt" for ids in found]
        except DataError as error:
            if len(requests) == 1:
                return [str(error)]
        return [ids for request in requests for ids in self.ids([request])]  # find the one at fault

    def continuation_ids(self, text: str) -> list[int]:
        """Ids of a text that follows a prompt's ids, as the model would have gone on from them."""
        with self._lock:
            return self._renderer.continuation_ids(text)

    def fitting(self, requests: Sequence[Request], max_new_tokens: int, positions: int | None) -> list[list[int] | str]:
        """As `ids`; a prompt that leaves no room for `max_new_tokens` among the model's positions is refused, not cut."""
        return [
            f"the prompt's {len(ids)} tokens and max_new_tokens {max_new_tokens} are more than the model's {positions} positions"
            if positions is not None and isinstance(ids, list) and len(ids) + max_new_tokens > positions
            else ids
            for ids in self.ids(requests)
        ]


def located(name: str, section_model: str, adapter: str | None) -> tuple[str, str | None]:
    """Where the files of engine `name`'s model and LoRA adapter are. Raises RecipeError for what is not there."""
    return named(name, lambda: (_model_folder(section_model), None if adapter is None else _adapter_folder(adapter)))


def base_and_adapter(path: str, adapter: str | None) -> tuple[str, str | None]:
    """For an engine that loads base and adapter itself: a `final/` of adapters is a base and an adapter."""
    lineage = adapter_lineage(Path(path)) if adapter is None else None
    return (path, adapter) if lineage is None else (find_model(lineage.base.name_or_path), path)


def named(name: str, make: Callable[[], T]) -> T:
    """What `make` makes; its RecipeErrors say which engine of the recipe they are about."""
    try:
        return make()
    except RecipeError as error:
        raise RecipeError([f"engine {name}: {problem}" for problem in error.problems]) from error


def _model_folder(name_or_path: str) -> str:
    """A training run's folder means its `final/`."""
    if problem := problem_with_policy(name_or_path):
        raise RecipeError(f"model: {problem}")
    path = resolve(name_or_path)
    final = Path(path) / "final"
    return str(final) if final.is_dir() else path


def _adapter_folder(path: str) -> str:
    """A LoRA folder: itself, or the `final/` of a run."""
    if problem := problem_with_policy(path):
        raise RecipeError(f"adapter: {problem}")
    for folder in (Path(path), Path(path) / "final"):
        if (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").is_file():
            return str(folder)
    raise RecipeError(
        f"adapter: no LoRA adapter in {path} (adapter_config.json with adapter_model.safetensors); "
        "a LoRA run's final/ is one"
    )


def _template_of(path: str, tokenizer: PreTrainedTokenizerBase, chat: Chat) -> TemplateSection:
    """How prompts are put to a model. `auto`: as it was trained here, else its chat template if it has one, else plain."""
    if chat == "auto":
        saved = saved_template(Path(path))
        return saved or TemplateSection(kind="chat" if tokenizer.chat_template else "plain", add_eos=False)
    if chat == "chat" and not tokenizer.chat_template:
        raise RecipeError(f"chat: chat, but the tokenizer of {path} has no chat template; use chat: plain")
    return TemplateSection(kind=chat, add_eos=False)
