"""vLLM in this process: requests stream through its continuous batching, and each comes out when it is done.

Beside `transformers_text`, with the same ids in and the same seeds. Drives the engine's own step loop instead of calling
`LLM.generate` on the whole list: that gives nothing back until the last request is done, and holds them all.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rlhf.errors import RecipeError, SetupError
from rlhf.generation.engines.encode import Encoder, base_and_adapter, located, named
from rlhf.generation.engines.sampling import distinct_samples, last_line_pattern, refuse_unsupported, request_seed
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.synthesis import TextSampling, VllmSection

AHEAD = 2  # requests in the engine, as a multiple of what it runs at once: a freed place never waits for the next one
INSTALL = "install it with: pip install 'rlhf[vllm]'"
APART = "or install it apart and ask its server: engine: openai"


class VllmEngine:
    """A `TextEngine` on one machine's GPUs (or a CPU, with vLLM's build for it)."""

    def __init__(self, section: VllmSection, *, name: str = "vllm") -> None:
        """Loads the model. Raises SetupError without vLLM or with too little memory, RecipeError for what is not there."""
        self._name = name
        if importlib.util.find_spec("vllm") is None:
            raise SetupError(f"engine {name}: vLLM is not installed; {INSTALL}, {APART}")
        path, adapter = located(name, section.model, section.adapter)
        self._encoder = named(name, lambda: Encoder(path, section.chat))
        base, adapter = base_and_adapter(path, adapter)
        named(name, lambda: check_rank(adapter, section.max_lora_rank))
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM

        options = {key.replace("-", "_"): value for key, value in engine_options(section, adapter).items()}
        try:
            self._llm: Any = LLM(model=base, seed=0, **options)
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:500]
            raise SetupError(f"engine {name}: vLLM cannot run {path}: {reason}") from error
        self._lora = _lora_request(adapter)
        self._positions = int(self._llm.llm_engine.vllm_config.model_config.max_model_len)
        self._at_once = int(self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)
        self._started = 0

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        """As `TextEngine.answers`, with guided decoding for `choices`; reads twice ahead of what vLLM runs at once."""
        refuse_unsupported("vllm", sampling, name=self._name)
        engine, source = self._llm.llm_engine, iter(requests)
        under_way: dict[str, Request] = {}
        limit = max(1, AHEAD * self._at_once // distinct_samples(sampling))
        more = True
        try:
            while more or under_way:
                while more and len(under_way) < limit:
                    request = next(source, None)
                    if request is None:
                        more = False
                        break
                    [ids] = self._encoder.fitting([request], sampling.max_new_tokens, self._positions)
                    if isinstance(ids, str):
                        yield request, Answer([], [], 0, 0, error=ids)
                    else:
                        under_way[self._start(request, ids, sampling, seed, choices)] = request
                for output in engine.step() if under_way else ():
                    if output.finished:
                        yield under_way.pop(output.request_id), _answer(output, sampling)
        finally:
            if under_way:
                engine.abort_request(list(under_way))

    def close(self) -> None:
        """End vLLM's processes and let go of the memory."""
        with suppress(AttributeError):
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()

    def _start(
        self, request: Request, ids: list[int], sampling: TextSampling, seed: int, choices: list[str] | None
    ) -> str:
        """Hand a request to vLLM; the name it goes by there."""
        from vllm.inputs import tokens_input

        self._started += 1
        engine_id = str(self._started)
        own_seed = None if sampling.temperature == 0 else request_seed(seed, request.key)
        params = sampling_params(sampling, own_seed, choices)
        self._llm.llm_engine.add_request(engine_id, tokens_input(ids), params, lora_request=self._lora)
        return engine_id


def sampling_params(sampling: TextSampling, seed: int | None, choices: list[str] | None) -> Any:
    """vLLM's SamplingParams with every setting stated."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return SamplingParams(
        n=distinct_samples(sampling),
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        stop=sampling.stop,
        seed=seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(regex=last_line_pattern(choices)) if choices else None,
    )


def engine_options(section: VllmSection, adapter: str | None) -> dict[str, Any]:
    """vLLM's options under their command-line names: for its server as they are, for `LLM` with underscores."""
    options: dict[str, Any] = {
        "dtype": section.dtype,
        "tensor-parallel-size": section.tensor_parallel_size,
        "gpu-memory-utilization": section.gpu_memory_utilization,
        "generation-config": "vllm",  # else the model's own settings fill in what a request leaves unset
    }
    if section.max_model_len is not None:
        options["max-model-len"] = section.max_model_len
    if section.quantization is not None:
        options["quantization"] = section.quantization
    if not torch.cuda.is_available() and shutil.which("nvidia-smi") is None:
        # on a CPU, vLLM 0.30 fails when it splits a seeded request's prompt: CPU generators cannot be wound back
        options["enable-chunked-prefill"] = False
    if section.enforce_eager:
        options["enforce-eager"] = True
    if adapter is not None:
        options |= {"enable-lora": True, "max-lora-rank": section.max_lora_rank, "max-loras": 1}
    return options


def check_rank(adapter: str | None, most: int) -> None:
    """Raise RecipeError for an adapter of a higher rank than vLLM is told to make room for."""
    if adapter is None:
        return
    rank = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8")).get("r", 0)
    if rank > most:
        raise RecipeError(f"max_lora_rank: {adapter} has rank {rank}, but there is room for {most}; set it to {rank}")


def _lora_request(adapter: str | None) -> Any:
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, adapter)


def _answer(output: Any, sampling: TextSampling) -> Answer:
    samples = sorted(output.outputs, key=lambda sample: sample.index)
    texts, ended = [s.text for s in samples], [s.finish_reason == "stop" for s in samples]
    copies = sampling.n // len(samples)  # greedy: one stands for all
    paid = sum(len(s.token_ids) for s in samples)
    return Answer(texts * copies, ended * copies, len(output.prompt_token_ids or ()), paid)
