"""The engines behind a recipe's `engines:` section, each a `TextEngine`: transformers, vLLM, any OpenAI-compatible server.

The protocol is in `generation.text_engine`; the steps that make data use the engines. What an engine needs is imported when the
engine is opened, so a recipe that only asks a server loads no torch.
"""

from __future__ import annotations

from rlhf.generation.engines.sampling import unsupported
from rlhf.generation.text_engine import TextEngine
from rlhf.recipe.synthesis import EngineSection, OpenaiSection, TransformersSection

__all__ = ["open_engine", "unsupported"]


def open_engine(section: EngineSection, name: str) -> TextEngine:
    """The engine that a section describes. `name` is its name in the recipe, for messages. The caller closes it.

    Raises RecipeError for a model or adapter that does not exist, SetupError for a missing package, key or server.
    """
    if isinstance(section, TransformersSection):
        from rlhf.generation.engines.transformers_text import TransformersText

        return TransformersText(section, name=name)
    if isinstance(section, OpenaiSection):
        from rlhf.generation.engines.openai_server import OpenaiServer

        return OpenaiServer(section, name=name)
    if section.serve:
        from rlhf.generation.engines.vllm_server import VllmServer

        return VllmServer(section, name=name)
    from rlhf.generation.engines.vllm_engine import VllmEngine

    return VllmEngine(section, name=name)
