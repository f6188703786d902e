"""Any server that speaks the OpenAI protocol: many requests at once, repeated tries, and a key that stays secret.

After a fault that may pass (429, 5xx, a time-out, a broken connection, half a reply) the request is tried again. If one request is
refused, its answer has an error. A fault that every request would meet (a refused key, no such model, no server) ends the run
with SetupError. The key comes from the environment, goes into one header, and is cut out of everything that a server says.
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
    """This request will never be answered."""


class _Passing(Exception):
    """This try failed; a later one may succeed."""

    def __init__(self, reason: str, *, wait: float | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.refused = wait, refused


@dataclass
class _Run:
    """What the requests in one call of `answers` share. Each wants `wanted` choices. A server may need another `limit_key`."""

    client: JsonClient
    pace: Pace
    sampling: TextSampling
    seed: int
    choices: list[str] | None
    vllm: bool
    wanted: int
    limit_key: str = "max_tokens"
    answered: bool = False  # after the first answer, the key and the model are known to be right
    unanswered: int = 0  # requests in a row that found no server


class OpenaiServer:
    """A `TextEngine` that asks a server. `encode` turns prompts into ids, for a server that takes them."""

    def __init__(
        self, section: OpenaiSection, *, name: str = "openai", encode: Callable[[Text], list[int]] | None = None
    ) -> None:
        """Opens no connection. Raises SetupError if the key is not set."""
        self._section, self._name, self._encode = section, name, encode
        self._key = key_from(section.api_key_env, name)
        self._runs: list[_Run] = []

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        """As `TextEngine.answers`, with `concurrency` requests at a time. `choices` is enforced if the server is vLLM."""
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
        """Stop every running request."""
        for run in list(self._runs):
            run.client.close()

    # --- one request ------------------------------------------------------------------------------------------------

    def _answer(self, request: Request, run: _Run) -> Answer:
        texts: list[str] = []
        ended: list[bool] = []
        prompt_tokens = completion_tokens = retries = 0
        try:
            path, body = addressed(self._encode(request.prompt) if self._encode else request.prompt, self._section.chat)
            while len(texts) < run.wanted:  # a server without `n` sends fewer
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
        copies = run.sampling.n // run.wanted  # greedy: all copies are equal
        return Answer(texts * copies, ended * copies, prompt_tokens, completion_tokens, retries)

    def _insist(self, run: _Run, path: str, body: dict[str, Any]) -> tuple[Choices, int]:
        """(the choices, the number of failed tries before them). Raises _Passing after the last try."""
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
                run.client.closed.wait(
                    (fault.wait or 0.0) + backoff(tries)
                )  # the random part: workers do not come back all at once
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

    # --- faults that end the run --------------------------------------------------------------------------------

    def _refuse_for_good(self, reply: Reply, run: _Run, shared: dict[str, Any]) -> None:
        """Raise SetupError for a reply that every other request would get too."""
        section = self._section
        message, code, parameter = error_of(self._clean(reply.text))
        said = f"HTTP {reply.status}: {message}"
        if reply.status == 401 or (
            reply.status == 403 and not run.answered
        ):  # after an answer, 403 is about this request
            key = f"the key in ${section.api_key_env} is refused" if self._key else "it needs a key; set api_key_env"
            raise self._error(f"{key} ({said})")
        if reply.status == 404:
            raise self._error(f"{self._not_found(run)} ({said})")
        if 300 <= reply.status < 400:
            there = self._clean(reply.headers.get("location", "another address"))
            raise self._error(
                f"redirects to {there}, which is not followed (a key must go to no other host); set base_url to the "
                f"address of the API ({said})"
            )
        if code == "insufficient_quota":
            raise self._error(f"the account's quota is used up ({said})")
        if reply.status in (400, 422):
            names = [key for key in (*shared, "seed") if key == parameter]
            names += [key for key in EXTRAS if key in shared and key in message and key not in names]
            if names:
                hint = "remove it from the step's sampling" if names[0] in EXTRAS else "change the step's sampling"
                raise self._error(f"refuses {names[0]}: {hint} ({said})")

    def _not_found(self, run: _Run) -> str:
        models = [str(model.get("id")) for model in self._models(run)]
        if not models:
            return f"no model {self._section.model!r}, or base_url is not the one that ends in /v1"
        if self._section.model in models:
            return f"it has the model {self._section.model!r}, but not this endpoint; set chat to the other of chat | plain"
        return f"no model {self._section.model!r}; it has {', '.join(models[:20])}" + (", ..." if models[20:] else "")

    def _give_up(self, run: _Run, fault: _Passing) -> None:
        """End the run if as many requests in a row as run at once found no server: the rest would not find it either."""
        run.unanswered += fault.refused
        if fault.refused and run.unanswered >= self._section.concurrency:
            raise self._nobody(str(fault))

    def _nobody(self, reason: str) -> SetupError:
        return self._error(f"nothing answers there ({reason}); start the server, or correct base_url")

    def _error(self, problem: str) -> SetupError:
        return SetupError(f"engine {self._name}: {self._section.base_url}: {problem}")

    # --- the server itself ------------------------------------------------------------------------------------------

    def _is_vllm(self, run: _Run) -> bool:
        """Whether the server's list of models says so; a server without a list is not vLLM.

        The list is tried as often as a request, because a busy vLLM must get every setting too.
        """
        tries = 0
        while True:
            try:
                return any(model.get("owned_by") == "vllm" for model in self._models(run, raising=True))
            except TransportError as error:
                tries += 1
                if tries > self._section.max_retries:
                    if not error.refused:
                        return False
                    raise self._nobody(self._clean(str(error))) from None
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

    def _clean(self, text: str) -> str:
        """A server's words without the key; some servers repeat it."""
        return text.replace(self._key, "[key]") if self._key else text


def key_from(variable: str | None, name: str) -> str | None:
    """The key that an environment variable holds, for engine `name`; None where the recipe names no variable."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise SetupError(f"engine {name}: api_key_env: the environment variable {variable} is not set")
    if not (key.isascii() and key.isprintable() and " " not in key):  # http.client would print it in its error
        raise SetupError(f"engine {name}: api_key_env: {variable} is not a valid key")
    return key
