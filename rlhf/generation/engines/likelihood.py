"""Makes the last line of an answer one of some choices: the likeliest choice, or one drawn by likelihood.

`transformers_text` uses it where vLLM uses guided decoding. The answer has the same form (`sampling.last_line_pattern`): free
lines, then a last line that is a choice. The first line with the common beginning of the choices is the last line. A mask over
the next tokens would compare choices by their first token alone. So the model writes the free text first, and then each choice is
scored as a whole: as a branch after the prompt and the text so far, with all choices in one pass.

A choice is tokenised apart from the text before it. So all choices follow the same tokens, namely those that the model was given
and has written. The probability is that of the whole choice, not a mean over its tokens.
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

TOKENS = 4096  # at most in one scoring pass, unless a single prompt has more
_LAST_LINE = 1  # gives the last line another random stream than the free text


class LastLines:
    """Makes the last lines in one call of `answers`. `free` is the sampling of the text before them; None if there is none."""

    def __init__(self, policy: Policy, encoder: Encoder, choices: list[str], sampling: TextSampling, seed: int) -> None:
        """Raises RecipeError if a choice is longer than `max_new_tokens`, ValueError if one choice begins with another one."""
        if any(a != b and b.startswith(a) for a in choices for b in choices):
            raise ValueError(f"cannot compare choices by likelihood where one begins with another: {choices}")
        self._policy, self._encoder, self._choices = policy, encoder, choices
        self._sampling, self._seed = sampling, seed
        self._ids = [encoder.continuation_ids(choice) for choice in choices]
        self._break = encoder.continuation_ids("\n")
        longest = max(map(len, self._ids))
        self._room = sampling.max_new_tokens - longest  # for the text before the last line, with its line break
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
        """Each prompt's samples with a last line that is a choice. `written` samples the text before it.

        The `ids` of a result are the tokens paid for: all sampled tokens, and those of the last line.
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
        segments = {  # samples with the same text so far are scored once
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
        """The sample's free lines, and its own last line if that is a choice already.

        The limit may leave half a character. As text (U+FFFD) it takes more tokens than were sampled, so the text is cut to fit.
        """
        before, last = free_lines(sample.text, self._choices, ended=sample.ended)
        while last is None and (over := len(self._encoder.continuation_ids(before)) - self._room) > 0:
            shorter = before[: -1 - math.ceil(over / 4)]  # a token is at least a byte, and a character at most four
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
    """The whole lines before a text's last line; and the last line if it is exactly a choice, else None.

    The first line with the common beginning of the choices is the last line; the text after it does not count. If the text was
    cut off (not `ended`), a part of such a beginning at its end is not a line.
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
    """log P(completion | prompt) of each segment's completions at this temperature, in passes of about `TOKENS` tokens."""
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
    """Prompts for one pass. A prompt waits for at most `TOKENS` tokens of other prompts."""
    held: list[Group] = []
    for group in groups:
        held.append(group)
        if sum(len(ids) for _, ids, _ in held) >= TOKENS:
            yield held
            held = []
    if held:
        yield held


def _batches(segments: Sequence[Segment], policy: Policy) -> Iterator[list[int]]:
    """The indices of the segments, longest first, in batches of `TOKENS`. With padding, each completion repeats its prompt."""

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
    """An index drawn with probability proportional to exp(score), by a number in [0, 1)."""
    highest = max(scores)
    shares = list(accumulate(math.exp(score - highest) for score in scores))
    return min(bisect_right(shares, draw * shares[-1]), len(shares) - 1)
