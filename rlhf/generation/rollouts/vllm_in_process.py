"""Rollouts by vLLM in this process: the policy's base once more, on the same device, with the policy's adapter on it.

An `Engine`, one for each process. Beside `in_process`, which samples with the module that trains and needs no second base; this
one is for long completions of many prompts on a GPU. With `sleep` its memory is free while the policy trains.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.errors import SetupError
from rlhf.generation.context import check_context
from rlhf.generation.engine import Completion, Progress
from rlhf.generation.engines.sampling import request_seed
from rlhf.generation.engines.vllm_engine import INSTALL
from rlhf.generation.in_process import completion_of, stop_token_ids
from rlhf.generation.rollouts.adapter_folder import AdapterFolder
from rlhf.generation.rollouts.command import room_for
from rlhf.models.one_adapter import rank_of
from rlhf.models.policy import Policy
from rlhf.recipe.rollouts import VllmRollouts
from rlhf.recipe.sections import SamplingSection


class VllmInProcess:
    """Samples from the policy through vLLM. Implements `engine.Engine`; `close` it."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        section: VllmRollouts,
        *,
        key: str,
        options: dict[str, Any],
        output_dir: Path,
        rank: int,
    ) -> None:
        """Loads the base. `options`: what of vLLM's `LLM` follows from the recipe, `model` and `max_model_len` among them.

        Raises SetupError without vLLM, and where it cannot run the base.
        """
        if importlib.util.find_spec("vllm") is None:
            raise SetupError(f"{key}.engine: vLLM is not installed; {INSTALL}, or ask a server: engine: vllm_server")
        if options.get("quantization") == "bitsandbytes" and importlib.util.find_spec("vllm_bnb_plugin") is None:
            raise SetupError(
                f"{key}.engine: vLLM loads a base in 4 bits by a package of its own; install it with: pip install vllm-bnb-plugin"
            )
        self._policy, self._tokenizer, self._section = policy, tokenizer, section
        self._stop_ids = stop_token_ids(policy.transformer, tokenizer)
        self._folder = AdapterFolder(output_dir, rank, in_memory=True)
        self._max_length = int(options["max_model_len"])
        self._synced = 0
        room = room_for(rank_of(policy.model))
        self._llm = _opened(key, options | _settings(section, room))
        if section.sleep:
            self._llm.sleep(1)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSection,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """As `Engine.generate`, from the policy as it is now."""
        from vllm.inputs import tokens_input
        from vllm.lora.request import LoRARequest

        if not prompts:  # a process without held-out prompts
            return []
        check_context(max(map(len, prompts)), sampling.max_new_tokens, self._max_length)
        if self._section.sleep:
            torch.cuda.empty_cache()
            self._llm.wake_up()
        folder, self._synced = self._folder.write(self._policy), self._synced + 1
        # a new name and a new number, so that vLLM uses nothing again that an older policy made
        adapter = LoRARequest(folder.name, self._synced, str(folder))
        outputs = self._llm.generate(
            [tokens_input(list(ids)) for ids in prompts],
            [_params(sampling, sorted(self._stop_ids), request_seed(seed, str(i))) for i in range(len(prompts))],
            lora_request=adapter,
            use_tqdm=False,
        )
        results = [[self._completion(sample, sampling) for sample in _in_order(output)] for output in outputs]
        if self._section.sleep:
            self._llm.sleep(1)
        if progress is not None:
            for group in results:
                progress(len(group), sum(len(c.ids) for c in group))
        return results

    def close(self) -> None:
        """End vLLM, let go of its memory and remove the adapter's files."""
        self._folder.close()
        with suppress(AttributeError):
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()

    def _completion(self, sample: Any, sampling: SamplingSection) -> Completion:
        ids = list(sample.token_ids)
        logprobs = tuple(float(at[token].logprob) for token, at in zip(ids, sample.logprobs, strict=True))
        made = completion_of(ids, sampling, self._tokenizer, self._stop_ids)
        return replace(made, ended=made.ended or sample.finish_reason == "stop", logprobs=logprobs)


def _settings(section: VllmRollouts, max_lora_rank: int) -> dict[str, Any]:
    """vLLM's options that follow from the section, and those that rollouts always need."""
    settings: dict[str, Any] = {
        "seed": 0,
        "gpu_memory_utilization": section.gpu_memory_utilization,
        "enforce_eager": section.enforce_eager,
        "enable_sleep_mode": section.sleep,
        "enable_lora": True,
        "max_lora_rank": max_lora_rank,
        "max_loras": 1,
        "logprobs_mode": "processed_logprobs",  # at the sampling temperature, as the trainer's are
        "generation_config": "vllm",  # else the model's own settings fill in what a request leaves unset
    }
    if not torch.cuda.is_available():
        # on a CPU, vLLM 0.30 fails when it splits a seeded request's prompt: CPU generators cannot be wound back
        settings["enable_chunked_prefill"] = False
    return settings


def _opened(key: str, options: dict[str, Any]) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import LLM

    try:
        return LLM(**options)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:500]
        raise SetupError(f"{key}.engine: vLLM cannot run {options['model']}: {reason}") from error


def _params(sampling: SamplingSection, stop_ids: list[int], seed: int) -> Any:
    """vLLM's SamplingParams for rollouts: nothing but temperature, and the log-probability of each sampled token."""
    from vllm import SamplingParams

    return SamplingParams(
        n=sampling.n,
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        stop=sampling.stop,
        stop_token_ids=stop_ids,
        seed=seed,
        logprobs=0,
    )


def _in_order(output: Any) -> list[Any]:
    return sorted(output.outputs, key=lambda sample: sample.index)
