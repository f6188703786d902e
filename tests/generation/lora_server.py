"""A server that speaks vLLM's protocol for adapters and token ids, over a real model with real adapters, so that what it samples
and what it says of it can be compared with training. It misbehaves as it is told.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import http_server

ADAPTER_ROUTES = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


class LoraServer(http_server.Server):
    """`faults` says, for the n-th request of a path (0-based), which status comes instead of an answer; 0 hangs up.

    `loads` and `unloads` are the adapters' names in order, `bodies` the requests for completions. A `stale` server answers for
    each adapter with the first that it got; `before_temperature` tells the log-probabilities that vLLM tells by default.
    """

    def __init__(self, base: str, *, max_lora_rank: int, quantization: Any) -> None:
        super().__init__(Handler)
        self.root, self.max_lora_rank = base, max_lora_rank
        options: dict[str, Any] = {"dtype": torch.float32, "quantization_config": quantization}
        self.network: Any = AutoModelForCausalLM.from_pretrained(base, **options).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.faults: Callable[[str, int], int | None] = lambda path, tried: None
        self.updates_at_runtime, self.stale, self.before_temperature, self.owned_by = True, False, False, "vllm"
        self.asked: Counter[str] = Counter()
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.adapters: dict[str, str] = {}  # name -> path
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.drops: tuple[str, ...] = ()  # parts that its choices lack

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    def load(self, name: str, path: str) -> tuple[int, Any]:
        config = Path(path) / "adapter_config.json"
        if not config.is_file():
            return 404, {"error": {"message": f"Loading lora {name} failed: No adapter found for {path}"}}
        rank = json.loads(config.read_text())["r"]
        if rank > self.max_lora_rank:
            said = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
            return 500, {"error": {"message": said, "type": "InternalServerError"}}
        if name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        if isinstance(self.network, PeftModel):
            self.network.load_adapter(path, name)
        else:
            self.network = PeftModel.from_pretrained(self.network, path, adapter_name=name).eval()
        self.adapters[name] = path
        self.loads.append(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully.".encode()

    def unload(self, name: str) -> tuple[int, Any]:
        if self.adapters.pop(name, None) is None:
            return 404, {"error": {"message": f"The lora adapter '{name}' cannot be found."}}
        self.unloads.append(name)
        return 200, b"Success"

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        self.network.set_adapter(self.loads[0] if self.stale else body["model"])
        choices = [self.choice(body, i) for i in range(body["n"])]
        return 200, {"choices": choices[::-1]}  # not in order: `index` says which is which

    def choice(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(body["seed"] + index)
        ids: list[int] = []
        logprobs: list[float] = []
        stops = {self.tokenizer.eos_token_id, *body["stop_token_ids"]}
        while len(ids) < body["max_tokens"] and not (ids and ids[-1] in stops):
            logits = self.network(torch.tensor([[*body["prompt"], *ids]])).logits[0, -1]
            at = (logits / body["temperature"]).log_softmax(-1)
            token = int(torch.multinomial(at.exp(), 1, generator=generator))
            said = logits.log_softmax(-1) if self.before_temperature else at
            ids.append(token)
            logprobs.append(float(said[token]))
        choice = {
            "index": index,
            "text": "not read",
            "finish_reason": "stop" if ids[-1] in stops else "length",
            "token_ids": ids,
            "logprobs": {"token_logprobs": logprobs},
        }
        return {name: part for name, part in choice.items() if name not in self.drops}


class Handler(http_server.Handler):
    server: LoraServer

    def do_GET(self) -> None:
        server = self.server
        if self.failed():
            return
        card = {"id": "base", "root": server.root, "owned_by": server.owned_by, "parent": None, "max_model_len": 256}
        adapters = [
            {"id": name, "root": path, "owned_by": "vllm", "parent": "base"} for name, path in server.adapters.items()
        ]
        self.reply(200, {"data": [card, *adapters]})

    def do_POST(self) -> None:
        server, body = self.server, self.read_json()
        if self.failed():
            return
        with server.lock:
            if self.path in ADAPTER_ROUTES and not server.updates_at_runtime:
                self.reply(404, {"detail": "Not Found"})
            elif self.path == "/v1/load_lora_adapter":
                self.reply(*server.load(body["lora_name"], body["lora_path"]))
            elif self.path == "/v1/unload_lora_adapter":
                self.reply(*server.unload(body["lora_name"]))
            elif self.path == "/tokenize":
                ids = server.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
                self.reply(200, {"tokens": ids})
            else:
                server.bodies.append(body)
                self.reply(*server.complete(body))

    def failed(self) -> bool:
        """Whether the request got the fault that was ordered for it."""
        server = self.server
        with server.lock:
            tried = server.asked[self.path]
            server.asked[self.path] += 1
            server.keys.add(self.headers.get("Authorization", ""))
        status = server.faults(self.path, tried)
        if status is None:
            return False
        if status:
            self.reply(status, {"error": {"message": "ordered by the test"}})
        else:
            with suppress(OSError):
                self.connection.shutdown(2)
            self.close_connection = True
        return True


@contextmanager
def serving(base: str, *, max_lora_rank: int = 64, quantization: Any = None) -> Iterator[LoraServer]:
    """A running server of a base model; `quantization` is transformers' config."""
    server = LoraServer(base, max_lora_rank=max_lora_rank, quantization=quantization)
    with http_server.running(server):
        yield server
