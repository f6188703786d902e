"""Decode many prompts in one batch in this process: continuous batching.

Used by `in_process`. Prompts wait until there is room; `admit` takes the next ones into the batch, `prefill` computes each
prompt once for its n samples (without padding where the model takes segments), and `decode` advances all running samples by
one token. When a quarter of the batch is free, the next prompts are admitted. Differs from transformers' `generate`, where a
batch lasts as long as its longest sample and every prompt is padded to the longest one.

A model that keeps other state than keys and values cannot lose or gain rows: it decodes a whole batch to its end, then
the next one. Each sample has random numbers of its own, so it does not depend on the other samples (up to rounding).
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

PREFILL_TOKENS = 8192  # at most so many prompt tokens in one pass (or one longer prompt): bounds its memory
REFILL = 4  # new prompts are admitted when 1/REFILL of the batch is free: their prefill costs about a decode step

Ended = Callable[[list[list[int]]], list[bool]]


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as token ids. `stream` selects its random numbers; `tag` is returned with its samples."""

    tag: int
    stream: int
    ids: Sequence[int]


@dataclass
class RunningSample:
    """One sample that is being decoded: a row of the batch."""

    prompt: TokenPrompt
    sample: int
    noise: np.ndarray  # one uniform draw a token, [max_new_tokens]
    ids: list[int] = field(default_factory=list)
    finished: bool = False

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the sample so far."""
        return len(self.prompt.ids) + len(self.ids)


class Decoder:
    """Call `run` once: prompts in, each prompt's samples out as soon as the last of them is finished."""

    def __init__(self, policy: Policy, sampling: SamplingSection, *, seed: int, ended: Ended) -> None:
        """`ended` takes the token ids of every running sample and says which of them end with their last token."""
        self._policy, self._sampling, self._seed, self._ended = policy, sampling, seed, ended
        self._max_running = max(sampling.batch_size, sampling.n)
        self._penalties = Penalties(sampling)
        self._continuous = only_keys_and_values(policy.transformer.config)
        self._running: list[RunningSample] = []  # in the order of the batch's rows
        self._cache: Cache
        self._width = 0  # columns of the cache in use
        self._logits: Tensor  # [rows, V]: what each row's next token is drawn from
        self._tokens: Tensor  # [rows]: the token drawn last
        self._finished: dict[int, dict[int, list[int]]] = {}  # by tag: samples whose prompt has others still running

    def run(self, prompts: Iterable[TokenPrompt]) -> Iterator[tuple[int, list[list[int]]]]:
        """Each prompt's tag and its n samples, [tokens] each, the stop token included. Longest prompts first is fastest."""
        waiting = iter(prompts)
        while self._admit(waiting):
            yield from self._sample()
            if self._running:
                self._decode()

    def _admit(self, waiting: Iterator[TokenPrompt]) -> bool:
        """Take waiting prompts into the batch if enough of it is free. Returns whether any sample is running."""
        free = self._max_running - len(self._running)
        if self._running and (not self._continuous or free * REFILL < self._max_running):
            return True
        admitted = list(islice(waiting, free // self._sampling.n))
        if admitted and not self._running and self._continuous:
            # the batch never has more rows than these: it is full, or no prompt is waiting
            self._cache = RowCache(len(admitted) * self._sampling.n)
        padded = not self._policy.segments
        for group in _within_budget(admitted, padded=padded) if self._continuous else filter(None, [admitted]):
            self._prefill(group)
        return bool(self._running)

    @torch.no_grad()
    def _prefill(self, prompts: list[TokenPrompt]) -> None:
        """Compute the prompts, and add a row to the batch for each of their samples."""
        n = self._sampling.n
        if self._continuous:
            assert isinstance(self._cache, RowCache)
            cache = DynamicCache()
            logits = self._prompt_logits(prompts, cache).repeat_interleave(n, 0)
            longest = max((row.length for row in self._running), default=0)
            width = max(longest, *(len(p.ids) for p in prompts))
            if self._running and width != self._width:
                self._cache.realign(longest, width)
            self._width = width
            self._cache.add_rows(cache, n, width)
        else:
            # the old batch's cache is freed before the new one is made
            self._cache = DynamicCache(config=self._policy.transformer.config)
            logits = self._prompt_logits([p for p in prompts for _ in range(n)], self._cache)
            self._width = max(len(p.ids) for p in prompts)
        self._logits = torch.cat([self._logits, logits]) if self._running else logits
        self._running += [RunningSample(p, j, self._noise(p, j)) for p in prompts for j in range(n)]

    def _prompt_logits(self, prompts: list[TokenPrompt], cache: Cache) -> Tensor:
        """The logits after each prompt, [P, V]; fills the cache, its rows ending in the same column."""
        model, lengths = self._policy.transformer, [len(p.ids) for p in prompts]
        device = model.device
        if self._policy.segments and self._continuous:
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

    def _sample(self) -> list[tuple[int, list[list[int]]]]:
        """Draw a token for every running sample. Returns the prompts that are finished by it, and removes their rows."""
        logits = self._logits
        if self._penalties:
            logits = self._penalties(logits, [[*row.prompt.ids, *row.ids] for row in self._running])
        drawn = [
            row.noise[len(row.ids) - row.finished] for row in self._running
        ]  # a finished one repeats its last draw
        noise = torch.tensor(drawn, dtype=torch.float64)
        self._tokens = choose_tokens(logits, self._sampling, noise.to(logits.device))
        for row, token in zip(self._running, self._tokens.tolist(), strict=True):
            if not row.finished:
                row.ids.append(token)
        finished_prompts = []
        for row, ended in zip(self._running, self._ended([row.ids for row in self._running]), strict=True):
            if not row.finished and (ended or len(row.ids) == self._sampling.max_new_tokens):
                row.finished = True
                samples = self._finished.setdefault(row.prompt.tag, {})
                samples[row.sample] = row.ids
                if len(samples) == self._sampling.n:
                    del self._finished[row.prompt.tag]
                    finished_prompts.append((row.prompt.tag, [ids for _, ids in sorted(samples.items())]))
        self._remove_finished()
        return finished_prompts

    def _remove_finished(self) -> None:
        """Take finished rows out of the batch; where single rows cannot leave, all of them when the last is finished."""
        unfinished = [i for i, row in enumerate(self._running) if not row.finished]
        if len(unfinished) == len(self._running) or (unfinished and not self._continuous):
            return
        if isinstance(self._cache, RowCache):
            unfinished = self._cache.keep(unfinished)
        self._running, self._tokens = [self._running[i] for i in unfinished], self._tokens[unfinished]

    @torch.no_grad()
    def _decode(self) -> None:
        """Feed each row the token that it drew last, for the logits of the next one."""
        self._width += 1
        lengths = [row.length for row in self._running]
        with self._policy.autocast():
            self._logits = self._policy.transformer(
                input_ids=self._tokens[:, None],
                attention_mask=self._mask(lengths, self._width),
                position_ids=torch.tensor(lengths, device=self._tokens.device)[:, None] - 1,
                past_key_values=self._cache,
                use_cache=True,
            ).logits[:, -1]

    def _mask(self, lengths: list[int], width: int) -> Tensor:
        """1 where a row has a token, [rows, width]: all rows end in the last column."""
        device = self._policy.transformer.device
        starts = width - torch.tensor(lengths, device=device)
        return (torch.arange(width, device=device) >= starts[:, None]).long()

    def _noise(self, prompt: TokenPrompt, sample: int) -> np.ndarray:
        return np.random.default_rng([self._seed, prompt.stream, sample]).random(self._sampling.max_new_tokens)


def _within_budget(prompts: Sequence[TokenPrompt], *, padded: bool) -> Iterator[list[TokenPrompt]]:
    """Consecutive prompts of at most PREFILL_TOKENS tokens together, padding (`padded`) counted; a longer one alone."""
    group: list[TokenPrompt] = []
    tokens = longest = 0
    for prompt in prompts:
        tokens, longest = tokens + len(prompt.ids), max(longest, len(prompt.ids))
        if group and ((len(group) + 1) * longest if padded else tokens) > PREFILL_TOKENS:
            yield group
            group, tokens, longest = [], len(prompt.ids), len(prompt.ids)
        group.append(prompt)
    if group:
        yield group
