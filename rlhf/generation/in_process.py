"""An `Engine` that samples with a transformers model in this process, by the continuous batches of `decoding`.

Three things differ from `model.generate`. A prompt is computed once for its n samples. When a sample is finished, the next prompt
takes its place in the batch. The model's own `generation_config` is ignored (a repetition penalty there would bias PPO's
ratios). Every sample draws from a random stream of its own, given by (seed, prompt, sample), so the same seed gives the same
samples at every batch size (up to rounding: bf16 kernels differ a little with the size of a batch).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.errors import RecipeError
from rlhf.generation.context import check_context
from rlhf.generation.decoding import Decoder, TokenPrompt
from rlhf.generation.engine import Completion, Progress
from rlhf.models.batching import evaluating
from rlhf.models.policy import Policy
from rlhf.recipe.sections import SamplingSection

STOP_WINDOW = 32  # a stop string is looked for in so many last tokens: more than any stop string has


class InProcessEngine:
    """Samples with the same module that trains, with its adapters. Implements `engine.Engine`."""

    def __init__(self, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises RecipeError for a model without `past_key_values`: it would forget its prompt and give no error."""
        self.policy = policy
        self.tokenizer = tokenizer
        self.stop_ids = stop_token_ids(policy.transformer, tokenizer)
        model = policy.transformer
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise RecipeError(
                f"model: {type(model).__name__} has no past_key_values to sample with in process; use an engine of vllm"
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSection,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """As `Engine.generate`. Samples the longest prompts first."""
        check_context(
            max(map(len, prompts), default=0), sampling.max_new_tokens, context_length(self.policy.transformer)
        )
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        results: list[list[Completion]] = [[] for _ in prompts]
        with evaluating(self.policy), self.policy.autocast():  # around all steps: weights are cast once
            for i, group in self.samples((TokenPrompt(i, i, prompts[i]) for i in order), sampling, seed=seed):
                results[i] = group
                if progress is not None:
                    progress(len(group), sum(len(c.ids) for c in group))
        return results

    def samples(
        self, prompts: Iterable[TokenPrompt], sampling: SamplingSection, *, seed: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Each prompt's tag with its `sampling.n` completions, as soon as they are finished. Prompts are read when there is room.

        Between two results the policy is in the mode that it was in before, so its owner may train it or sample from it.
        """
        decoder = Decoder(self.policy, sampling, seed=seed, ended=lambda rows: self._ended(rows, sampling.stop))
        run = decoder.run(prompts)
        while True:
            with evaluating(self.policy):
                finished = next(run, None)
            if finished is None:
                return
            tag, rows = finished
            yield tag, [self.completion(row, sampling) for row in rows]

    def _ended(self, rows: list[list[int]], stop: list[str]) -> list[bool]:
        """Which rows have just reached a stop token or completed a stop string."""
        done = [row[-1] in self.stop_ids for row in rows]
        if stop:
            tails = self.tokenizer.batch_decode([row[-STOP_WINDOW:] for row in rows], skip_special_tokens=True)
            done = [d or any(s in tail for s in stop) for d, tail in zip(done, tails, strict=True)]
        return done

    def completion(self, ids: list[int], sampling: SamplingSection) -> Completion:
        """A sample from its ids."""
        return completion_of(ids, sampling, self.tokenizer, self.stop_ids)


def completion_of(
    ids: list[int], sampling: SamplingSection, tokenizer: PreTrainedTokenizerBase, stop_ids: set[int]
) -> Completion:
    """A sample from its ids: the text ends before its stop token or stop string."""
    ended = ids[-1] in stop_ids
    text = str(tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True))
    cuts = [at for at in (text.find(s) for s in sampling.stop) if at >= 0]
    return Completion(ids, text[: min(cuts)] if cuts else text, ended or bool(cuts))


def default_device() -> str:
    """Where a model runs outside training: on the GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def context_length(model: PreTrainedModel) -> int | None:
    """The number of positions that the model has; None if its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's EOS and the other stop tokens that the model was published with."""
    config = getattr(model, "generation_config", None)
    published = getattr(config, "eos_token_id", None)
    extra = published if isinstance(published, list) else [published]
    return {int(i) for i in [tokenizer.eos_token_id, *extra] if i is not None}
