"""What makes preference data: engines by name, and the steps of a data recipe that ask them. Nothing here imports torch.

A prompt is a text, or the path of a UTF-8 text file, with `{prompt}`, `{completion}` and the like in it; those that come with rlhf are
named by the step and the language, and lie in rlhf/synthesis/prompts for a user to copy and change.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlhf.recipe.sections import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    QuantizationSection,
    SamplingSection,
    Section,
    StoredModelSection,
)

Language = Literal["en", "ko"]


def an_address(value: str) -> str:
    """A server's `base_url`. Raises ValueError for what is no address, and for one with a secret in it."""
    try:
        url = urlsplit(value)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, or none there is
        good = False
    if not good:
        raise ValueError("expected something like http://localhost:8000/v1")
    if url.username or url.password or url.query:
        raise ValueError("no key or password here; set api_key_env to a variable's name")
    return value


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
    model: StoredModelSection
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


class PriceSection(Section):
    """What a million tokens cost, of prompts and of completions, in a currency of your own."""

    prompt: NonNegativeFloat
    completion: NonNegativeFloat


class OpenaiSection(Section):
    """Any server that speaks the OpenAI protocol. The key is read from the environment variable `api_key_env`, and never written.

    `timeout` is seconds for one request; a request is tried 1 + `max_retries` times, waiting longer each time. With a `price` the
    report says what the answers cost.
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
    price: PriceSection | None = None

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        return an_address(value)


EngineSection = Annotated[TransformersSection | VllmSection | OpenaiSection, Field(discriminator="engine")]


class AskSection(Section):
    """What a step that asks a model has: which engine, the prompt's text or file, and the sampling."""

    engine: str
    prompt: str | None = None
    system: str | None = None
    language: Language = "en"
    sampling: TextSampling = TextSampling()


def one_sample(sampling: TextSampling, why: str) -> None:
    """Raises ValueError where a request would be sampled more than once."""
    if sampling.n != 1:
        raise ValueError(f"sampling.n: must be 1: {why}")


class GenerateStep(AskSection):
    """Answers of one model. `into: rejected` keeps the row's completion as chosen; `completions` makes `sampling.n` to be scored.

    A row's own completion is the first of `completions`. `strip` takes the whitespace around an answer away (off: continuations);
    `cut_off: drop` leaves out the answers that `max_new_tokens` broke off.
    """

    into: Literal["completion", "completions", "rejected"] = "completions"
    strip: bool = True
    cut_off: Literal["keep", "drop"] = "keep"


class PoolMember(AskSection):
    """One of several models, system prompts or temperatures; drawn as often as its `weight` says, and known by `name` in the rows."""

    name: str | None = None
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _one_sample(self) -> Self:
        one_sample(self.sampling, "a pool asks for per_prompt answers one by one")
        return self


class PoolStep(Section):
    """`per_prompt` answers to each prompt, each by a member drawn by weight: by a seed, without one twice while others are left."""

    members: list[PoolMember] = Field(min_length=1)
    per_prompt: PositiveInt = 4
    strip: bool = True
    cut_off: Literal["keep", "drop"] = "keep"

    @property
    def labels(self) -> list[str]:
        """What each member is called in the rows: its name, else its engine's, numbered where several would be called the same."""
        bare = [member.name or member.engine for member in self.members]
        return [f"{name}/{i}" if bare.count(name) > 1 else name for i, name in enumerate(bare, 1)]


class EvolveStep(AskSection):
    """EvolQuality (WizardLM, Deita): each completion rewritten `evolutions` times, each time by one method drawn from `methods`.

    `keep: all` adds the rewritten ones to the completions, `last` puts the last in the place of the original.
    """

    methods: list[Literal["helpfulness", "relevance", "deepening", "creativity", "details"]] = Field(
        default=["helpfulness", "relevance", "deepening", "creativity", "details"], min_length=1
    )
    evolutions: PositiveInt = 1
    keep: Literal["all", "last"] = "all"

    @model_validator(mode="after")
    def _one_sample(self) -> Self:
        one_sample(self.sampling, "a completion is rewritten once an evolution")
        return self


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
                "give exactly one of engine, model (a reward model's folder) and callable (module:function)"
            )
        if self.callable is not None and self.callable.count(":") != 1:
            raise ValueError("callable: must read module:function")
        if len(set(self.aspects)) != len(self.aspects) or ("overall" in self.aspects and len(self.aspects) > 1):
            raise ValueError("aspects: either [overall], or different ones of the four others")
        if self.engine is None and (
            unused := {"aspects", "rationale", "prompt", "language", "retries", "sampling"} & self.model_fields_set
        ):
            raise ValueError(f"{min(unused)}: only an engine is asked with it; a reward model or a callable takes none")
        one_sample(self.sampling, "a score is one answer; retries asks again")
        return self


class JudgeStep(AskSection):
    """Pairs of completions compared, in both orders; a verdict that changes with the order is a tie. Scores are shares of wins.

    A comparison of which one order has no verdict that can be read, after `retries` more, does not count.
    """

    pairs: Literal["all", "first_vs_rest"] = "all"
    rationale: bool = False
    sampling: TextSampling = TextSampling(temperature=0.0)
    retries: NonNegativeInt = 1

    @model_validator(mode="after")
    def _one_sample(self) -> Self:
        one_sample(self.sampling, "a verdict is one answer; retries asks again")
        return self


class ParaphraseStep(AskSection):
    """`k` rephrasings of each prompt, the completion kept: the KorQuAD augmentation. A rephrasing equal to another is dropped.

    `part: last_paragraph` rephrases what follows the prompt's last blank line, such as the question after a SQuAD row's context.
    All rows made of one share its group, which `split: {by: group}` keeps on one side.
    """

    k: PositiveInt = 1
    keep_original: bool = True
    part: Literal["all", "last_paragraph"] = "all"

    @model_validator(mode="after")
    def _one_sample(self) -> Self:
        if self.k > 1 and self.sampling.temperature == 0:
            raise ValueError("sampling.temperature: greedy decoding gives k rephrasings that are all the same")
        one_sample(self.sampling, "k says how many rephrasings are asked for")
        return self


class SelectStep(Section):
    """Scored completions to one chosen and one rejected each: the best, and the worst or one drawn from those below the best.

    Pairs under `min_margin`, or whose completions are alike by more than `max_similarity` (normalised edit similarity), are dropped.
    """

    rejected: Literal["worst", "random_below_best"] = "worst"
    min_margin: NonNegativeFloat = 0.0
    max_similarity: Fraction = 1.0
