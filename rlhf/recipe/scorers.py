"""The section of a recipe that names a source of scores: a reward model, several of them, a function, or a server.

The methods that sample call these `rewards`, `generate` and `eval` call them `scorers`. `recipe.arguments` says what a function is
called with; `rlhf/generation/scorers.py` makes them. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from rlhf.recipe.sections import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

GIVEN = ("prompts", "completions", "completion_ids", "ended")  # what every function and server may get
# what each kind of scorer may say beside `name` and `weight`
SETTINGS = {
    "model": {"normalize", "other_template"},
    "models": {"normalize", "other_template", "combine", "std_weight"},
    "callable": {"kwargs"},
    "url": {"columns", "batch_size", "timeout", "max_retries", "api_key_env"},
}
HOW_TO_ASK = ("batch_size", "timeout", "max_retries", "api_key_env")  # of a server: a resumed run may change it


class ScorerSection(Section):
    """One source of scores; higher is better. Exactly one of `model`, `models`, `callable` and `url`; docs/rewards.md has examples.

    `model` is a reward model's run folder. Its scores are in standard deviations from the mean of its own data; `normalize: false`
    takes them as they are. Its prompts must be in the template that it was trained with, unless `other_template` allows another.
    `models` are several, combined for each completion: their `mean`, their `min`, or `mean_minus_std`, the mean less `std_weight`
    times their standard deviation (0.5 if it is left out).

    `callable` is a Python function, `module:function` or `./file.py:function`. It gets lists (`prompts`, `completions` and the
    columns of the rows that its parameters name) and returns one number each, or None where it does not apply. `kwargs` are its settings.

    `url` is a server that gets the same as JSON, `batch_size` completions in a request, with the `columns` that are named.
    `timeout` is seconds for one request; a request is tried 1 + `max_retries` times, waiting longer each time. A key is read from
    the environment variable `api_key_env`.
    """

    name: str | None = None
    model: str | None = None
    models: Annotated[list[str], Field(min_length=2)] | None = None
    callable: str | None = None
    url: str | None = None
    weight: float = 1.0
    normalize: bool = True
    other_template: bool = False
    combine: Literal["mean", "min", "mean_minus_std"] = "mean"
    std_weight: NonNegativeFloat | None = None
    kwargs: dict[str, Any] = {}
    columns: list[str] = []
    batch_size: PositiveInt = 64
    timeout: PositiveFloat = 60.0
    max_retries: NonNegativeInt = 5
    api_key_env: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> ScorerSection:
        given = [kind for kind in SETTINGS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of model (a reward model's folder), models (several), callable (module:function) "
                "and url (a server)"
            )
        if self.callable is not None and self.callable.count(":") != 1:
            raise ValueError("callable: must read module:function")
        for key in sorted(set.union(*SETTINGS.values()) - SETTINGS[given[0]]):
            if getattr(self, key) != type(self).model_fields[key].default:
                of = " or ".join(kind for kind, keys in SETTINGS.items() if key in keys)
                raise ValueError(f"{key}: goes with {of}, and does nothing with {given[0]}; leave it out")
        return self

    @model_validator(mode="after")
    def _members_differ(self) -> ScorerSection:
        if self.models is not None and len(set(self.models)) < len(self.models):
            raise ValueError("models: one of them stands here twice")
        if self.std_weight is not None and self.combine != "mean_minus_std":
            raise ValueError(
                f"std_weight: does nothing with combine: {self.combine}; leave it out, or combine: mean_minus_std"
            )
        return self

    @model_validator(mode="after")
    def _an_address(self) -> ScorerSection:
        if self.url is None:
            return self
        try:
            url = urlsplit(self.url)
            good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:  # a port that is no number, or none there is
            good = False
        if not good:
            raise ValueError("url: expected something like http://localhost:9000/score")
        if url.username or url.password or url.query:
            raise ValueError("url: no key or password here; set api_key_env to a variable's name")
        if sent := [name for name in self.columns if name in GIVEN]:
            raise ValueError(f"columns: {sent[0]} is sent anyway; leave it out")
        return self

    @property
    def reward_models(self) -> list[str]:
        """The reward models that it asks: one, several or none."""
        return [self.model] if self.model is not None else list(self.models or ())

    @property
    def model_keys(self) -> dict[tuple[str | int, ...], str]:
        """Each of `reward_models` by the key that names it: `model`, or `models.0`."""
        if self.model is not None:
            return {("model",): self.model}
        return {("models", i): name for i, name in enumerate(self.models or ())}

    @property
    def source(self) -> str:
        """What gives the scores, for reports."""
        return self.callable or self.url or ", ".join(self.reward_models)

    @property
    def label(self) -> str:
        """The name under which this scorer is reported."""
        if self.name:
            return self.name
        if self.models is not None:
            return "ensemble"
        if self.url is not None:
            return urlsplit(self.url).netloc
        return self.source.rstrip("/").replace("/final", "").split("/")[-1].split(":")[-1]
