"""A reward model, or a user's callable, as an engine: completions in, numbers out as text, so that they are journalled like answers.

Used by `score` where the recipe gives `model` or `callable`. The only module of the package that needs torch, imported when it is used.
A reward model reads the very ids that it was trained on: its own tokenizer and template, the end of the turn included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from rlhf.data.rows import Text, text_of
from rlhf.errors import RlhfError
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.sections import ScorerSection
from rlhf.recipe.synthesis import ScoreStep, TextSampling

BATCH = 64


class ScorerEngine:
    """A `TextEngine` whose answer is the score of the request's last message, given those before it.

    A prompt that is text comes as one message of the role `prompt`. Raises RecipeError for a scorer that cannot be loaded, RlhfError for
    one that fails or gives what is not a finite number.
    """

    def __init__(self, step: ScoreStep) -> None:
        from rlhf.generation.scorers import load_scorers

        section = ScorerSection(model=step.model, callable=step.callable)
        self._tokenizer: Any = None
        self._renderer: Any = None
        if step.model is not None:
            self._load_template(step.model)
        tokenizer: Any = self._tokenizer  # a callable is asked with texts, and needs none
        (self._scorer,) = load_scorers([section], tokenizer, bf16=False, device=_device())

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        from rlhf.generation.scorers import total_scores

        waiting = iter(requests)
        while batch := list(islice(waiting, BATCH)):
            scores, _ = total_scores([self._scorer], [self._sample(request.prompt) for request in batch])
            for request, score in zip(batch, scores, strict=True):
                yield request, Answer([repr(score)], [True], 0, 0)

    def close(self) -> None:
        del self._scorer, self._renderer, self._tokenizer

    def _load_template(self, model: str) -> None:
        from pathlib import Path

        from rlhf.embedded import resolve
        from rlhf.models.lineage import saved_template
        from rlhf.recipe.sections import TemplateSection
        from rlhf.tokens.template import Renderer
        from rlhf.tokens.tokenizer import load_tokenizer

        self._tokenizer = load_tokenizer(model)
        self._renderer = Renderer(self._tokenizer, saved_template(Path(resolve(model))) or TemplateSection())

    def _sample(self, prompt: Text) -> Any:
        from rlhf.generation.engine import Completion
        from rlhf.generation.scorers import Sample

        if isinstance(prompt, str):
            raise RlhfError("a scorer is asked with messages: the prompt's, then the completion")
        turns, completion = prompt[:-1], prompt[-1]["content"]
        asked: Text = turns[0]["content"] if turns[0]["role"] == "prompt" else list(turns)
        if self._renderer is None:
            return Sample(text_of(asked), [], Completion([], completion, True))
        answer: Text = completion if isinstance(asked, str) else [{"role": "assistant", "content": completion}]
        segment = self._renderer.segment({"prompt": asked, "completion": answer})
        ids: Sequence[int] = segment.completion_ids[0]
        return Sample(text_of(asked), segment.prompt_ids, Completion(list(ids), completion, True))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
