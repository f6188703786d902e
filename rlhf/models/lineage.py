"""Where a model came from: `lineage.json`, written into every `final/` and read by whatever loads it.

A LoRA run's `final/` holds adapters, not a model. They mean something only on the very base that they were trained on:
the same weights, loaded in the same quantisation. The lineage names that base, its content, and the stages that came
before, so that no later stage can put the adapters on anything else without being told.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from rlhf.embedded import hub_name, resolve
from rlhf.errors import CheckpointError, RecipeError
from rlhf.recipe.sections import Precision, QuantizationSection, TemplateSection
from rlhf.runs.identity import of_model

NAME = "lineage.json"
ADAPTER = "adapter_model.safetensors"
HEAD = "head.safetensors"


@dataclass(frozen=True)
class Base:
    """The model under the adapters: its name, its content (rlhf.runs.identity), how it was loaded."""

    name_or_path: str
    identity: str
    dtype: str
    quantization: dict[str, Any] | None

    @property
    def hub_name(self) -> str | None:
        """The name under which others find the base on a model hub; None for a folder of this machine."""
        name = hub_name(self.name_or_path)
        is_of_hub = name != self.name_or_path or self.identity.startswith(f"{name}@")
        return name if is_of_hub else None


@dataclass(frozen=True)
class Lineage:
    """What one `final/` was made of and by. `parents`: the stages before it, the oldest first. `roles`: what else the run asked, by the
    recipe's key: reward models, a reference, functions and servers, each with its name, and its content where that can be known.
    """

    method: str
    base: Base
    parents: tuple[dict[str, str], ...]
    template: dict[str, Any]
    rows: str  # fingerprint of the training rows
    steps: int
    processes: int
    rlhf: str
    roles: dict[str, dict[str, str]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def check_base(self, folder: Path) -> None:
        """Raise RecipeError where the base's content is not what the adapters in `folder` were trained on."""
        found = of_model(resolve(self.base.name_or_path))
        if found != self.base.identity:
            raise RecipeError(
                f"{folder}: its adapters were trained on {self.base.name_or_path}, whose content has changed since "
                f"(or cannot be found here). Put that base back, or train the stage again"
            )


def read_lineage(folder: Path) -> Lineage | None:
    """The lineage of a `final/`; None for a model from elsewhere. Raises CheckpointError for one that cannot be read."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Lineage(**content | {"base": Base(**content["base"]), "parents": tuple(content["parents"])})
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: this version of rlhf cannot read it; an older version probably wrote it. Train that stage again"
        ) from error


def adapter_lineage(folder: Path) -> Lineage | None:
    """The lineage of a folder that holds adapters of ours; None for whole models and for adapters from elsewhere."""
    return read_lineage(folder) if (folder / ADAPTER).is_file() else None


def is_reward_model(name_or_path: str) -> bool:
    """Whether the folder was written by the reward stage: it has a score's head."""
    return (Path(resolve(name_or_path)) / HEAD).is_file()


def problem_with_policy(name_or_path: str) -> str | None:
    """Why the folder cannot be a language model, or None: a reward model's output head was never trained, or is not there."""
    if not is_reward_model(name_or_path):
        return None
    return (
        f"{name_or_path} is a reward model: it scores texts and writes none. Name a language model here, and the reward model "
        "as a scorer: `model:` under scorers: of a generate or eval recipe, or under ppo.rewards:"
    )


def saved_template(folder: Path) -> TemplateSection | None:
    """The template that a `final/` was trained with; None for a model from elsewhere."""
    path = folder / NAME
    if not path.is_file():
        return None
    return TemplateSection.model_validate(json.loads(path.read_text(encoding="utf-8"))["template"])


def problem_with_template(name_or_path: str, template: TemplateSection) -> str | None:
    """Why a reward model cannot score prompts in this template, or None: it was trained on prompts in another one.

    What ends a completion is the reward model's own affair, so `add_eos` may differ. A model from elsewhere names no template.
    """
    trained = saved_template(Path(resolve(name_or_path)))
    if trained is None:
        return None
    theirs, ours = (t.model_dump(exclude={"add_eos"}) for t in (trained, template))
    if "auto" in (theirs["kind"], ours["kind"]):  # settled by the rows, which are not known here
        theirs["kind"] = ours["kind"]
    differ = ", ".join(f"{key} {theirs[key]!r} instead of {ours[key]!r}" for key in ours if theirs[key] != ours[key])
    if not differ:
        return None
    return (
        f"the reward model {name_or_path} was trained with another template ({differ}), so it would read prompts that it "
        "does not know. Set template: to match, or say other_template: true beside model:"
    )


def trained_dtype(name_or_path: str) -> Precision:
    """The dtype in which to run a model where nobody says: that of the training for a `final/` of adapters, else the
    config's. 16 bits of either kind are bfloat16; float32 where nothing is known.
    """
    path = resolve(name_or_path)
    lineage = adapter_lineage(Path(path))
    if lineage is not None:
        return cast(Precision, lineage.base.dtype)
    from transformers import AutoConfig  # rlhf check reads lineages, and must not wait for it

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):  # loading the model says what is wrong with it
        return "float32"
    stored = config.dtype or config.get_text_config().dtype
    return "bfloat16" if str(stored).removeprefix("torch.") in ("bfloat16", "float16") else "float32"


def quantization_beside(name_or_path: str, asked: QuantizationSection | None) -> QuantizationSection | None:
    """How to load one of several models under one section: whole ones as it asks, adapters on their base as trained."""
    return asked if adapter_lineage(Path(resolve(name_or_path))) is None else None


def quantization_of(lineage: Lineage, asked: QuantizationSection | None, folder: Path) -> QuantizationSection | None:
    """How to load the base under adapters: as it was trained. Raises RecipeError where the recipe asks for another way."""
    trained = (
        None if lineage.base.quantization is None else QuantizationSection.model_validate(lineage.base.quantization)
    )
    if asked is None or asked == trained or (trained is None and not asked.load_in_4bit):
        return trained
    was = "without quantisation" if trained is None else f"with {trained.model_dump()}"
    raise RecipeError(
        f"quantization: the adapters in {folder} were trained on a base that was loaded {was}; on a base in another "
        "quantisation they are another function. Leave the section out: the base is then loaded as it was trained"
    )
