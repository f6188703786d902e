"""A reward model, or a user's callable, as an engine: it answers with its score as text, so the journal keeps scores like answers.

The step `score` uses it when the recipe gives `model` or `callable`. No other module of the package needs torch, so the imports
stand in the functions. A reward model reads exactly such ids as it was trained on: those of its own tokenizer and template, with
the end of the turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from rlhf.data.rows import Text, text_of
from rlhf.errors import RlhfError
from rlhf.generation.engines.sampling import windows
from rlhf.generation.text_engine import Answer, Request, as_completion
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.synthesis import ScoreStep, TextSampling

BATCH = 64  # requests scored together


class ScorerEngine:
    """A `TextEngine` that scores the last message of a request as the completion of the messages before it.

    A prompt that is text comes as one message with the role `prompt`. Raises RecipeError for a scorer that cannot be loaded, and
    RlhfError for one that fails or gives a score that is not a finite number.
    """

    def __init__(self, step: ScoreStep) -> None:
        from rlhf.generation.in_process import default_device
        from rlhf.generation.reward_scorer import load_reward_model
        from rlhf.generation.scorers import load_scorers

        section = ScorerSection(model=step.model, callable=step.callable)
        self._tokenizer: Any = None
        self._renderer: Any = None
        if step.model is not None:
            self._load_template(step.model)
        tokenizer: Any = self._tokenizer  # a callable gets texts, and needs none
        (self._scorer,) = load_scorers([section], tokenizer, partial(load_reward_model, device=default_device()))

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        from rlhf.generation.scorers import total_scores

        for batch in windows(requests, BATCH):
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
        from rlhf.generation.reward_scorer import Sample

        if isinstance(prompt, str):
            raise RlhfError("a scorer is asked with messages: the prompt's, then the completion")
        turns, completion = prompt[:-1], prompt[-1]["content"]
        asked: Text = turns[0]["content"] if turns[0]["role"] == "prompt" else list(turns)
        if self._renderer is None:
            return Sample(text_of(asked), [], Completion([], completion, True))
        segment = self._renderer.segment({"prompt": asked, "completion": as_completion(asked, completion)})
        ids: Sequence[int] = segment.completion_ids[0]
        return Sample(text_of(asked), segment.prompt_ids, Completion(list(ids), completion, True))
