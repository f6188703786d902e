"""Texts from a model in this process: requests become ids, prompts of similar length share a batch, and ids become text again.

`generation.in_process` does the sampling, so a request's samples come from its own random stream (seed, key, sample). A resumed
run, or a run in another order, draws the same. Beam search goes through transformers' `generate` with a GenerationConfig that
states every setting. The model's own GenerationConfig is removed, because `generate` takes unset values from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from transformers import GenerationConfig

from rlhf.errors import RecipeError, first_line
from rlhf.generation.decoding import TokenPrompt
from rlhf.generation.engine import Completion
from rlhf.generation.engines.encode import Encoder, located, named
from rlhf.generation.engines.likelihood import Encoded, Group, LastLines
from rlhf.generation.engines.sampling import distinct_samples, refuse_unsupported, request_seed, stream, windows
from rlhf.generation.in_process import InProcessEngine, context_length, default_device
from rlhf.generation.penalties import Penalties
from rlhf.generation.text_engine import Answer, Request
from rlhf.models.load import load_policy
from rlhf.models.policy import Policy
from rlhf.recipe.sections import TemplateSection
from rlhf.recipe.synthesis import TextSampling, TransformersSection

WINDOW = 16  # batches read ahead, so that prompts of similar length can share a batch


class TransformersText:
    """A `TextEngine` on one device: the GPU, if there is one."""

    def __init__(
        self, section: TransformersSection, *, name: str = "transformers", template: TemplateSection | None = None
    ) -> None:
        """A `template` replaces what `section.chat` says. Raises RecipeError, SetupError."""
        self._name = name
        path, adapter = located(name, section.model.name_or_path, section.adapter)
        model = section.model.model_copy(update={"name_or_path": path})
        device = default_device()
        self._encoder = named(name, lambda: Encoder(path, section.chat, template))
        policy = named(name, lambda: load_policy(model, quantization=section.quantization, device=device))
        if adapter is not None:
            named(name, lambda: _add_adapter(policy, adapter))
        self._engine = InProcessEngine(policy.eval(), self._encoder.tokenizer)
        network = policy.transformer
        network.generation_config = GenerationConfig()
        self._positions = context_length(network)

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        """As `TextEngine.answers`. Reads 16 batches ahead and answers the longest prompts first; likelihoods enforce `choices`."""
        refuse_unsupported("transformers", sampling, name=self._name)
        refused: list[tuple[Request, Answer]] = []
        encoded = self._encoded(requests, sampling, refused)
        answered = self._searched if sampling.num_beams > 1 else self._sampled
        if choices:
            last = named(self._name, lambda: LastLines(self._engine.policy, self._encoder, choices, sampling, seed))
            groups = last(encoded, answered)
        else:
            groups = answered(encoded, sampling, seed)
        for request, ids, group in groups:
            while refused:
                yield refused.pop()
            yield request, _answer(ids, group, sampling)
        yield from refused

    def close(self) -> None:
        """Free the model's memory."""
        del self._engine
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _encoded(
        self, requests: Iterable[Request], sampling: TextSampling, refused: list[tuple[Request, Answer]]
    ) -> Iterator[Encoded]:
        """The requests with their ids, the longest of each window first. Requests that cannot be asked go to `refused`."""
        for window in windows(requests, max(1, sampling.batch_size // _rows_each(sampling)) * WINDOW):
            fit: list[Encoded] = []
            encoded = self._encoder.fitting(window, sampling.max_new_tokens, self._positions)
            for request, ids in zip(window, encoded, strict=True):
                if isinstance(ids, str):
                    refused.append((request, Answer([], [], 0, 0, error=ids)))
                else:
                    fit.append((request, ids))
            yield from sorted(fit, key=lambda pair: -len(pair[1]))

    def _sampled(self, encoded: Iterator[Encoded], sampling: TextSampling, seed: int) -> Iterator[Group]:
        once = sampling.model_copy(update={"n": distinct_samples(sampling)})
        running: dict[int, Encoded] = {}

        def prompts() -> Iterator[TokenPrompt]:
            for tag, (request, ids) in enumerate(encoded):
                running[tag] = request, ids
                yield TokenPrompt(tag, stream(request.key), ids)

        for tag, group in self._engine.samples(prompts(), once, seed=seed):
            yield *running.pop(tag), group

    def _searched(self, encoded: Iterator[Encoded], sampling: TextSampling, seed: int) -> Iterator[Group]:
        """Beam search. It takes one request at a time if a batch would change the answer: sampled beams share a random
        generator, and `generate` penalises padding (often EOS) like tokens of the text."""
        together = sampling.temperature == 0 and not Penalties(sampling)
        for batch in windows(encoded, max(1, sampling.batch_size // sampling.num_beams) if together else 1):
            with torch.random.fork_rng():
                torch.manual_seed(request_seed(seed, batch[0][0].key))
                groups = self._search([ids for _, ids in batch], sampling)
            yield from ((request, ids, group) for (request, ids), group in zip(batch, groups, strict=True))

    @torch.no_grad()
    def _search(self, prompts: list[list[int]], sampling: TextSampling) -> list[list[Completion]]:
        policy, tokenizer = self._engine.policy, self._engine.tokenizer
        network = policy.transformer
        width = max(map(len, prompts))
        config = _generation_config(sampling, sorted(self._engine.stop_ids), policy.pad_token_id)
        with policy.autocast():
            out = network.generate(  # type: ignore[operator]
                torch.tensor([[policy.pad_token_id] * (width - len(p)) + p for p in prompts], device=network.device),
                attention_mask=torch.tensor(
                    [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=network.device
                ),
                generation_config=config,
                **({"tokenizer": tokenizer} if sampling.stop else {}),
            )
        rows = [self._engine.completion(self._until_stop(row), sampling) for row in out[:, width:].tolist()]
        return [rows[i : i + sampling.n] for i in range(0, len(rows), sampling.n)]

    def _until_stop(self, ids: list[int]) -> list[int]:
        """A row up to its first stop token. The rest is padding."""
        end = next((i for i, token in enumerate(ids) if token in self._engine.stop_ids), len(ids) - 1)
        return ids[: end + 1]


def _add_adapter(policy: Policy, folder: str) -> None:
    """Merge the adapter into a float32 model. Elsewhere it stays beside the base: the sum would be rounded away."""
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(policy.transformer, folder)
    except (ValueError, RuntimeError, KeyError) as error:
        raise RecipeError(f"adapter: {folder} does not fit this model: {first_line(error)}") from error
    rounds = getattr(policy.transformer, "hf_quantizer", None) or policy.transformer.dtype != torch.float32
    policy.model = adapted if rounds else adapted.merge_and_unload()


def _generation_config(sampling: TextSampling, stop_ids: list[int], pad: int) -> GenerationConfig:
    """States every setting. None and 1.0 switch a setting off."""
    sampled = sampling.temperature > 0
    warpers = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
    }
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        num_beams=sampling.num_beams,
        num_return_sequences=sampling.n,
        length_penalty=sampling.length_penalty,
        repetition_penalty=sampling.repetition_penalty,
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        do_sample=sampled,
        stop_strings=sampling.stop or None,
        eos_token_id=stop_ids,
        pad_token_id=pad,
        use_cache=True,
        **(warpers if sampled else {}),
    )


def _rows_each(sampling: TextSampling) -> int:
    """How many rows of the batch a request takes."""
    return sampling.num_beams if sampling.num_beams > 1 else distinct_samples(sampling)


def _answer(prompt: list[int], group: list[Completion], sampling: TextSampling) -> Answer:
    texts, ended = [c.text for c in group], [c.ended for c in group]
    copies = sampling.n // len(group)  # greedy: all copies are equal
    return Answer(texts * copies, ended * copies, len(prompt), sum(len(c.ids) for c in group))
