"""One typed recipe per method; `method` chooses which. This file is the YAML contract.

Read with `recipe.loader.load`, which adds file and line to every complaint. Nothing here imports torch.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter, model_validator

from rlhf.recipe.online import GrpoRecipe, OnlineDpoRecipe, OnlineRecipe, PpoRecipe, ReinforcePpRecipe, RlooRecipe
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.sections import (
    Precision,
    QuantizationSection,
    Recipe,
    SamplingSection,
    Section,
    Sources,
    StoredModelSection,
    TemplateSection,
)
from rlhf.recipe.steps import DataStep
from rlhf.recipe.synthesis import EngineSection
from rlhf.recipe.training import DpoRecipe, RewardRecipe, SftRecipe, TrainRecipe


class DataRecipe(Recipe):
    """Sources, then steps in order, to one folder of rows. `strict` stops at the first row that cannot be used.

    `engines`, by names of your own, are the models that the steps ask.
    """

    entry_point = "rlhf.synthesis.steps:build"
    command = ("data", "build")

    method: Literal["data"]
    engines: dict[str, EngineSection] = {}
    sources: Sources = Field(min_length=1)
    steps: list[DataStep] = []
    strict: bool = False

    @model_validator(mode="after")
    def _engines_are_those_asked(self) -> DataRecipe:
        asked = {f"steps.{i}.{key}": name for i, step in enumerate(self.steps) for key, name in step.engines.items()}
        for key, name in asked.items():
            if name not in self.engines:
                near = get_close_matches(name, self.engines, n=1)
                known = f"there are {', '.join(self.engines)}" if self.engines else "the recipe has no engines: section"
                raise ValueError(f"{key}: no engine {name!r}; {f'did you mean {near[0]!r}?' if near else known}")
        if unused := sorted(set(self.engines) - set(asked.values())):
            raise ValueError(f"engines.{unused[0]}: no step asks it; take it out, or name it in a step")
        return self

    @model_validator(mode="after")
    def _completions_are_scored_in_the_end(self) -> DataRecipe:
        """What can be told before a model is asked: completions without scores make no pairs, and no data set."""
        unscored: str | None = None
        for i, step in enumerate(self.steps):
            where = f"steps.{i}.{step.name}"
            if (
                step.pool
                or (step.generate and step.generate.into == "completions")
                or (step.evolve and step.evolve.keep == "all")
            ):
                unscored = where
            elif step.score or step.judge:
                unscored = None
            elif unscored and (step.pairs or step.select):
                raise ValueError(
                    f"{where}: the completions of {unscored} have no scores yet; put score or judge between"
                )
        if unscored:
            raise ValueError(f"{unscored}: its completions are never scored; add score or judge (and select or pairs)")
        return self


class GenerateRecipe(Recipe):
    """Sample completions of prompts and score them: rows `{prompt, completions, scores}`."""

    entry_point = "rlhf.generation.run:generate"
    command = ("generate",)

    method: Literal["generate"]
    model: StoredModelSection
    quantization: QuantizationSection | None = None
    prompts: Sources = Field(min_length=1)
    template: TemplateSection = TemplateSection()
    sampling: SamplingSection = SamplingSection()
    scorers: list[ScorerSection] = []


class EvalModel(Section):
    """One model under evaluation; `run` names the training run whose curves the report shows."""

    name: str
    name_or_path: str
    run: str | None = None


class PairJudgeSection(Section):
    """A judge that sees two completions at once: a Python callable `module:function`, asked in both orders.

    It takes `prompts: list[str], first: list[str], second: list[str]` and returns one float each: the probability that
    the first is better (1, 0.5 for a tie, 0).
    """

    name: str | None = None
    callable: Annotated[str, Field(pattern=r"^[^:]+:[^:]+$")]

    @property
    def label(self) -> str:
        """The name under which this judge is reported."""
        return self.name or self.callable.split(":")[-1]


class EvalRecipe(Recipe):
    """Compare models: the first of `models` is the reference that win rate and KL are measured against.

    Without `dtype` each model is loaded in the dtype that it was trained or stored in, the reward models too.
    `quantization` loads whole models in 4 bits; adapters always lie on their base as it was trained.
    """

    entry_point = "rlhf.evaluate.run:evaluate"
    command = ("eval",)

    method: Literal["eval"]
    models: list[EvalModel] = Field(min_length=1)
    dtype: Precision | None = None
    quantization: QuantizationSection | None = None
    prompts: Sources = Field(min_length=1)
    template: TemplateSection = TemplateSection()
    sampling: SamplingSection = SamplingSection()
    scorers: list[ScorerSection] = Field(min_length=1)
    pair_judges: list[PairJudgeSection] = []
    reward_model: str | None = None
    preferences: Sources = []
    runs: list[str] = []

    @model_validator(mode="after")
    def _names_differ(self) -> EvalRecipe:
        judges = [judge.label for judge in [*self.scorers, *self.pair_judges]]  # type: ignore[attr-defined]
        for key, names in (("models", [model.name for model in self.models]), ("scorers and pair_judges", judges)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{key}: names must differ, got {', '.join(twice)} twice; set name:")
        return self


AnyRecipe = Annotated[
    SftRecipe
    | RewardRecipe
    | PpoRecipe
    | RlooRecipe
    | GrpoRecipe
    | ReinforcePpRecipe
    | OnlineDpoRecipe
    | DpoRecipe
    | DataRecipe
    | GenerateRecipe
    | EvalRecipe,
    Field(discriminator="method"),
]
RECIPE: TypeAdapter[AnyRecipe] = TypeAdapter(AnyRecipe)
METHODS: dict[str, type[Recipe]] = {
    get_args(recipe.model_fields["method"].annotation)[0]: recipe for recipe in get_args(get_args(AnyRecipe)[0])
}


def trains(method: str) -> bool:
    """Whether a method trains a model."""
    return issubclass(METHODS[method], TrainRecipe)


def samples(method: str) -> bool:
    """Whether a method trains on completions that it samples itself."""
    return issubclass(METHODS[method], OnlineRecipe)


def row_kinds(method: str) -> frozenset[str]:
    """The kinds of row that a training method takes; empty for the methods that do not train."""
    recipe = METHODS[method]
    return recipe.row_kinds if issubclass(recipe, TrainRecipe) else frozenset()
