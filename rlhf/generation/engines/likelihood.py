"""A last line that is one of some choices, from a model in this process: the likeliest one, or one drawn by likelihood.

What guided decoding is to vLLM, for `transformers_text`, and in the same form (`sampling.last_line_pattern`): free lines, of which the first
that begins as every choice does is the last, and a choice. It is chosen after the free text was made, not under a mask token by token, which
would judge a choice by its first token alone: each choice is scored whole, as a branch of the prompt and the text so far, all in one pass.

The choice is tokenised apart from what stands before it, so what it continues is the same for all choices and exactly what the model was
given and has written; a tokenizer that would merge over that seam changes nothing. Probabilities are of the whole choice, not per token.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch

from rlhf.errors import RecipeError
from rlhf.generation.engine import Completion
from rlhf.generation.engines.encode import Encoder
from rlhf.generation.engines.sampling import RATIONALE_LINES, beginnings, distinct_samples, stream
from rlhf.generation.text_engine import OneLine, Request
from rlhf.models.policy import Policy
from rlhf.recipe.synthesis import TextSampling
from rlhf.tokens.segments import Segment, collate

Encoded = tuple[Request, list[int]]
Group = tuple[Request, list[int], list[Completion]]

TOKENS = 4096  # of a scoring pass, unless one prompt has more
_LAST_LINE = 1  # sets the last line's random stream apart from the one that the free text is drawn from


class LastLines:
    """Sees to the last lines of one call of `answers`. `free` is the sampling of what comes before; None where nothing does."""

    def __init__(self, policy: Policy, encoder: Encoder, choices: list[str], sampling: TextSampling, seed: int) -> None:
        """Raises RecipeError for a limit that a choice does not fit in, ValueError for a choice that another one begins with."""
        if any(a != b and b.startswith(a) for a in choices for b in choices):
            raise ValueError(f"choices of which one begins another cannot be compared by likelihood: {choices}")
        self._policy, self._encoder, self._choices = policy, encoder, choices
        self._sampling, self._seed = sampling, seed
        self._ids = [encoder.continuation_ids(choice) for choice in choices]
        self._break = encoder.continuation_ids("\n")
        longest = max(map(len, self._ids))
        self._room = sampling.max_new_tokens - longest  # for the text before the last line, its line break included
        if self._room < 0:
            raise RecipeError(
                f"sampling.max_new_tokens: {sampling.max_new_tokens}, but the answer's last line must be one of "
                f"{', '.join(choices)}, which takes {longest} tokens"
            )
        limit = 0 if isinstance(choices, OneLine) else self._room - len(self._break)
        self.free = sampling.model_copy(update={"max_new_tokens": limit}) if limit > 0 else None

    def __call__(
        self,
        prompts: Iterator[Encoded],
        written: Callable[[Iterator[Encoded], TextSampling, int], Iterator[Group]],
    ) -> Iterator[Group]:
        """Each prompt's samples with a last line that is a choice. `written` samples what comes before it.

        `ids` of a result are the tokens paid for: all that was sampled, and those that the last line was made with.
        """
        if self.free is None:
            nothing = [Completion([], "", False)] * distinct_samples(self._sampling)
            groups: Iterator[Group] = ((request, ids, nothing) for request, ids in prompts)
        else:
            groups = written(prompts, self.free, self._seed)
        for together in _gathered(groups):
            yield from self._finished(together)

    def _finished(self, groups: list[Group]) -> Iterator[Group]:
        cuts = [[self._cut(sample) for sample in group] for _, _, group in groups]
        segments = {  # samples that say the same so far are scored once
            (row, before): Segment([*ids, *self._encoder.continuation_ids(before)], self._ids)
            for row, (_, ids, _) in enumerate(groups)
            for before, last in cuts[row]
            if last is None
        }
        scores = log_likelihoods(self._policy, list(segments.values()), temperature=self._sampling.temperature or 1.0)
        found = dict(zip(segments, scores, strict=True))
        for row, (request, ids, group) in enumerate(groups):
            done = []
            for number, (sample, (before, last)) in enumerate(zip(group, cuts[row], strict=True)):
                if last is not None:
                    done.append(Completion(sample.ids, before + last, True))
                else:
                    done.append(self._with(sample, before, self._choose(found[row, before], request.key, number)))
            yield request, ids, done

    def _cut(self, sample: Completion) -> tuple[str, str | None]:
        """The sample's free lines, and its own last line where that is a choice already.

        Half a character, as a limit leaves it, takes more tokens as text (U+FFFD) than when it was sampled: the text is cut to its room.
        """
        before, last = free_lines(sample.text, self._choices, ended=sample.ended)
        while last is None and (over := len(self._encoder.continuation_ids(before)) - self._room) > 0:
            shorter = before[: -1 - math.ceil(over / 4)]  # of bytes: a character is at most four tokens
            before = shorter and f"{shorter}\n"
        return before, last

    def _choose(self, scores: list[float], key: str, sample: int) -> int:
        if self._sampling.temperature == 0:
            return scores.index(max(scores))
        draw = np.random.default_rng([self._seed, stream(key), sample, _LAST_LINE]).random()
        return drawn(scores, draw)

    def _with(self, sample: Completion, before: str, choice: int) -> Completion:
        added = [] if sample.text.startswith(before) else self._break
        return Completion([*sample.ids, *added, *self._ids[choice]], before + self._choices[choice], True)


def free_lines(text: str, choices: list[str], *, ended: bool = True) -> tuple[str, str | None]:
    """What of a text comes before its last line, whole lines; and that line where it is exactly a choice, else None.

    The first line that begins as every choice does is the last: nothing counts that stands after it. Of a text that was broken off (not
    `ended`), the start of such a line is not a line of its own.
    """
    lines, starts = text.split("\n"), beginnings(choices)
    if lines[-1] == "" or (not ended and any(start.startswith(lines[-1]) for start in starts)):
        lines.pop()
    last = next((i for i, line in enumerate(lines) if line.startswith(starts)), None)
    before = "".join(f"{line}\n" for line in lines[:last][:RATIONALE_LINES])
    said = lines[last].rstrip() if last is not None and last <= RATIONALE_LINES else ""
    return before, said if said in choices else None


@torch.no_grad()
def log_likelihoods(policy: Policy, segments: Sequence[Segment], *, temperature: float = 1.0) -> list[list[float]]:
    """log P(completion | prompt) of each segment's completions under the softmax at `temperature`, in passes of about `TOKENS`."""
    policy.eval()
    device = policy.transformer.device
    found: list[list[float]] = [[] for _ in segments]
    for batch in _batches(segments, policy):
        flat = collate([segments[i] for i in batch]).to(device)
        sums = iter(flat.sum_rows(policy(flat, temperature=temperature).double()).tolist())
        for i in batch:
            found[i] = [next(sums) for _ in segments[i].completion_ids]
    return found


def _gathered(groups: Iterator[Group]) -> Iterator[list[Group]]:
    """Prompts for a pass, as they come: none waits for more than `TOKENS` of others."""
    held: list[Group] = []
    for group in groups:
        held.append(group)
        if sum(len(ids) for _, ids, _ in held) >= TOKENS:
            yield held
            held = []
    if held:
        yield held


def _batches(segments: Sequence[Segment], policy: Policy) -> Iterator[list[int]]:
    """The segments' places, longest first, in batches under the budget. Padded, a prompt is computed with each completion."""

    def cost(segment: Segment) -> int:
        copies = 0 if policy.segments else len(segment.completion_ids) - 1
        return segment.num_tokens + copies * len(segment.prompt_ids)

    batch: list[int] = []
    held = 0
    for i in sorted(range(len(segments)), key=lambda i: -len(segments[i].prompt_ids)):
        if batch and held + cost(segments[i]) > TOKENS:
            yield batch
            batch, held = [], 0
        batch.append(i)
        held += cost(segments[i])
    if batch:
        yield batch


def drawn(scores: Sequence[float], draw: float) -> int:
    """A place drawn with probability proportional to exp(score), by a number in [0, 1)."""
    highest = max(scores)
    shares = list(accumulate(math.exp(score - highest) for score in scores))
    return min(bisect_right(shares, draw * shares[-1]), len(shares) - 1)
