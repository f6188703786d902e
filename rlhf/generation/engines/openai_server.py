"""Any server that speaks the OpenAI protocol: many requests at once, faults outlived, the key kept to itself.

A fault that passes (429, 5xx, a time-out, a connection that breaks, half a reply) is tried again; one request's refusal is
its answer's error; what no request could outlive (a refused key, no such model, nobody there) ends the run with SetupError.
The key comes from the environment, goes into one header, and is cut out of whatever a server says back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rlhf.data.rows import Text
from rlhf.errors import DataError, SetupError
from rlhf.generation.engines.concurrent import concurrently
from rlhf.generation.engines.http_json import JsonClient, Reply, TransportError
from rlhf.generation.engines.openai_wire import EXTRAS, Choices, addressed, error_of, parse_choices, settings
from rlhf.generation.engines.retry import Pace, backoff, passes, retry_after
from rlhf.generation.engines.sampling import distinct_samples, refuse_unsupported, request_seed
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.synthesis import OpenaiSection, TextSampling


class _Refused(Exception):
    """This request will not be answered, however often it is asked."""


class _Passing(Exception):
    """This try failed; a later one may not."""

    def __init__(self, reason: str, *, wait: float | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.refused = wait, refused


@dataclass
class _Run:
    """One call of `answers`: what its requests share. `wanted` choices each; `limit_key` may turn out to be another."""

    client: JsonClient
    pace: Pace
    sampling: TextSampling
    seed: int
    choices: list[str] | None
    vllm: bool
    wanted: int
    limit_key: str = "max_tokens"
    answered: bool = False  # once a request has been, the key and the model are good
    unanswered: int = 0  # requests given up in a row because nobody was there


class OpenaiServer:
    """A `TextEngine` that asks a server. `encode` puts prompts as ids, for a server known to take them."""

    def __init__(
        self, section: OpenaiSection, *, name: str = "openai", encode: Callable[[Text], list[int]] | None = None
    ) -> None:
        """Opens no connection. Raises SetupError for a key that is not set."""
        self._section, self._name, self._encode = section, name, encode
        self._key = self._read_key()
        self._runs: list[_Run] = []

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        """As `TextEngine.answers`; `concurrency` requests at a time. `choices` is enforced where the server is vLLM."""
        refuse_unsupported("openai", sampling, name=self._name)
        section = self._section
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        client = JsonClient(section.base_url, headers, timeout=section.timeout)
        pace = Pace(section.requests_per_minute, sleep=client.closed.wait)
        run = _Run(client, pace, sampling, seed, choices, vllm=False, wanted=distinct_samples(sampling))
        self._runs.append(run)
        try:
            run.vllm = self._is_vllm(run)
            yield from concurrently(lambda request: self._answer(request, run), requests, section.concurrency)
        finally:
            client.close()
            self._runs.remove(run)

    def close(self) -> None:
        """Break off every request under way."""
        for run in list(self._runs):
            run.client.close()

    # --- one request ------------------------------------------------------------------------------------------------

    def _answer(self, request: Request, run: _Run) -> Answer:
        texts: list[str] = []
        ended: list[bool] = []
        prompt_tokens = completion_tokens = retries = 0
        try:
            path, body = addressed(self._encode(request.prompt) if self._encode else request.prompt, self._section.chat)
            while len(texts) < run.wanted:  # a server that knows no `n` sends fewer
                left = run.wanted - len(texts)
                body |= {
                    "model": self._section.model,
                    "n": left,
                    "seed": request_seed(run.seed, request.key, len(texts)),
                }
                got, tries = self._insist(run, path, body)
                texts, ended, retries = texts + got.texts, ended + got.ended, retries + tries
                prompt_tokens += got.prompt_tokens
                completion_tokens += got.completion_tokens
        except _Passing as fault:
            tries = self._section.max_retries
            reason = f"no answer after {1 + tries} tries: {fault}"
            return Answer([], [], prompt_tokens, completion_tokens, retries + tries, error=reason, gave_up=True)
        except (_Refused, ValueError, DataError) as refusal:
            return Answer([], [], prompt_tokens, completion_tokens, retries, error=str(refusal))
        copies = run.sampling.n // run.wanted  # greedy: one stands for all
        return Answer(texts * copies, ended * copies, prompt_tokens, completion_tokens, retries)

    def _insist(self, run: _Run, path: str, body: dict[str, Any]) -> tuple[Choices, int]:
        """Ask until there are choices; also how often it was asked in vain. Raises _Passing when tries run out."""
        tries = 0
        while True:
            try:
                choices = self._once(run, path, body)
            except _Passing as fault:
                tries += 1
                if tries > self._section.max_retries or run.client.closed.is_set():
                    self._give_up(run, fault)
                    raise
                if fault.wait:
                    run.pace.hold(fault.wait)
                run.client.closed.wait((fault.wait or 0.0) + backoff(tries))  # never all at once when the time is up
            else:
                run.unanswered = 0
                return choices, tries

    def _once(self, run: _Run, path: str, body: dict[str, Any]) -> Choices:
        limit_key = run.limit_key
        shared = settings(run.sampling, vllm=run.vllm, choices=run.choices, limit_key=limit_key)
        run.pace.wait()
        try:
            reply = run.client.request("POST", path, shared | body)
        except TransportError as error:
            raise _Passing(self._clean(str(error)), refused=error.refused) from None
        run.unanswered = 0
        if reply.status == 200:
            try:
                found = parse_choices(reply.text, body["n"])
                run.answered = True
                return replace(found, texts=[self._clean(text) for text in found.texts])
            except ValueError as error:
                raise _Passing(str(error)) from None
        if passes(reply.status):
            self._refuse_for_good(reply, run, shared)
            wait = retry_after(reply.headers.get("retry-after"))
            raise _Passing(f"HTTP {reply.status}: {self._clean(error_of(reply.text)[0])}", wait=wait)
        message, _, parameter = error_of(self._clean(reply.text))
        if limit_key == "max_tokens" and "max_completion_tokens" in message:  # newer models of OpenAI itself
            run.limit_key = "max_completion_tokens"
            return self._once(run, path, body)
        self._refuse_for_good(reply, run, shared)
        raise _Refused(f"HTTP {reply.status}: {message}" + (f" ({parameter})" if parameter else ""))

    # --- what no request can outlive --------------------------------------------------------------------------------

    def _refuse_for_good(self, reply: Reply, run: _Run, shared: dict[str, Any]) -> None:
        """Raise SetupError for a reply that every other request would get too."""
        section = self._section
        message, code, parameter = error_of(self._clean(reply.text))
        said = f"HTTP {reply.status}: {message}"
        if reply.status == 401 or (reply.status == 403 and not run.answered):  # later, 403 is about what was asked
            key = f"the key in ${section.api_key_env} is refused" if self._key else "a key is wanted; set api_key_env"
            raise SetupError(f"engine {self._name}: {section.base_url}: {key} ({said})")
        if reply.status == 404:
            raise SetupError(f"engine {self._name}: {section.base_url}: {self._not_found(run)} ({said})")
        if 300 <= reply.status < 400:
            there = self._clean(reply.headers.get("location", "another address"))
            raise SetupError(
                f"engine {self._name}: {section.base_url}: redirects to {there}, which is not followed (a key must go to no "
                f"other host); set base_url to where the API is ({said})"
            )
        if code == "insufficient_quota":
            raise SetupError(f"engine {self._name}: {section.base_url}: the account's quota is used up ({said})")
        if reply.status in (400, 422):
            names = [key for key in (*shared, "seed") if key == parameter]
            names += [key for key in EXTRAS if key in shared and key in message and key not in names]
            if names:
                hint = "take it out of the step's sampling" if names[0] in EXTRAS else "change the step's sampling"
                raise SetupError(f"engine {self._name}: {section.base_url} refuses {names[0]}: {hint} ({said})")

    def _not_found(self, run: _Run) -> str:
        models = [str(model.get("id")) for model in self._models(run)]
        if not models:
            return f"no model {self._section.model!r}, or base_url is not the one that ends in /v1"
        if self._section.model in models:
            return (
                f"it has the model {self._section.model!r}, but not this endpoint; try the other of chat: chat | plain"
            )
        return f"no model {self._section.model!r}; it has {', '.join(models[:20])}" + (", ..." if models[20:] else "")

    def _give_up(self, run: _Run, fault: _Passing) -> None:
        """Nobody there, for as many requests in a row as run at once: the rest would fare no better."""
        if not fault.refused:
            return
        run.unanswered += 1
        if run.unanswered >= self._section.concurrency:
            raise SetupError(
                f"engine {self._name}: nothing answers at {self._section.base_url} ({fault}); "
                "start the server, or mend base_url"
            )

    # --- the server itself ------------------------------------------------------------------------------------------

    def _is_vllm(self, run: _Run) -> bool:
        """Whether the server says so of its models. Tried as often as a request: one that is busy now is none the less vLLM, and must be
        sent every setting. A server with no such list is another."""
        tries = 0
        while True:
            try:
                return any(model.get("owned_by") == "vllm" for model in self._models(run, raising=True))
            except TransportError as error:
                tries += 1
                if tries > self._section.max_retries:
                    if not error.refused:
                        return False
                    raise SetupError(
                        f"engine {self._name}: nothing answers at {self._section.base_url} ({self._clean(str(error))}); "
                        "start the server, or mend base_url"
                    ) from None
                run.client.closed.wait(backoff(tries))

    def _models(self, run: _Run, *, raising: bool = False) -> list[dict[str, Any]]:
        try:
            reply = run.client.request("GET", "/models")
            if raising and passes(reply.status):
                raise TransportError(f"HTTP {reply.status}")
            found = json.loads(self._clean(reply.text)).get("data")
        except TransportError:
            if raising:
                raise
            return []
        except (ValueError, AttributeError, RecursionError):
            return []
        return [model for model in found if isinstance(model, dict)] if isinstance(found, list) else []

    # --- the key ----------------------------------------------------------------------------------------------------

    def _read_key(self) -> str | None:
        variable = self._section.api_key_env
        if variable is None:
            return None
        key = os.environ.get(variable, "").strip()
        if not key:
            raise SetupError(f"engine {self._name}: api_key_env: the environment variable {variable} is not set")
        if not (key.isascii() and key.isprintable() and " " not in key):  # http.client would print it in its complaint
            raise SetupError(f"engine {self._name}: api_key_env: {variable} holds something that cannot be a key")
        return key

    def _clean(self, text: str) -> str:
        """A server's words without the key, which some repeat."""
        return text.replace(self._key, "[key]") if self._key else text
