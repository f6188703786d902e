"""Text engines side by side on the same prompts: `python -m benchmarks.generation [options]`.

Each contender runs in turn, round after round, so that what else the machine does falls on all; medians are reported, and
the ratios that matter: ours over plain batched `generate`, vLLM over transformers, and ours over bare `LLM.generate`. Runs in
.venv (transformers and the HTTP client) and, with vLLM, in .venv-vllm; what cannot be imported is left out, and said.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.publish import publish
from rlhf.generation.engines import open_engine
from rlhf.generation.text_engine import Request, TextEngine
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.synthesis import OpenaiSection, TextSampling, TransformersSection, VllmSection

CPU = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
RATIOS = [
    ("transformers", "generate"), ("transformers", "generate, sorted"), ("vllm", "vllm bare"), ("vllm", "transformers"),
]  # fmt: skip
TEXT = "the sea is calm and a film about two friends who meet again after years of work in the city"

Contender = Callable[[], tuple[int, int]]  # rows and tokens that it made


def requests_of(files: list[Path], rows: int, max_chars: int = 2000) -> list[Request]:
    """`rows` prompts of mixed lengths: drawn from those of the files that are no longer than `max_chars`, else made up."""
    draw = random.Random(0)
    texts = [text for file in files for text in _texts(file) if len(text) <= max_chars] or [
        " ".join(draw.choices(TEXT.split(), k=int(2 ** draw.uniform(2, 8)))) for _ in range(rows)
    ]
    return [Request(str(i), text) for i, text in enumerate(draw.sample(texts, min(rows, len(texts))))]


def _texts(file: Path) -> Iterator[str]:
    """The prompts of JSON or JSON Lines, perhaps gzipped: `prompt`, `question`, or `instruction` with its `input`."""
    content = file.read_bytes()
    text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
    found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    for row in found:
        yield (
            row.get("prompt")
            or row.get("question")
            or "\n\n".join(filter(None, [row["instruction"], row.get("input")]))
        )


def ours(engine: TextEngine, requests: list[Request], sampling: TextSampling) -> Contender:
    """An engine of ours, asked as a step asks it."""

    def run() -> tuple[int, int]:
        answers = [answer for _, answer in engine.answers(iter(requests), sampling, seed=0)]
        failed = [answer.error for answer in answers if answer.error]
        assert not failed, failed[0]
        return len(answers), sum(answer.completion_tokens for answer in answers)

    return run


def plain_generate(engine: Any, requests: list[Request], sampling: TextSampling, *, by_length: bool) -> Contender:
    """`model.generate` on the prompts as they come, padded to the longest of each batch, which is what most scripts do; or on
    the same sorted by length, the best that can be done without another loop."""
    import torch
    from transformers import GenerationConfig

    network, tokenizer = engine._engine.policy.transformer.eval(), engine._engine.tokenizer
    stop, pad = sorted(engine._engine.stop_ids), tokenizer.pad_token_id
    config = GenerationConfig(
        do_sample=sampling.temperature > 0, temperature=sampling.temperature or 1.0, top_k=sampling.top_k, top_p=sampling.top_p,
        max_new_tokens=sampling.max_new_tokens, eos_token_id=stop, pad_token_id=pad,
    )  # fmt: skip
    prompts = engine._encoder.ids(requests)
    if by_length:
        prompts.sort(key=len)

    def run() -> tuple[int, int]:
        tokens = 0
        for start in range(0, len(prompts), sampling.batch_size):
            batch = prompts[start : start + sampling.batch_size]
            width = max(map(len, batch))
            ids = torch.tensor([[pad] * (width - len(p)) + p for p in batch], device=network.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=network.device)
            with torch.no_grad():
                out = network.generate(ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
            tokenizer.batch_decode(out, skip_special_tokens=True)
            tokens += sum(next((i + 1 for i, t in enumerate(row) if t in stop), len(row)) for row in out)
        return len(prompts), tokens

    return run


def bare_vllm(engine: Any, requests: list[Request], sampling: TextSampling) -> Contender:
    """`LLM.generate` on the whole list at once, with the same ids, settings and seeds."""
    from vllm.inputs import TokensPrompt

    from rlhf.generation.engines.sampling import request_seed
    from rlhf.generation.engines.vllm_engine import sampling_params

    def run() -> tuple[int, int]:
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in engine._encoder.ids(requests)]
        params = [
            sampling_params(sampling, request_seed(0, r.key) if sampling.temperature else None, None) for r in requests
        ]
        outputs = engine._llm.generate(prompts, params, use_tqdm=False)
        return len(outputs), sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    return run


def contenders(options: argparse.Namespace, stack: ExitStack) -> dict[str, Contender]:
    """Those that can run here, warmed up."""
    sampling = TextSampling(
        temperature=options.temperature, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size
    )
    requests = requests_of(options.prompts, options.rows, options.max_chars)
    found: dict[str, Contender] = {}

    def opened(section: Any) -> Any:
        engine = open_engine(section, name="benchmark")
        stack.callback(engine.close)
        return engine

    if "transformers" in options.engines or "generate" in options.engines:
        model = ModelSection(name_or_path=options.model, dtype=options.dtype)
        engine = opened(TransformersSection(engine="transformers", model=model))
        found["transformers"] = ours(engine, requests, sampling)
        found["generate"] = plain_generate(engine, requests, sampling, by_length=False)
        found["generate, sorted"] = plain_generate(engine, requests, sampling, by_length=True)
    if "vllm" in options.engines and importlib.util.find_spec("vllm"):
        section = VllmSection(
            engine="vllm", model=options.model, dtype=options.dtype, max_model_len=options.max_model_len,
            enforce_eager=options.enforce_eager,
        )  # fmt: skip
        engine = opened(section)
        found["vllm"] = ours(engine, requests, sampling)
        found["vllm bare"] = bare_vllm(engine, requests, sampling)
    if "openai" in options.engines:
        from tests.generation.server import serving

        server = stack.enter_context(serving())
        many = [Request(str(i), f"{i}") for i in range(2000)]
        section = OpenaiSection(
            engine="openai", base_url=server.base_url, model="good", concurrency=options.concurrency
        )
        found["openai (a server that answers at once)"] = ours(opened(section), many, sampling)
    return found


def main() -> None:
    """Parse, run in turn, publish."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation")
    parser.add_argument("--engines", nargs="+", default=["transformers", "generate", "vllm", "openai"])
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=Path, nargs="*", default=[], help="files of prompts; made up without")
    parser.add_argument("--max-chars", type=int, default=2000, help="leave longer prompts of the files out")
    parser.add_argument("--publish", default="generation", help="the name of the files under benchmarks/results")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--enforce-eager", action="store_true")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        os.environ.update(CPU)
    with ExitStack() as stack:
        running = contenders(options, stack)
        seconds: dict[str, list[float]] = {name: [] for name in running}
        made: dict[str, tuple[int, int]] = {}
        for round_ in range(options.rounds + 1):  # the first warms up
            for name, run in running.items():
                began = time.perf_counter()
                made[name] = run()
                if round_:
                    seconds[name].append(time.perf_counter() - began)
        _report(options, seconds, made)


def _report(options: argparse.Namespace, seconds: dict[str, list[float]], made: dict[str, tuple[int, int]]) -> None:
    table = ["| engine | rows | tokens | seconds (median) | rows/s | tokens/s |", "|---|---|---|---|---|---|"]
    rates = {}
    for name, times in seconds.items():
        (rows, tokens), median = made[name], statistics.median(times)
        rates[name] = tokens / median
        table.append(f"| {name} | {rows} | {tokens} | {median:.2f} | {rows / median:.1f} | {tokens / median:.0f} |")
    table.append("")
    table += [f"- {a} / {b}: {rates[a] / rates[b]:.2f} x tokens/s" for a, b in RATIOS if a in rates and b in rates]
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} torch threads"
    prompts = (
        "real prompts (" + ", ".join(file.name for file in options.prompts) + ")" if options.prompts else "prompts"
    )
    head = (
        f"# Text engines\n{options.model}, {options.dtype}, {where}; {options.rows} {prompts} of mixed lengths, "
        f"at most {options.max_new_tokens} new tokens, temperature {options.temperature:g}, batch {options.batch_size}, "
        f"medians of {options.rounds} interleaved rounds."
    )
    publish(options.publish, head, table, {"seconds": seconds, "made": made})


if __name__ == "__main__":
    main()
