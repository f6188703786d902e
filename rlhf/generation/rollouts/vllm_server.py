"""Rollouts by a server of vLLM's that the user has started: the adapter is loaded by name, token ids go in and come out.

An `Engine` for several processes: rank 0 loads the policy's adapter and tells the others its name, then each asks for its own
prompts. Every sync has a new name, so the server can neither sample from an older adapter nor from keys and values that it made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

from rlhf.errors import RecipeError, RlhfError
from rlhf.generation.context import check_context
from rlhf.generation.engine import Completion, Progress
from rlhf.generation.engines.concurrent import concurrently
from rlhf.generation.engines.sampling import request_seed
from rlhf.generation.in_process import completion_of, stop_token_ids
from rlhf.generation.rollouts.adapter_folder import AdapterFolder
from rlhf.generation.rollouts.lora_server import LoraServer
from rlhf.models.policy import Policy
from rlhf.recipe.rollouts import VllmServerRollouts
from rlhf.recipe.sections import SamplingSection
from rlhf.runs.identity import of_model

LOCAL = ("localhost", "127.0.0.1", "::1")
PROBE = "Question: 1 + 1 = ?\n\nAnswer:\t\u00e9\u4e2d\ud55c \u2028 0123456789 <|end|> </s>"  # tokenizers differ in what is rare


class VllmServerEngine:
    """Samples from the policy through a server. Implements `engine.Engine`; `close` it."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        section: VllmServerRollouts,
        *,
        key: str,
        base: str,
        start: str,
        output_dir: Path,
        accelerator: Accelerator,
    ) -> None:
        """Raises SetupError or RecipeError, on every rank, for a server that is not there or runs something else.

        key: the recipe's key of the section. base: the policy's base, a folder or a hub name. start: the command for messages.
        """
        self._policy, self._tokenizer, self._section = policy, tokenizer, section
        self._accelerator, self._key, self._base, self._command = accelerator, key, base, start
        self._stop_ids = stop_token_ids(policy.transformer, tokenizer)
        self._server = LoraServer(section, key=key, start=start)
        self._adapter: str | None = None
        self._folder: AdapterFolder | None = None
        if accelerator.is_main_process:
            self._folder = AdapterFolder(output_dir, 0, in_memory=urlsplit(section.base_url).hostname in LOCAL)
        self._max_length: int | None = self._by_rank_0(self._checked)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSection,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """As `Engine.generate`, from the policy as it is now. Every rank must call it."""
        check_context(max(map(len, prompts), default=0), sampling.max_new_tokens, self._max_length, "the server")
        adapter = self._by_rank_0(self._sync)

        def work(i: int) -> list[Completion]:
            return self._sample(adapter, prompts[i], sampling, request_seed(seed, str(i)))

        results: list[list[Completion]] = [[] for _ in prompts]
        for i, group in concurrently(work, range(len(prompts)), self._section.concurrency):
            results[i] = group
            if progress is not None:
                progress(len(group), sum(len(c.ids) for c in group))
        return results

    def close(self) -> None:
        """Unload the adapter and remove its files. A server that is gone by now is no error."""
        if self._adapter is not None and self._folder is not None:
            with suppress(RlhfError):
                self._server.unload(self._adapter, tries=1)
        self._server.close()
        if self._folder is not None:
            self._folder.close()

    def _sync(self) -> str:
        """Load the policy's adapter as it is now, and forget the one before; its name. The others have finished with that one:
        they met this rank since, when the iteration was measured.
        """
        assert self._folder is not None
        folder = self._folder.write(self._policy)
        before, self._adapter = self._adapter, None
        if before is not None:
            self._server.unload(before)
        self._server.load(folder.name, folder)
        self._adapter = folder.name
        return folder.name

    def _sample(self, adapter: str, prompt: Sequence[int], sampling: SamplingSection, seed: int) -> list[Completion]:
        body: dict[str, Any] = {
            "model": adapter,
            "prompt": list(prompt),
            "n": sampling.n,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": 1.0,  # unset ones are filled in from the model's own generation_config
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "watermarking": False,
            "stop": sampling.stop,
            "stop_token_ids": sorted(self._stop_ids),
            "seed": seed,
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        return [self._completion(choice, sampling) for choice in self._server.complete(body)]

    def _completion(self, choice: dict[str, Any], sampling: SamplingSection) -> Completion:
        ids, scored = choice.get("token_ids"), choice.get("logprobs")
        logprobs = scored.get("token_logprobs") if isinstance(scored, dict) else None
        if not ids or not isinstance(logprobs, list) or len(logprobs) != len(ids) or None in logprobs:
            raise self._server.error(
                "a completion has no token ids, or not one log-probability for each; vLLM gives both from 0.11 on",
                start=True,
            )
        sample = completion_of(list(ids), sampling, self._tokenizer, self._stop_ids)
        ended = sample.ended or choice.get("finish_reason") == "stop"
        return replace(sample, ended=ended, logprobs=tuple(map(float, logprobs)))

    def _checked(self) -> int | None:
        """The server's positions, if it runs the policy's base with the policy's tokenizer; what a killed run left is unloaded."""
        served = self._server.served()
        if not _same_model(served.root, self._base):
            raise RecipeError(
                f"{self._key}.base_url: the server runs {served.root}, and the policy's adapters belong on {self._base}. "
                f"Start it with: {self._command}"
            )
        ours = self._tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        if self._server.tokens(served.name, PROBE) != ours:
            raise RecipeError(
                f"{self._key}.base_url: the server's tokenizer gives other ids than the policy's; start it without --tokenizer, or "
                "with the policy's folder there"
            )
        assert self._folder is not None
        for name in served.adapters:
            if name.startswith(self._folder.prefix):
                self._server.unload(name)
        return served.max_length

    def _by_rank_0(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0, on every rank; what it raises there, every rank raises."""
        found: list[Any] = [None, None]
        if self._accelerator.is_main_process:
            try:
                found[0] = work()
            except RlhfError as error:
                found[1] = error
        broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        return found[0]


def _same_model(root: str, base: str) -> bool:
    """Whether the server's model is the policy's base: by name, else by content where the server's folder can be read here."""
    return root == base or (Path(root).is_dir() and of_model(root) == of_model(base))
