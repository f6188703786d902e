"""Decode many prompts in one batch whose places are filled again as samples end: continuous batching in process.

Under `engine`. Each prompt is computed once for its n samples and without padding where the model takes segments. All samples
then advance by a token a step, as rows of one `RowCache`; when a quarter of the places is free, the next prompts move in. Differs
from `generate`, where a batch lasts as long as its longest sample and every prompt is padded to the longest one.

A model that carries other state than keys and values along cannot lose or gain rows: it decodes a batch to its end, then
the next. A row draws from its own random numbers, so what it says does not hang on its neighbours (up to rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from rlhf.generation.choosing import choose_tokens
from rlhf.generation.key_values import RowCache, flat_to_rows, only_keys_and_values
from rlhf.generation.penalties import Penalties
from rlhf.models.attention import segment_inputs
from rlhf.models.policy import Policy
from rlhf.recipe.sections import SamplingSection
from rlhf.tokens.segments import Span

PREFILL_TOKENS = 8192  # prompts of at most so many tokens in one pass (or one longer prompt): bounds its memory
REFILL = 4  # new prompts move in when 1/REFILL of the places is free: a pass of their own costs about a step

Ended = Callable[[list[list[int]]], list[bool]]


@dataclass(frozen=True)
class Prompt:
    """Token ids to go on from. `stream` names its random numbers; `tag` is handed back with its samples."""

    tag: int
    stream: int
    ids: Sequence[int]


@dataclass
class Row:
    """One sample on its way."""

    prompt: Prompt
    sample: int
    noise: np.ndarray  # one uniform draw a token, [max_new_tokens]
    ids: list[int] = field(default_factory=list)
    done: bool = False

    @property
    def length(self) -> int:
        """Tokens of the prompt and of what it has said."""
        return len(self.prompt.ids) + len(self.ids)


class Decoder:
    """`run` once: prompts in, each prompt's samples out as soon as the last of them ended."""

    def __init__(self, policy: Policy, sampling: SamplingSection, *, seed: int, ended: Ended) -> None:
        """`ended` tells which rows, given as the ids they have said, have come to their end with their last token."""
        self._policy, self._sampling, self._seed, self._ended = policy, sampling, seed, ended
        self._slots = max(sampling.batch_size, sampling.n)
        self._penalties = Penalties(sampling)
        self._flowing = only_keys_and_values(policy.transformer.config)
        self._rows: list[Row] = []
        self._cache: Cache
        self._width = 0  # columns of the cache in use
        self._logits: Tensor  # [rows, V]: what each row's next token is drawn from
        self._tokens: Tensor  # [rows]: the one drawn last
        self._samples: dict[int, dict[int, list[int]]] = {}  # by tag, of prompts that have rows at work

    def run(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, list[list[int]]]]:
        """Each prompt's tag and its n samples, [tokens] each, the stop token included. Longest prompts first is fastest."""
        waiting = iter(prompts)
        while self._admit(waiting):
            yield from self._choose()
            if self._rows:
                self._step()

    def _admit(self, waiting: Iterator[Prompt]) -> bool:
        """Fill free places, if it is worth a pass; whether any row is at work."""
        free = self._slots - len(self._rows)
        if self._rows and (not self._flowing or free * REFILL < self._slots):
            return True
        fresh = list(islice(waiting, free // self._sampling.n))
        if fresh and not self._rows and self._flowing:
            # there will not be more rows than these: the places are full, or nobody else waits
            self._cache = RowCache(len(fresh) * self._sampling.n)
        padded = not self._policy.segments
        for group in _within_budget(fresh, padded=padded) if self._flowing else filter(None, [fresh]):
            self._enter(group)
        return bool(self._rows)

    @torch.no_grad()
    def _enter(self, prompts: list[Prompt]) -> None:
        """Compute the prompts and give each of their samples a row."""
        n = self._sampling.n
        if self._flowing:
            cache = DynamicCache()
            logits = self._prefill(prompts, cache).repeat_interleave(n, 0)
            longest = max((row.length for row in self._rows), default=0)
            width = max(longest, *(len(p.ids) for p in prompts))
            if self._rows and width != self._width:
                self._cache.realign(longest, width)
            self._width = width
            self._cache.join(cache, n, width)
        else:
            # the last batch's goes before this one's comes
            self._cache = DynamicCache(config=self._policy.transformer.config)
            logits = self._prefill([p for p in prompts for _ in range(n)], self._cache)
            self._width = max(len(p.ids) for p in prompts)
        self._logits = torch.cat([self._logits, logits]) if self._rows else logits
        self._rows += [Row(p, j, self._noise(p, j)) for p in prompts for j in range(n)]

    def _prefill(self, prompts: list[Prompt], cache: Cache) -> Tensor:
        """The logits after each prompt, [P, V]; fills the cache, its rows ending in the same column."""
        model, lengths = self._policy.transformer, [len(p.ids) for p in prompts]
        device = model.device
        if self._policy.segments and self._flowing:
            flat = torch.tensor([token for p in prompts for token in p.ids], device=device)
            positions = torch.cat([torch.arange(length, device=device) for length in lengths])
            ends = torch.tensor(lengths, device=device).cumsum(0)
            starts = (ends - torch.tensor(lengths, device=device)).tolist()
            spans = tuple(Span(start, length, (0,)) for start, length in zip(starts, lengths, strict=True))
            inputs = segment_inputs(flat, positions, spans) | {"past_key_values": cache, "use_cache": True}
            with self._policy.autocast():
                logits: Tensor = model(**inputs, logits_to_keep=ends - 1).logits[0]
            flat_to_rows(cache, lengths)
            return logits
        width = max(lengths)
        ids = torch.tensor([[0] * (width - len(p.ids)) + list(p.ids) for p in prompts], device=device)
        mask = self._mask(lengths, width)
        with self._policy.autocast():
            padded = model(
                input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                past_key_values=cache, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        return padded.logits[:, -1]  # type: ignore[no-any-return]

    def _choose(self) -> list[tuple[int, list[list[int]]]]:
        """A token for every row; returns the prompts that are through with it, and lets go of their rows."""
        logits = self._logits
        if self._penalties:
            logits = self._penalties(logits, [[*row.prompt.ids, *row.ids] for row in self._rows])
        drawn = [row.noise[len(row.ids) - row.done] for row in self._rows]  # a row that is done draws its last again
        noise = torch.tensor(drawn, dtype=torch.float64)
        self._tokens = choose_tokens(logits, self._sampling, noise.to(logits.device))
        for row, token in zip(self._rows, self._tokens.tolist(), strict=True):
            if not row.done:
                row.ids.append(token)
        through = []
        for row, ended in zip(self._rows, self._ended([row.ids for row in self._rows]), strict=True):
            if not row.done and (ended or len(row.ids) == self._sampling.max_new_tokens):
                row.done = True
                samples = self._samples.setdefault(row.prompt.tag, {})
                samples[row.sample] = row.ids
                if len(samples) == self._sampling.n:
                    del self._samples[row.prompt.tag]
                    through.append((row.prompt.tag, [ids for _, ids in sorted(samples.items())]))
        self._let_go()
        return through

    def _let_go(self) -> None:
        """Take the rows that are done out of the batch; where rows cannot leave, all of them once the last is done."""
        going = [i for i, row in enumerate(self._rows) if not row.done]
        if len(going) == len(self._rows) or (going and not self._flowing):
            return
        if isinstance(self._cache, RowCache):
            going = self._cache.keep(going)
        self._rows, self._tokens = [self._rows[i] for i in going], self._tokens[going]

    @torch.no_grad()
    def _step(self) -> None:
        """Feed each row the token it was given."""
        self._width += 1
        lengths = [row.length for row in self._rows]
        with self._policy.autocast():
            self._logits = self._policy.transformer(
                input_ids=self._tokens[:, None],
                attention_mask=self._mask(lengths, self._width),
                position_ids=torch.tensor(lengths, device=self._tokens.device)[:, None] - 1,
                past_key_values=self._cache,
                use_cache=True,
            ).logits[:, -1]

    def _mask(self, lengths: list[int], width: int) -> Tensor:
        """Where each row's tokens stand, [rows, width]: all rows end in the last column."""
        device = self._policy.transformer.device
        starts = width - torch.tensor(lengths, device=device)
        return (torch.arange(width, device=device) >= starts[:, None]).long()

    def _noise(self, prompt: Prompt, sample: int) -> np.ndarray:
        return np.random.default_rng([self._seed, prompt.stream, sample]).random(self._sampling.max_new_tokens)


def _within_budget(prompts: Sequence[Prompt], *, padded: bool) -> Iterator[list[Prompt]]:
    """Consecutive prompts of at most PREFILL_TOKENS tokens together, padding (`padded`) counted; a longer one alone."""
    group: list[Prompt] = []
    tokens = longest = 0
    for prompt in prompts:
        tokens, longest = tokens + len(prompt.ids), max(longest, len(prompt.ids))
        if group and ((len(group) + 1) * longest if padded else tokens) > PREFILL_TOKENS:
            yield group
            group, tokens, longest = [], len(prompt.ids), len(prompt.ids)
        group.append(prompt)
    if group:
        yield group
