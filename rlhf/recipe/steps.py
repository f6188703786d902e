"""The steps of a data recipe, in the order they are written. Nothing here imports torch.

Those over rows alone are here; those that ask models (generate, pool, evolve, score, judge, paraphrase), and select, in `synthesis`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rlhf.recipe.sections import NonNegativeFloat, PositiveInt, Section, Sources
from rlhf.recipe.synthesis import EvolveStep, GenerateStep, JudgeStep, ParaphraseStep, PoolStep, ScoreStep, SelectStep

Columns = Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v), Field(min_length=1)]


class PairsStep(Section):
    """Rankings to pairs: all pairs, the best against the rest or the worst, neighbours, or `k` pairs at random.

    `ties: both` makes a pair each way of two equal scores, `half` one of the two by a seeded coin.
    """

    strategy: Literal["all", "best_vs_rest", "best_vs_worst", "adjacent", "random_k"] = "all"
    k: PositiveInt | None = None
    min_margin: NonNegativeFloat = 0.0
    max_margin: NonNegativeFloat | None = None
    ties: Literal["drop", "both", "half"] = "drop"
    max_pairs_per_prompt: PositiveInt | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.strategy == "random_k") != (self.k is not None):
            raise ValueError("k: strategy random_k needs it, and no other strategy takes it")
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise ValueError("max_margin: is below min_margin, so no pair could stay")
        return self


class MatchSection(Section):
    """When two texts are near-duplicates: the letters and digits of their first `max_chars` characters are compared.

    `fast` and `ray` (over many machines, the same result) find them by MinHash and confirm each by its exact Jaccard similarity;
    `datasketch` is the reference recipe, MinHash-LSH unconfirmed; `exact` compares whole texts.
    """

    column: Columns = ["prompt"]
    engine: Literal["fast", "datasketch", "exact", "ray"] = "fast"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    num_perm: PositiveInt = 256
    shingle_size: PositiveInt = 5
    max_chars: PositiveInt | None = 500


class DedupStep(MatchSection):
    """Near-duplicates out; of those alike one is kept: the first, the longest, or the best by the number in `best_by`."""

    keep: Literal["first", "longest", "best"] = "first"
    best_by: str | None = None

    @model_validator(mode="after")
    def _best_by_what(self) -> Self:
        if (self.keep == "best") != (self.best_by is not None):
            raise ValueError("best_by: keep: best needs a column of numbers here, and nothing else takes one")
        return self


class DecontaminateStep(MatchSection):
    """Rows out that are near-duplicates of any row of `against`, such as an evaluation set."""

    against: Sources = Field(min_length=1)


class SplitStep(Section):
    """Train and test apart, all rows of one prompt (or group, or value of a column) on one side."""

    test: Annotated[float, Field(gt=0, lt=1)] = 0.05
    by: str = "prompt"


ModelStep = GenerateStep | PoolStep | EvolveStep | ScoreStep | JudgeStep | ParaphraseStep | SelectStep


class DataStep(Section):
    """One step: exactly one of these keys. Those from generate on are carried out by rlhf.synthesis."""

    pairs: PairsStep | None = None
    dedup: DedupStep | None = None
    decontaminate: DecontaminateStep | None = None
    split: SplitStep | None = None
    generate: GenerateStep | None = None
    pool: PoolStep | None = None
    evolve: EvolveStep | None = None
    score: ScoreStep | None = None
    judge: JudgeStep | None = None
    paraphrase: ParaphraseStep | None = None
    select: SelectStep | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_step(cls, value: Any) -> Any:
        """`- dedup:` with nothing under it is that step with its defaults."""
        return {key: {} if step is None else step for key, step in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> DataStep:
        if len([name for name in type(self).model_fields if getattr(self, name) is not None]) != 1:
            raise ValueError(f"a step is exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def name(self) -> str:
        """Which step this is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def model_step(self) -> ModelStep | None:
        """The step's section where rlhf.synthesis carries it out, else None."""
        return self.generate or self.pool or self.evolve or self.score or self.judge or self.paraphrase or self.select

    @property
    def engines(self) -> dict[str, str]:
        """The engines that the step asks, by the key that names each."""
        section = self.model_step
        if isinstance(section, PoolStep):
            return {f"pool.members.{i}.engine": member.engine for i, member in enumerate(section.members)}
        engine = getattr(section, "engine", None)
        return {} if engine is None else {f"{self.name}.engine": engine}
