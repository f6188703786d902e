"""Sample completions with a transformers model: ids in, texts out, by `decoding`'s continuous batches.

Differs from `model.generate`: the prompt is computed once for its n samples, a sample that ended gives its place to the next prompt,
and nothing of the model's own `generation_config` leaks in (a repetition penalty there would bias PPO's ratios). Every
sample draws from its own random stream, keyed by (seed, prompt, sample): the same seed gives the same samples whatever the
batch size (up to rounding: bf16 kernels differ a little with the size of a batch).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.errors import RecipeError
from rlhf.generation.decoding import Decoder, Prompt
from rlhf.models.policy import Policy
from rlhf.recipe.sections import SamplingSection

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
        """Raises RecipeError for a model that keeps its state elsewhere: it would forget its prompt without a word."""
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
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt, whose random stream is its place. `progress` is told each prompt's samples and tokens.

        Raises RecipeError for a prompt that leaves no room in the model's positions.
        """
        self._check_room(max(map(len, prompts), default=0), sampling.max_new_tokens)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        results: list[list[Completion]] = [[] for _ in prompts]
        with _evaluating(self.policy), self.policy.autocast():  # around all steps: weights are cast once
            for i, group in self.samples((Prompt(i, i, prompts[i]) for i in order), sampling, seed=seed):
                results[i] = group
                if progress is not None:
                    progress(len(group), sum(len(c.ids) for c in group))
        return results

    def samples(
        self, prompts: Iterable[Prompt], sampling: SamplingSection, *, seed: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Each prompt's tag with its `sampling.n` completions, as they end; prompts are read as places become free.

        Between two results the policy is in the mode that it was in: its owner may train it, or sample from it elsewhere.
        """
        decoder = Decoder(self.policy, sampling, seed=seed, ended=lambda rows: self._ended(rows, sampling.stop))
        run = decoder.run(prompts)
        while True:
            with _evaluating(self.policy):
                through = next(run, None)
            if through is None:
                return
            tag, rows = through
            yield tag, [self.completion(row, sampling) for row in rows]

    def _check_room(self, longest: int, new_tokens: int) -> None:
        """Learned positions are a table, and on a GPU no error that names it; others were not trained on what lies beyond."""
        positions = getattr(self.policy.transformer.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and longest + new_tokens > positions:
            raise RecipeError(
                f"sampling.max_new_tokens: the longest prompt has {longest} tokens; with {new_tokens} new ones it exceeds "
                f"the {positions} positions of the model"
            )

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


@contextmanager
def _evaluating(policy: Policy) -> Iterator[None]:
    """Evaluation mode, and back; nothing is done, which costs milliseconds in a large model, where it is on already."""
    training = policy.training
    if training:
        policy.eval()
    try:
        yield
    finally:
        if training:
            policy.train()


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's EOS and whatever else the model itself was published to stop at."""
    config = getattr(model, "generation_config", None)
    published = getattr(config, "eos_token_id", None)
    extra = published if isinstance(published, list) else [published]
    return {int(i) for i in [tokenizer.eos_token_id, *extra] if i is not None}
