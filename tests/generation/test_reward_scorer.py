"""A reward model as a scorer: it sees what its training saw, end included, and answers in standard deviations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import CheckpointError, RecipeError
from rlhf.generation.engine import Completion
from rlhf.generation.reward_scorer import RewardScorer, Sample, check_template, load_reward_model
from rlhf.models.load import load_scalar_model
from rlhf.models.scores import ScoreScale, measure_scale, read_scale
from rlhf.recipe.schema import RECIPE
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.sections import ModelSection, TemplateSection
from rlhf.tokens.segments import Segment, collate
from rlhf.tokens.template import Renderer
from rlhf.train.run import train
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
ROWS = [
    {"prompt": "The film was", "chosen": " good", "rejected": " a film"},
    {"prompt": "I like", "chosen": " the film", "rejected": " 1 2 3"},
    {"prompt": "you are", "chosen": " well, thank you.", "rejected": " here"},
    {"prompt": "the answer is", "chosen": " yes", "rejected": " 1 2 3"},
]


def trained(model: Path, out: Path, rows: list[dict[str, Any]], kind: str = "plain") -> str:
    """A reward model's final/, after two steps on `rows`."""
    out.mkdir(parents=True)
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "method": "reward",
        "output_dir": str(out),
        "model": {"name_or_path": str(model)},
        "data": {"train": [{"path": str(out / "rows.jsonl")}], "max_length": 64, "template": {"kind": kind}},
        "training": {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1.0e-3},
    }
    train(RECIPE.validate_python(recipe))
    return str(out / "final")


def scorer_of(folder: str, **options: Any) -> RewardScorer:
    return RewardScorer(ScorerSection(model=folder, **options), TOKENIZER, load_reward_model(folder))


def raw(folder: str, *segments: Segment) -> list[float]:
    with torch.no_grad():
        return load_scalar_model(ModelSection(name_or_path=folder))(collate(list(segments))).tolist()


def sample(renderer: Renderer, prompt: str, text: str, ended: bool) -> Sample:
    ids = TOKENIZER(text).input_ids
    return Sample(prompt, renderer.prompt_ids(prompt), Completion([*ids, EOS] if ended else ids, text, ended))


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_a_sample_is_read_as_its_row_was_trained(kind: str, model: Path, tmp_path: Path) -> None:
    """In PPO, a completion gets the score that the same row has in training: whether it ended or not."""
    rows = [row | {"chosen_ended": i % 2 == 0, "rejected_ended": True} for i, row in enumerate(ROWS)]
    folder = trained(model, tmp_path / "run", rows, kind)
    scorer = scorer_of(folder, normalize=False)
    assert (
        scorer.scale is not None and scorer.scale.unfinished == pytest.approx(2 / 8) and scorer.scale.knows_unfinished
    )
    renderer = Renderer(TOKENIZER, TemplateSection(kind=kind))  # type: ignore[arg-type]
    for row in rows:
        expected = raw(folder, renderer.segment(row))
        samples = [sample(renderer, row["prompt"], row[k], row[f"{k}_ended"]) for k in ("chosen", "rejected")]
        assert scorer(samples) == pytest.approx(expected, abs=1e-5)


def test_a_model_that_saw_only_ends_scores_every_text_with_one(model: Path, tmp_path: Path) -> None:
    folder = trained(model, tmp_path / "run", ROWS)
    scorer = scorer_of(folder, normalize=False)
    renderer = Renderer(TOKENIZER, TemplateSection(kind="plain"))
    ended, cut = (sample(renderer, "The film was", " good", e) for e in (True, False))
    [with_end] = raw(folder, Segment(ended.prompt_ids, [[*TOKENIZER(" good").input_ids, EOS]]))
    assert scorer([ended, cut]) == pytest.approx([with_end, with_end], abs=1e-5)


def test_the_scale_is_that_of_its_own_data_and_travels_with_it(model: Path, tmp_path: Path) -> None:
    folder = trained(model, tmp_path / "run", ROWS)
    renderer = Renderer(TOKENIZER, TemplateSection(kind="plain"))
    scores = torch.tensor(raw(folder, *[renderer.segment(row) for row in ROWS]), dtype=torch.float64)
    scale = read_scale(Path(folder))
    assert scale is not None and scale.completions == 8 and scale.unfinished == 0 and not scale.knows_unfinished
    assert (scale.mean, scale.std) == pytest.approx((float(scores.mean()), float(scores.std(correction=0))), abs=1e-5)
    samples = [sample(renderer, row["prompt"], row[k], True) for row in ROWS for k in ("chosen", "rejected")]
    normalised = torch.tensor(scorer_of(folder)(samples), dtype=torch.float64)
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-4)
    assert float(normalised.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert scorer_of(folder, normalize=False)(samples) == pytest.approx(scores.tolist(), abs=1e-5)


def test_without_a_scale_scores_are_raw_and_it_says_so(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained(model, tmp_path / "run", ROWS)
    (Path(folder) / "scores.json").unlink()
    renderer = Renderer(TOKENIZER, TemplateSection(kind="plain"))
    samples = [sample(renderer, "you are", " here", True)]
    assert scorer_of(folder)(samples) == scorer_of(folder, normalize=False)(samples)
    assert "has no scores.json: its scores are not normalised" in caplog.text
    (Path(folder) / "scores.json").write_text('{"mean": 1}')
    with pytest.raises(CheckpointError, match=r"scores\.json: is not the scale"):
        scorer_of(folder)


def test_equal_scores_have_a_scale_that_can_be_divided_by(model: Path) -> None:
    scalar = load_scalar_model(ModelSection(name_or_path=str(model)))
    scalar.rescale(0.0, 3.0)
    report = {"unfinished": 0, "truncated": 1, "completions": 10}
    scale = measure_scale(scalar, [Segment([5], [[6, 7], [8]])], report)
    assert scale == ScoreScale(3.0, 1e-6, 2, 0.1)


def test_the_effect_of_the_end_is_in_standard_deviations(model: Path, tmp_path: Path) -> None:
    folder = trained(model, tmp_path / "run", ROWS)
    scorer = scorer_of(folder)
    renderer = Renderer(TOKENIZER, TemplateSection(kind="plain"))
    samples = [sample(renderer, row["prompt"], row["chosen"], True) for row in ROWS]
    ends = raw(folder, *[Segment(s.prompt_ids, [s.completion.ids]) for s in samples])
    bare = raw(folder, *[Segment(s.prompt_ids, [s.completion.ids[:-1]]) for s in samples])
    assert scorer.scale is not None
    expected = (sum(ends) - sum(bare)) / len(ends) / scorer.scale.std
    assert scorer.effect_of_end(samples) == pytest.approx(expected, rel=1e-4) and abs(expected) > 0.01


def test_another_template_is_refused_unless_the_recipe_says_so(model: Path, tmp_path: Path) -> None:
    folder = trained(model, tmp_path / "run", ROWS)
    check_template(ScorerSection(model=folder), TemplateSection(kind="plain"))
    check_template(ScorerSection(model=folder), TemplateSection(kind="plain", add_eos=False))
    question = TemplateSection(kind="plain", prompt="Question: {prompt}")
    with pytest.raises(
        RecipeError, match=r"prompt '\{prompt\}' instead of 'Question: \{prompt\}'.*other_template: true"
    ):
        check_template(ScorerSection(model=folder), question)
    check_template(ScorerSection(model=folder, other_template=True), question)
    with pytest.raises(ValueError, match=r"other_template: goes with model or models, and does nothing with callable"):
        ScorerSection(callable="json:dumps", other_template=True)
