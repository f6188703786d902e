"""The YAML contract: what a recipe may say, and the words for everything that is wrong with one."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import RecipeError
from rlhf.recipe import dump, load
from rlhf.recipe.loader import digest
from rlhf.recipe.online import PpoRecipe
from rlhf.recipe.schema import DataRecipe
from rlhf.recipe.sections import DataSection, LoraSection, ModelSection, SourceSection, TemplateSection, TrainingSection
from rlhf.recipe.training import DpoRecipe
from rlhf.recipe.yaml_lines import parse
from tests.recipe.support import DPO, workplace, write

__all__ = ["workplace"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("False", False),
        ("1e-5", 1e-5),
        ("5.0e-6", 5e-6),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("0o17", 15),
        ("0x1f", 31),
        ("017", 17),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse(f"key: {text}", "f").data["key"]
    assert read == value
    assert type(read) is type(value)


def test_a_recipe_with_overrides() -> None:
    recipe = load(
        write(DPO),
        [
            "training.learning_rate=5e-6",
            "lora.r=4",
            "data.train.0.max_rows=3",
            "data.train.1.path=more.jsonl",
            "data.eval=held_out.jsonl",
            "lora.target_modules=[q_proj, v_proj]",
            "training.max_grad_norm=null",
            "seed=1",
            "seed=2",
        ],
    )
    assert isinstance(recipe, DpoRecipe)
    assert recipe.training.learning_rate == 5e-6
    assert recipe.lora == LoraSection(r=4, target_modules=["q_proj", "v_proj"])
    assert recipe.data.train == [SourceSection(path="rows.jsonl", max_rows=3), SourceSection(path="more.jsonl")]
    assert recipe.data.eval == [SourceSection(path="held_out.jsonl")]
    assert recipe.training.max_grad_norm is None
    assert recipe.seed == 2


def test_null_takes_a_section_away_and_a_later_override_brings_it_back() -> None:
    path = write(DPO + "lora: {r: 2}\nquantization: {}\n")
    assert load(path, ["quantization=null"]).quantization is None
    assert load(path, ["lora=null", "lora.lora_alpha=3"]).lora == LoraSection(lora_alpha=3)


def test_overrides_do_not_reach_through_aliases() -> None:
    path = write(
        """\
        method: sft
        output_dir: out
        model: {name_or_path: base}
        data: {train: &rows [{path: rows.jsonl}], eval: *rows}
        """
    )
    recipe = load(path, ["data.eval.0.split=test"])
    assert (recipe.data.train[0].split, recipe.data.eval[0].split) == (None, "test")


def test_a_step_is_exactly_one_and_may_be_bare() -> None:
    path = write("method: data\noutput_dir: out\nsources: rows.json\nsteps:\n  - pairs:\n  - split: {test: 0.5}\n")
    recipe = load(path)
    assert isinstance(recipe, DataRecipe)
    assert [step.pairs is not None for step in recipe.steps] == [True, False]
    with pytest.raises(RecipeError, match=r"^r\.yaml:6: steps\.1: a step is exactly one of pairs, dedup, "):
        load(path, ["steps.1.pairs={}"])


TEXTS = st.text() | st.sampled_from(
    [
        "no",
        "1e-5",
        "~",
        "null",
        "1:30",
        "0o17",
        "=",
        "<<",
        "2020-01-01",
        "1_000",
        "\n",
        "a\n\n",
        "\x85",
        "\u2028x",
        "{a}",
    ]
)
RATES = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@settings(deadline=None)  # it writes a file: on a busy machine that takes as long as it takes
@given(TEXTS, TEXTS, st.lists(TEXTS), RATES, st.none() | RATES, st.dictionaries(TEXTS, TEXTS), st.none() | TEXTS)
def test_a_dumped_recipe_loads_back_equal(tmp_path_factory, folder, text, modules, rate, norm, columns, split) -> None:
    recipe = DpoRecipe(
        method="dpo",
        output_dir=folder,
        model=ModelSection(name_or_path=text),
        lora=LoraSection(target_modules=modules),
        data=DataSection(
            train=[SourceSection(path=text, columns=columns, split=split)],
            template=TemplateSection(prompt="{prompt}" + text),
        ),
        training=TrainingSection(learning_rate=rate, max_grad_norm=norm),
    )
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    assert load(path) == recipe


def test_a_dump_reads_the_same_in_yaml_1_1() -> None:
    recipe = load(write(DPO), ["output_dir='no'", "model.name_or_path='1e-5'", "data.train='1:30'"])
    assert yaml.safe_load(dump(recipe))["output_dir"] == "no"
    assert yaml.safe_load(dump(recipe))["data"]["train"] == [{"path": "1:30", "weight": 1.0}]


def test_the_digest_changes_with_what_is_asked_and_only_then() -> None:
    path = write(DPO)
    assert digest(load(path)) == digest(load(path, ["seed=0", "dpo.beta=1e-1"]))
    assert digest(load(path)) != digest(load(path, ["seed=1"]))


def test_an_override_of_the_method_brings_the_other_schema() -> None:
    path = write(DPO)
    recipe = load(path, ["method=ppo", "ppo.rewards.0.callable=a:b"])
    assert isinstance(recipe, PpoRecipe)
    assert recipe.ppo.rewards[0].callable == "a:b"
