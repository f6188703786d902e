"""The server's side of rollouts: vLLM's own routes for adapters, models and completions, with tries again and clear errors.

`vllm_server` decides what to ask. A fault that may pass (no reply, 429, 502, 503) is tried again; any other answer than 200 ends
the run, because no sample may be missing. vLLM answers 500 to an adapter that it cannot load, so 500 is tried again for
completions only. The key is cut out of everything that the server says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import SetupError
from rlhf.generation.engines.http_json import JsonClient, Reply, TransportError
from rlhf.generation.engines.openai_server import key_from
from rlhf.generation.engines.openai_wire import error_of
from rlhf.generation.engines.retry import backoff, passes, retry_after
from rlhf.recipe.rollouts import VllmServerRollouts


@dataclass(frozen=True)
class Served:
    """What a server says of itself: the base's name, where it was loaded from, its positions (None: not said), its adapters."""

    name: str
    root: str
    max_length: int | None
    adapters: list[str]


class LoraServer:
    """A server of vLLM's. `key` is the recipe's key, for messages; `start` the command that starts such a server."""

    def __init__(self, section: VllmServerRollouts, *, key: str, start: str) -> None:
        self._section, self._key, self._start = section, key, start
        self._secret = key_from(section.api_key_env, key)
        root = section.base_url.rstrip("/").removesuffix("/v1")  # its routes lie in and beside /v1
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        self._client = JsonClient(root, headers, timeout=section.timeout)

    def served(self) -> Served:
        """What runs there. Raises SetupError where nothing answers, or no vLLM."""
        models = self._json("GET", "/v1/models").get("data")
        cards = [card for card in models if isinstance(card, dict)] if isinstance(models, list) else []
        base = next((c for c in cards if c.get("owned_by") == "vllm" and c.get("parent") is None), None)
        if base is None:
            raise self.error("this is no server of vLLM's: its list of models names none", start=True)
        adapters = [str(card["id"]) for card in cards if card.get("parent") is not None]
        return Served(str(base["id"]), str(base.get("root")), base.get("max_model_len"), adapters)

    def tokens(self, model: str, text: str) -> list[int]:
        """The ids that the server's tokenizer makes of a text."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return list(self._json("POST", "/tokenize", body).get("tokens") or [])

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter under a name that the server does not know yet."""
        reply = self._reply("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        by_an_earlier_try = reply.status == 400 and "already been loaded" in reply.text  # whose answer was lost
        if reply.status == 200 or by_an_earlier_try:
            return
        said = self._said(reply)
        if reply.status == 404 and "No adapter found" not in reply.text:
            raise self.error(f"it takes no adapters while it runs ({said})", start=True)
        raise self.error(
            f"it could not load the policy's adapter from {folder} ({said}); it must read this path", start=True
        )

    def unload(self, name: str, *, tries: int | None = None) -> None:
        """Forget an adapter. One that the server does not know is no error. `tries`: fewer than the recipe's."""
        reply = self._reply("POST", "/v1/unload_lora_adapter", {"lora_name": name}, tries=tries)
        if reply.status not in (200, 404):
            raise self.error(f"it could not unload the adapter {name} ({self._said(reply)})")

    def complete(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices of one prompt, in order: exactly the `n` asked for."""
        choices = self._json("POST", "/v1/completions", body, passing=(500,)).get("choices")
        if not isinstance(choices, list) or len(choices) != body["n"] or not all(isinstance(c, dict) for c in choices):
            found = len(choices) if isinstance(choices, list) else "no"
            raise self.error(f"asked for {body['n']} completions of a prompt, it gave {found}")
        return sorted(choices, key=lambda choice: int(choice.get("index", 0)))

    def close(self) -> None:
        """Stop all running requests."""
        self._client.close()

    def error(self, problem: str, *, start: bool = False) -> SetupError:
        """What is wrong with the server; `start`: and how to start one that fits."""
        remedy = f". Start it with: {self._start}" if start else ""
        return SetupError(f"{self._key}.base_url: {self._section.base_url}: {problem}{remedy}")

    def _json(
        self, method: str, path: str, body: dict[str, Any] | None = None, passing: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        reply = self._reply(method, path, body, passing)
        if reply.status in (401, 403):
            raise self.error(f"it refuses the key; set api_key_env to the variable that holds it ({self._said(reply)})")
        if reply.status != 200:
            raise self.error(f"{path} was refused ({self._said(reply)})")
        try:
            found = json.loads(reply.text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.error(f"{path} was answered with something else than JSON: {self._clean(reply.text)[:200]!r}")
        return found

    def _reply(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        passing: tuple[int, ...] = (),
        tries: int | None = None,
    ) -> Reply:
        """Any reply but one that may pass. Raises SetupError after the last try."""
        most, tried = tries or 1 + self._section.max_retries, 0
        while True:
            wait, fault = 0.0, ""
            try:
                reply = self._client.request(method, path, body)
                if reply.status in passing or (passes(reply.status) and reply.status != 500):
                    wait, fault = retry_after(reply.headers.get("retry-after")) or 0.0, self._said(reply)
            except TransportError as error:
                fault = str(error)
            if not fault:
                return reply
            tried += 1
            if tried >= most or self._client.closed.is_set():
                times = "1 try" if tried == 1 else f"{tried} tries"
                raise self.error(f"no answer to {path} after {times}: {self._clean(fault)}", start=True)
            self._client.closed.wait(wait + backoff(tried))

    def _said(self, reply: Reply) -> str:
        return f"HTTP {reply.status}: {error_of(self._clean(reply.text))[0]}"

    def _clean(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text
