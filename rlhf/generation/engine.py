"""Sample completions with a transformers model: prefill each prompt once, then decode its n samples side by side.

Differs from `model.generate`: the prompt is computed once for its n samples, rows that ended leave the batch, prompts of
like length share a batch, and nothing of the model's own `generation_config` leaks in (a repetition penalty there would
bias PPO's ratios). Every sample draws from its own random stream, keyed by (seed, prompt, sample): the same seed gives
the same samples whatever the batch size (up to rounding: bf16 kernels differ a little with the size of a batch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..models.policy import Policy
from ..recipe.sections import SamplingSection
from ..recipe.synthesis import TextSampling
from .penalties import Penalties

STOP_WINDOW = 32  # tokens looked at for a stop string: longer than any sensible one


@dataclass(frozen=True)
class Completion:
    """One sample. `ended`: a stop token or stop string was reached; the stop token is the last of `ids`."""

    ids: list[int]
    text: str
    ended: bool


class Engine(Protocol):
    """What stages need of a generator: token ids in, samples out, in the order of the prompts."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSection,
        *,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]: ...


class TransformersEngine:
    """Decodes in process with the very module that trains, adapters and all."""

    def __init__(self, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
        self.policy = policy
        self.tokenizer = tokenizer
        self.stop_ids = stop_token_ids(policy.transformer, tokenizer)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSection,
        *,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
        streams: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt. `progress` is told the samples and tokens of each finished batch.

        `streams` names each prompt's random stream, so that its samples do not hang on its place; that place without.
        """
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        per_batch = max(1, sampling.batch_size // sampling.n)
        results: list[list[Completion]] = [[] for _ in prompts]
        training = self.policy.training
        self.policy.eval()
        try:
            for start in range(0, len(order), per_batch):
                chosen = order[start : start + per_batch]
                samples = [(i, j) for i in chosen for j in range(sampling.n)]
                noise = np.stack(
                    [_stream(seed, streams[i] if streams else i, j, sampling.max_new_tokens) for i, j in samples]
                )
                with self.policy.autocast():
                    rows = self._decode([prompts[i] for i in chosen], sampling, torch.from_numpy(noise))
                for (i, _), row in zip(samples, rows, strict=True):
                    results[i].append(self.completion(row, sampling))
                if progress is not None:
                    progress(len(rows), sum(map(len, rows)))
        finally:
            self.policy.train(training)
        return results

    def _decode(self, prompts: list[Sequence[int]], sampling: SamplingSection, noise: Tensor) -> list[list[int]]:
        """One batch of prompts, `n` samples each; noise: uniform draws, [prompts * n, max_new_tokens]."""
        model, n = self.policy.transformer, sampling.n
        device = model.device
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        noise = noise.to(device)
        cache = DynamicCache(config=model.config)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        position = position[:, -1:]
        if n > 1:
            cache.batch_repeat_interleave(n)
            logits, mask, position = (x.repeat_interleave(n, 0) for x in (logits, mask, position))
        rows: list[list[int]] = [[] for _ in range(len(prompts) * n)]
        alive = torch.arange(len(rows), device=device)
        penalties = Penalties(sampling)
        for step in range(sampling.max_new_tokens):
            if penalties:
                logits = penalties(logits, [[*prompts[i // n], *rows[i]] for i in alive.tolist()])
            tokens = choose_tokens(logits, sampling, noise[alive, step])
            for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
                rows[row].append(token)
            done = torch.tensor(self._ended([rows[i] for i in alive.tolist()], sampling.stop), device=device)
            if step + 1 == sampling.max_new_tokens or done.all():
                break
            if done.any():
                keep = (~done).nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                alive, tokens, mask, position = alive[keep], tokens[keep], mask[keep], position[keep]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            position = position + 1
            logits = model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        return rows

    def _ended(self, rows: list[list[int]], stop: list[str]) -> list[bool]:
        """Which rows have just reached a stop token or completed a stop string."""
        done = [row[-1] in self.stop_ids for row in rows]
        if stop:
            tails = self.tokenizer.batch_decode([row[-STOP_WINDOW:] for row in rows], skip_special_tokens=True)
            done = [d or any(s in tail for s in stop) for d, tail in zip(done, tails, strict=True)]
        return done

    def completion(self, ids: list[int], sampling: SamplingSection) -> Completion:
        """A sample from its ids: the text ends before its stop token or stop string."""
        ended = ids[-1] in self.stop_ids
        text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        cuts = [at for at in (text.find(s) for s in sampling.stop) if at >= 0]
        return Completion(ids, text[: min(cuts)] if cuts else text, ended or bool(cuts))


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's EOS and whatever else the model itself was published to stop at."""
    config = getattr(model, "generation_config", None)
    published = getattr(config, "eos_token_id", None)
    extra = published if isinstance(published, list) else [published]
    return {int(i) for i in [tokenizer.eos_token_id, *extra] if i is not None}


def _stream(seed: int, prompt: int, sample: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, prompt, sample]).random(length)


def choose_tokens(logits: Tensor, sampling: SamplingSection, noise: Tensor) -> Tensor:
    """One token a row by inverting the distribution function at `noise`: logits [B, V], uniform noise [B] -> [B].

    Temperature first, then top-k, then top-p (the smallest set of tokens whose probability reaches p), then min-p (Nguyen et
    al. 2024: no token under that share of the likeliest one's probability): the order of transformers.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest_kept = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, float("-inf"))
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        kept = torch.zeros_like(probabilities).scatter(1, order, ordered * (before < sampling.top_p))
        probabilities = kept / kept.sum(-1, keepdim=True)
    if isinstance(sampling, TextSampling) and sampling.min_p > 0:
        floor = sampling.min_p * probabilities.max(-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    cumulative = probabilities.double().cumsum(-1)
    targets = noise.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
