"""What makes preference data: engines by name, and the steps of a data recipe that ask them. Nothing here imports torch.

A prompt is a text, or the path of a UTF-8 text file, with `{prompt}`, `{completion}` and the like in it; those that come with rlhf are
named by the step and the language, and lie in rlhf/synthesis/prompts for a user to copy and change.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .sections import (
    Fraction,
    ModelSection,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    QuantizationSection,
    SamplingSection,
    Section,
)

Language = Literal["en", "ko"]


class TextSampling(SamplingSection):
    """Every decoding strategy of an engine: `SamplingSection`'s, and those that training must not use.

    num_beams > 1 is beam search; min_p drops tokens under that share of the likeliest one's probability.
    """

    temperature: NonNegativeFloat = 0.7
    max_new_tokens: PositiveInt = 512
    min_p: Fraction = 0.0
    repetition_penalty: PositiveFloat = 1.0
    no_repeat_ngram_size: NonNegativeInt = 0
    num_beams: PositiveInt = 1
    length_penalty: float = 1.0


class TransformersSection(Section):
    """A model in this process, run by transformers."""

    engine: Literal["transformers"]
    model: ModelSection
    quantization: QuantizationSection | None = None
    adapter: str | None = None
    chat: Literal["auto", "chat", "plain"] = "auto"


class VllmSection(Section):
    """A model in this process, run by vLLM. `adapter` is a LoRA folder; `serve` runs vLLM's server instead and asks that."""

    engine: Literal["vllm"]
    model: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str | None = None
    adapter: str | None = None
    max_lora_rank: PositiveInt = 64
    tensor_parallel_size: PositiveInt = 1
    max_model_len: PositiveInt | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    enforce_eager: bool = False
    chat: Literal["auto", "chat", "plain"] = "auto"
    serve: bool = False
    port: PositiveInt | None = None


class OpenaiSection(Section):
    """Any server that speaks the OpenAI protocol. The key is read from the environment variable `api_key_env`, and never written.

    `timeout` is seconds for one request; a request is tried 1 + `max_retries` times, waiting longer each time.
    """

    engine: Literal["openai"]
    base_url: str
    model: str
    api_key_env: str | None = None
    concurrency: PositiveInt = 16
    requests_per_minute: PositiveInt | None = None
    timeout: PositiveFloat = 120.0
    max_retries: NonNegativeInt = 5
    chat: Literal["chat", "plain"] = "chat"


EngineSection = Annotated[TransformersSection | VllmSection | OpenaiSection, Field(discriminator="engine")]


class AskSection(Section):
    """What a step that asks a model has: which engine, the prompt's text or file, and the sampling."""

    engine: str
    prompt: str | None = None
    system: str | None = None
    language: Language = "en"
    sampling: TextSampling = TextSampling()


class GenerateStep(AskSection):
    """Answers of one model. `into: rejected` keeps the row's completion as chosen; `completions` makes `sampling.n` to be scored."""

    into: Literal["completion", "completions", "rejected"] = "completions"


class PoolMember(AskSection):
    """One of several models, system prompts or temperatures; drawn as often as its `weight` says."""

    weight: PositiveFloat = 1.0


class PoolStep(Section):
    """`per_prompt` answers to each prompt, each by a member drawn by weight: by a seed, without one twice while others are left."""

    members: list[PoolMember] = Field(min_length=1)
    per_prompt: PositiveInt = 4


class EvolveStep(AskSection):
    """EvolQuality (WizardLM, Deita): each completion rewritten `evolutions` times, each time by one method drawn from `methods`."""

    methods: list[Literal["helpfulness", "relevance", "deepening", "creativity", "details"]] = Field(
        default=["helpfulness", "relevance", "deepening", "creativity", "details"], min_length=1
    )
    evolutions: PositiveInt = 1
    keep: Literal["all", "last"] = "all"


class ScoreStep(Section):
    """Scores of completions: by an engine that rates them 1 to 5 as UltraFeedback does, a reward model's folder, or a callable.

    `aspects: [overall]` asks once; the four aspects are asked one by one and averaged. `retries` asks again when an answer does not parse.
    """

    engine: str | None = None
    model: str | None = None
    callable: str | None = None
    aspects: list[Literal["overall", "instruction_following", "truthfulness", "honesty", "helpfulness"]] = Field(
        default=["overall"], min_length=1
    )
    rationale: bool = False
    prompt: str | None = None
    language: Language = "en"
    sampling: TextSampling = TextSampling(temperature=0.0)
    retries: NonNegativeInt = 1

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if [self.engine, self.model, self.callable].count(None) != 2:
            raise ValueError(
                "score: give exactly one of engine, model (a reward model's folder) and callable (module:function)"
            )
        return self


class JudgeStep(AskSection):
    """Pairs of completions compared, in both orders; a verdict that changes with the order is a tie. Scores are shares of wins."""

    pairs: Literal["all", "first_vs_rest"] = "all"
    rationale: bool = False
    sampling: TextSampling = TextSampling(temperature=0.0)
    retries: NonNegativeInt = 1


class ParaphraseStep(AskSection):
    """`k` rephrasings of each prompt, the completion kept: the KorQuAD augmentation. A rephrasing equal to another is dropped."""

    k: PositiveInt = 1
    keep_original: bool = True


class SelectStep(Section):
    """Scored completions to one chosen and one rejected each: the best, and the worst or one drawn from those below the best.

    Pairs under `min_margin`, or whose completions are alike by more than `max_similarity` (normalised edit similarity), are dropped.
    """

    rejected: Literal["worst", "random_below_best"] = "worst"
    min_margin: NonNegativeFloat = 0.0
    max_similarity: Fraction = 1.0
