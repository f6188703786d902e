"""The one doorway to generation for training and evaluation: token ids in, completions out.

PPO, `rlhf eval` and `rlhf generate` ask an `Engine` and do not know which one it is. `in_process` implements it with the model
that is loaded in this process. Steps that make data with text in and text out use `text_engine` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf.recipe.sections import SamplingSection

Progress = Callable[[int, int], None]  # (completions, tokens) that are finished since the last call


@dataclass(frozen=True)
class Completion:
    """One sample. `ended`: it reached a stop token or a stop string; the stop token is the last of `ids`.

    `logprobs`: of each token at the sampling temperature, from an engine that is not the trained module itself; else None.
    """

    ids: list[int]
    text: str
    ended: bool
    logprobs: tuple[float, ...] | None = None


class Engine(Protocol):
    """Samples completions of prompts that are given as token ids."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSection,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt, in the order of the prompts.

        The random numbers of a completion depend on `seed`, the prompt's index and the sample's index alone. Raises
        RecipeError when a prompt and `sampling.max_new_tokens` do not fit in the model's context.
        """
        ...
