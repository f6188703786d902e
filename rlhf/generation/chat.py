"""`rlhf chat MODEL`: talk to a model in the terminal, through the template it was trained with.

For a model that rlhf did not train, it is the tokenizer's chat template, if there is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf.embedded import resolve
from rlhf.generation.in_process import InProcessEngine, context_length
from rlhf.models.lineage import saved_template
from rlhf.models.load import load_policy
from rlhf.recipe.sections import SamplingSection, StoredModelSection, TemplateSection
from rlhf.tokens.template import Renderer
from rlhf.tokens.tokenizer import load_tokenizer

SAMPLING = SamplingSection(max_new_tokens=256, temperature=0.7, top_p=0.95)


def chat(name_or_path: str, console: Console) -> None:
    """Read prompts until end of file or `/quit`; `/new` starts a new conversation. A run folder stands for its `final/`."""
    model = resolve(name_or_path)
    tokenizer = load_tokenizer(model)
    template = saved_template(Path(model)) or TemplateSection(kind="chat" if tokenizer.chat_template else "plain")
    policy = load_policy(StoredModelSection(name_or_path=model))
    engine, context = InProcessEngine(policy, tokenizer), context_length(policy.transformer)
    renderer = Renderer(tokenizer, template)
    console.print(f"{name_or_path} ({template.kind} template); /new starts over, /quit ends", markup=False)
    history: list[dict[str, str]] = []
    turn = 0
    while (line := _ask(console)) is not None:
        if line == "/new":
            history = []
            continue
        prompt: Any = [*history, {"role": "user", "content": line}] if template.kind == "chat" else line
        ids = renderer.prompt_ids(prompt)
        room = SAMPLING.max_new_tokens if context is None else min(SAMPLING.max_new_tokens, context - len(ids))
        if room < 1:
            console.print(f"the conversation fills the model's {context} positions; /new starts over", markup=False)
            continue
        sampling = SAMPLING.model_copy(update={"max_new_tokens": room})
        [[answer]] = engine.generate([ids], sampling, seed=turn)
        turn += 1
        console.print(answer.text.strip() if template.kind == "chat" else answer.text, markup=False, highlight=False)
        if template.kind == "chat":
            history = [*prompt, {"role": "assistant", "content": answer.text}]


def _ask(console: Console) -> str | None:
    """The next line; None at the end."""
    while True:
        try:
            line = console.input("> ").strip()
        except EOFError:
            return None
        if line == "/quit":
            return None
        if line:
            return line
