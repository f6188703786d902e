"""A server as a scorer: JSON with completions out, one score for each back.

    POST url   {"prompts": [...], "completions": [...], "ended": [...], COLUMN: [...]}
    200        {"scores": [1.5, null, ...]}    or the list alone; null: the reward does not apply

The request's keys are the arguments that a Python reward gets, so a server is a reward function behind a handler of ten lines
(docs/rewards.md). A fault that may pass is tried again, with growing waits; any other one, and any answer that is not one number
for each completion, stops the run. Nothing is scored 0 because a server did not answer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from rlhf.errors import RlhfError, SetupError
from rlhf.generation.engines.http_json import JsonClient, Reply, TransportError
from rlhf.generation.engines.retry import backoff, passes, retry_after
from rlhf.generation.reward_scorer import Sample
from rlhf.recipe.scorers import ScorerSection

SHOWN = 200  # characters of a server's answer in an error


class RewardServer:
    """`server(samples)` asks for the scores, `batch_size` at a time. Raises SetupError for a missing key, else RlhfError."""

    def __init__(self, section: ScorerSection, sleep: Callable[[float], object] = time.sleep) -> None:
        assert section.url is not None
        self.section, self.url, self._sleep = section, section.url, sleep
        self._key = _key(section.api_key_env)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = JsonClient(self.url, headers, timeout=section.timeout)

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        size = self.section.batch_size
        return [score for i in range(0, len(samples), size) for score in self._ask(samples[i : i + size])]

    def _ask(self, samples: Sequence[Sample]) -> list[float | None]:
        body: dict[str, Any] = {
            "prompts": [s.prompt for s in samples],
            "completions": [s.completion.text for s in samples],
            "ended": [s.completion.ended for s in samples],
        }
        body |= {name: [s.columns.get(name) for s in samples] for name in self.section.columns}
        tries = 0
        while True:
            wait = None
            try:
                reply = self._client.request("POST", "", body)
                if reply.status == 200:
                    return self._scores(reply.text, len(samples))
                if not passes(reply.status):
                    raise self._error(self._refusal(reply))
                fault, wait = (
                    f"HTTP {reply.status}: {self._shown(reply.text)}",
                    retry_after(reply.headers.get("retry-after")),
                )
            except TransportError as error:
                fault = str(error)
            tries += 1
            if tries > self.section.max_retries:
                raise self._error(f"no answer after {tries} {'try' if tries == 1 else 'tries'}: {self._shown(fault)}")
            self._sleep((wait or 0.0) + backoff(tries))

    def _scores(self, text: str, count: int) -> list[float | None]:
        """The scores of a reply: numbers, or null."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise self._error(f"its answer is not JSON: {self._shown(text)}") from None
        scores = found.get("scores") if isinstance(found, dict) else found
        if not isinstance(scores, list):
            raise self._error(f'expected {{"scores": [...]}} or a list, got {self._shown(text)}')
        if len(scores) != count:
            raise self._error(f"it gave {len(scores)} scores for {count} completions")
        for score in scores:
            if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
                raise self._error(f"a score must be a number or null, got {self._shown(json.dumps(score))}")
        return [None if score is None else float(score) for score in scores]

    def _refusal(self, reply: Reply) -> str:
        said = f"HTTP {reply.status}: {self._shown(reply.text)}"
        if reply.status in (401, 403):
            variable = self.section.api_key_env
            why = f"the key in ${variable} is refused" if variable else "it needs a key; set api_key_env"
            return f"{why} ({said})"
        if reply.status == 404:
            return f"it has nothing at this path; correct url ({said})"
        if 300 <= reply.status < 400:
            return f"it sends elsewhere, which is not followed; set url to {reply.headers.get('location')} ({said})"
        return f"it refuses the request ({said})"

    def _shown(self, text: str) -> str:
        """A server's words, short and without the key; some servers repeat it."""
        text = text.replace(self._key, "[key]") if self._key else text
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

    def _error(self, problem: str) -> RlhfError:
        return RlhfError(f"{self.section.label}: {self.url}: {problem}")


def _key(variable: str | None) -> str | None:
    """The key in an environment variable. Raises SetupError where it is not set, or cannot stand in a header."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise SetupError(f"api_key_env: the environment variable {variable} is not set")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise SetupError(f"api_key_env: {variable} is not a valid key")
    return key
