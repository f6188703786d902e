"""A whole reward model is transformers' classifier with one label, and gives the same scores there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GraniteConfig,
    pipeline,
)
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.errors import RecipeError
from rlhf.models.classifier import how_to_score
from rlhf.models.load import load_policy, load_scalar_model
from rlhf.models.save import save_standalone
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.run import train
from tests.models.test_attention import CONFIGS
from tests.tiny import tiny_tokenizer
from tests.train.conftest import config_of, model_folder, recipe_of, rows

__all__ = ["model_folder", "recipe_of", "rows"]
EOS = 1
TEXTS = [[5, 6, 7, 8, EOS], [9, 10, EOS], [11, 12, 13, 14, 15, 16, 17], [20, EOS, 21, EOS, EOS]]


@torch.no_grad()
def scores_of(model: ScalarModel) -> torch.Tensor:
    return model(collate([Segment(ids[:1], [ids[1:]]) for ids in TEXTS]))  # type: ignore[no-any-return]


def classifier(folder: Path | str) -> Any:
    """The folder in transformers, with every weight of the file used and none made up."""
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@torch.no_grad()
def alone(model: Any) -> torch.Tensor:
    return torch.cat([model(torch.tensor([ids])).logits[:, 0] for ids in TEXTS])


@torch.no_grad()
def together(model: Any, tokenizer: Any) -> torch.Tensor:
    batch = tokenizer.pad({"input_ids": TEXTS}, padding_side="right", return_tensors="pt")
    return model(**batch).logits[:, 0]  # type: ignore[no-any-return]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def whole(
    recipe_of: Callable[..., TrainRecipe], model_folder: Callable[[str], str], tmp_path: Path
) -> Callable[[str, bool], tuple[str, str]]:
    """The folder of a trained run, and of the whole reward model that comes of it."""

    def make(architecture: str, lora: bool) -> tuple[str, str]:
        sections: dict[str, Any] = {"training": {"max_steps": 6, "learning_rate": 3e-2}} | (
            {"lora": {"r": 4}} if lora else {}
        )
        recipe = recipe_of("reward", model_folder(architecture), **sections)
        train(recipe)
        if not lora:
            return recipe.output_dir, f"{recipe.output_dir}/final"
        merged = str(tmp_path / "merged")
        result = CliRunner().invoke(app, ["merge", recipe.output_dir, "-o", merged, "--dtype", "float32"])
        assert result.exit_code == 0, result.output
        assert "loads it with AutoModelForSequenceClassification\n" in result.output
        return recipe.output_dir, merged

    return make


@pytest.mark.parametrize("lora", [False, True], ids=["full", "merged"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "gemma3"])
def test_transformers_gives_the_scores_of_the_trained_model(
    architecture: str, lora: bool, whole: Callable[[str, bool], tuple[str, str]]
) -> None:
    run, folder = whole(architecture, lora)
    trained = scores_of(load_scalar_model(ModelSection(name_or_path=run)))
    close(scores_of(load_scalar_model(ModelSection(name_or_path=folder))), trained)
    model, tokenizer = classifier(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == EOS != tokenizer.pad_token_id == model.config.pad_token_id
    assert model.config.score_bias == 0
    close(alone(model), trained)
    close(together(model, tokenizer), trained)


def test_a_pipeline_gives_the_score_itself(whole: Callable[[str, bool], tuple[str, str]]) -> None:
    _, folder = whole("llama", False)
    ids = AutoTokenizer.from_pretrained(folder)("The film was good").input_ids
    with torch.no_grad():
        expected = load_scalar_model(ModelSection(name_or_path=folder))(collate([Segment(ids[:1], [ids[1:]])]))
    [found] = pipeline("text-classification", model=folder)("The film was good")
    assert found["score"] == pytest.approx(float(expected), abs=1e-5)


def saved(network_folder: str, tokenizer: Any, folder: Path, bias: float = 0.0) -> torch.Tensor:
    """Write a reward model on a network; returns its scores."""
    torch.manual_seed(3)
    model = load_scalar_model(ModelSection(name_or_path=network_folder))
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, bias)
    save_standalone(model, tokenizer, folder, torch.float32)
    return scores_of(model)


@pytest.mark.parametrize("architecture", ["mistral", "gpt_neox", "qwen3"])
def test_other_families_load_too(architecture: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[architecture])).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    expected = saved(str(tmp_path / "base"), tiny_tokenizer(), tmp_path / "reward")
    model = classifier(tmp_path / "reward")
    close(alone(model), expected)
    close(together(model, AutoTokenizer.from_pretrained(tmp_path / "reward")), expected)


def test_a_bias_is_kept_in_the_config(model_folder: Callable[[str], str], tmp_path: Path) -> None:
    expected = saved(model_folder("llama"), tiny_tokenizer(), tmp_path, bias=0.75)
    model = classifier(tmp_path)
    close(together(model, AutoTokenizer.from_pretrained(tmp_path)) + model.config.score_bias, expected)
    assert "add model.config.score_bias (0.75)" in how_to_score(tmp_path)


def test_without_a_token_that_ends_no_text_a_batch_is_refused(
    model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    """GPT-2's tokenizer has one special token. Padding with it, transformers would read the token before the last."""
    tokenizer: Any = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = tokenizer.eos_token
    expected = saved(model_folder("gpt2"), tokenizer, tmp_path)
    model, own = classifier(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    close(alone(model), expected)
    with pytest.raises(ValueError, match="no padding token is defined"):
        together(model, own)
    assert "one row at a time" in how_to_score(tmp_path)
    own.pad_token = own.convert_ids_to_tokens(30)  # the remedy that it names
    model.config.pad_token_id = own.pad_token_id
    close(together(model, own), expected)


def test_a_network_without_a_classifier_keeps_its_body_and_says_so(tmp_path: Path) -> None:
    sizes = config_of("llama", tiny_tokenizer()).to_dict()
    config = GraniteConfig(**{k: v for k, v in sizes.items() if k not in ("model_type", "rope_parameters")})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    expected = saved(str(tmp_path / "base"), tiny_tokenizer(), tmp_path / "reward")
    close(scores_of(load_scalar_model(ModelSection(name_or_path=str(tmp_path / "reward")))), expected)
    assert "no classifier with one plain head for granite models" in how_to_score(tmp_path / "reward")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_reward_model_is_no_policy(lora: bool, whole: Callable[[str, bool], tuple[str, str]]) -> None:
    for folder in set(whole("llama", lora)):
        with pytest.raises(RecipeError, match=r"is a reward model: it scores texts and writes none.* as a scorer"):
            load_policy(ModelSection(name_or_path=folder))
        chat = CliRunner().invoke(app, ["chat", folder])
        assert chat.exit_code == 2 and chat.stderr.startswith(f"{folder} is a reward model: it scores texts")
