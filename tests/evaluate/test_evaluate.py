"""`evaluate` from recipe to files, on tiny random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.errors import RecipeError
from rlhf.evaluate.preferences import reward_accuracy
from rlhf.evaluate.run import evaluate
from rlhf.recipe.schema import EvalRecipe
from rlhf.recipe.sections import SourceSection, TemplateSection
from rlhf.tokens.tokenizer import load_tokenizer
from tests.evaluate.conftest import PROMPTS, tiny_llama, write_rows
from tests.evaluate.scorers import letters

Make = Callable[..., EvalRecipe]
PAIRS = [
    {"prompt": "The film was", "chosen": " good and the answer is yes", "rejected": " good"},
    {"prompt": "The film was", "chosen": " a good film", "rejected": " 1"},
    {"prompt": "I like", "chosen": " it", "rejected": " hello there how are you"},
    {"prompt": "you are", "chosen": "x", "rejected": "y"},  # of equal length
    {"prompt": "there is", "chosen": " no film", "rejected": " yes"},
    {"prompt": "hello", "chosen": " 1 2 3", "rejected": " 4 5 6 7"},
    {"prompt": "It is", "chosen": "?", "rejected": "!!"},
]


def rows_of(recipe: EvalRecipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(recipe.output_dir) / "samples.jsonl").read_text().splitlines()]


@torch.no_grad()
def pair_logprobs(folder: str) -> np.ndarray:
    """log p of both completions of PAIRS with their EOS, [pairs, 2], from the plain model's logits."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)

    def logprob(prompt: str, completion: str) -> float:
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([*tokenizer(prompt + completion).input_ids, tokenizer.eos_token_id])
        logprobs = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
        return float(logprobs.gather(1, ids[1:, None])[start - 1 :].sum())

    return np.asarray([[logprob(p["prompt"], p[side]) for side in ("chosen", "rejected")] for p in PAIRS])


def test_two_models_from_recipe_to_report(recipe_of: Make, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of("AB", pair_judges=[{"callable": "tests.evaluate.scorers:always_first"}])
    report = evaluate(recipe)
    assert json.loads((Path(recipe.output_dir) / "report.json").read_text()) == report
    rows = rows_of(recipe)
    assert [row["prompt"] for row in rows] == PROMPTS
    a, b = report["models"]

    def column(name: str, value: Callable[[dict[str, Any]], float]) -> np.ndarray:
        return np.asarray([value(row["models"][name]) for row in rows])

    for model, name in ((a, "A"), (b, "B")):
        texts = [row["models"][name]["completion"] for row in rows]
        scores = column(name, lambda m: m["scores"]["letters"])
        assert scores.tolist() == letters(PROMPTS, texts)
        assert model["scores"]["letters"]["mean"]["value"] == pytest.approx(scores.mean())
        assert model["length"]["mean"]["value"] == pytest.approx(column(name, lambda m: m["tokens"]).mean())
        assert model["eos_rate"]["value"] == pytest.approx(column(name, lambda m: m["ended"]).mean())
        assert model["kl"]["value"] == pytest.approx(column(name, lambda m: m["kl"]).mean())
    difference = column("B", lambda m: m["scores"]["letters"]) - column("A", lambda m: m["scores"]["letters"])
    assert difference.any()
    assert b["scores"]["letters"]["difference"]["value"] == pytest.approx(difference.mean())
    assert b["scores"]["letters"]["win_rate"]["value"] == pytest.approx(((np.sign(difference) + 1) / 2).mean())
    assert a["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": len(PROMPTS)}
    assert b["kl"]["value"] > 0.1
    assert (a["scores"]["letters"]["win_rate"], a["pair_judges"]) == (None, {})
    assert b["pair_judges"]["always_first"]["win_rate"]["value"] == 0.5
    assert b["pair_judges"]["always_first"]["flip_rate"]["value"] == 1.0
    card = {"asked_for": "tests.evaluate.scorers:letters", "accuracy": 0.75}
    assert next(j["card"] for j in report["judges"] if j["name"] == "letters") == card
    out = capsys.readouterr().out
    assert "letters" in out
    assert "report.html" in out


def test_a_model_against_itself(recipe_of: Make, models: dict[str, str]) -> None:
    both = [{"name": name, "name_or_path": models["A"]} for name in ("one", "again")]
    report = evaluate(recipe_of("A", models=both, sampling={"max_new_tokens": 6, "n": 2}))
    again = report["models"][1]
    assert again["scores"]["letters"]["win_rate"]["value"] == 0.5
    assert again["scores"]["letters"]["ties"] == 1.0
    assert again["scores"]["letters"]["difference"]["value"] == 0.0
    assert again["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": len(PROMPTS)}
    assert "No difference" in report["findings"][0]


def test_held_out_preferences(recipe_of: Make, models: dict[str, str], tmp_path: Path) -> None:
    pairs = [{"path": write_rows(tmp_path / "pairs.jsonl", PAIRS)}]
    report = evaluate(recipe_of("AB", reward_model=models["R"], preferences=pairs))
    found = report["preferences"]
    assert (found["pairs"], found["prompts"]) == (7, 6)
    assert found["accuracy"]["n"] == 6
    tokenizer = load_tokenizer(models["R"])
    sides = [[len(tokenizer(p[side]).input_ids) for side in ("chosen", "rejected")] for p in PAIRS]
    assert any(chosen == rejected for chosen, rejected in sides)
    expected = np.mean([(np.sign(chosen - rejected) + 1) / 2 for chosen, rejected in sides])
    assert found["length_baseline"]["value"] == pytest.approx(expected)
    assert found["pairs_chosen_shorter"] == sum(chosen < rejected for chosen, rejected in sides)
    assert report["models"][0]["implicit_accuracy"] is None
    a, b = (pair_logprobs(models[name]) for name in "AB")
    gains = (b - a) @ [1, -1]
    assert (gains > 0).mean() != (b @ [1, -1] > 0).mean()  # the reference matters to these pairs
    assert report["models"][1]["implicit_accuracy"]["value"] == pytest.approx((gains > 0).mean())
    reward = report["scorers"][-1]  # the reward model scores the samples too
    assert set(report["models"][0]["scores"]) == {"letters", reward}


def test_a_reward_model_of_another_template_is_refused(recipe_of: Make, models: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"was trained with another template \(kind 'plain' instead of 'chat'\)"):
        evaluate(recipe_of("AB", reward_model=models["R"], template={"kind": "chat"}))


def test_the_reward_models_accuracy_turns_round_with_the_pairs(models: dict[str, str], tmp_path: Path) -> None:
    turned = [{"prompt": p["prompt"], "chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS]
    there, back = (
        reward_accuracy(
            models["R"],
            [SourceSection(path=write_rows(tmp_path / f"{name}.jsonl", rows))],
            TemplateSection(),
            seed=0,
            dtype="float32",
            device="cpu",
        )
        for name, rows in (("there", PAIRS), ("back", turned))
    )
    assert there["accuracy"]["value"] + back["accuracy"]["value"] == pytest.approx(1.0)
    assert there["margin"] == pytest.approx(-back["margin"], abs=1e-5)
    assert there["margin"] != 0


def test_a_model_with_another_vocabulary_is_compared_but_has_no_kl(
    recipe_of: Make, models: dict[str, str], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(models["A"])
    tokenizer.add_tokens(["<one-more>"])
    tiny_llama(5, len(tokenizer)).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    named = [{"name": "A", "name_or_path": models["A"]}, {"name": "C", "name_or_path": str(tmp_path / "other")}]
    report = evaluate(recipe_of("A", models=named))
    other = report["models"][1]
    assert other["kl"] is None
    assert other["scores"]["letters"]["win_rate"] is not None
    assert any("vocabularies differ" in note for note in report["notes"])


def test_greedy_samples_have_no_kl(recipe_of: Make) -> None:
    report = evaluate(recipe_of("AB", sampling={"max_new_tokens": 4, "temperature": 0.0}))
    assert report["models"][1]["kl"] is None
    assert any("greedy" in note for note in report["notes"])


def test_truncated_sampling_is_noted(recipe_of: Make) -> None:
    report = evaluate(recipe_of("AB", sampling={"max_new_tokens": 4, "top_p": 0.9}))
    assert any("top_p 0.9" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"scorers": [{"callable": "tests.evaluate.scorers:no_such"}]}, "cannot import"),
        ({"scorers": [{"callable": "tests.evaluate.scorers:letters"}], "reward_model": "B"}, "not a reward model"),
        ({"sampling": {"max_new_tokens": 64}}, "exceeds the 64 positions of A"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sampled(
    recipe_of: Make,
    models: dict[str, str],
    sections: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sampled(*_: Any, **__: Any) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr("rlhf.generation.in_process.InProcessEngine.generate", sampled)
    sections = {key: models.get(value, value) if isinstance(value, str) else value for key, value in sections.items()}
    with pytest.raises(RecipeError, match=message):
        evaluate(recipe_of("AB", **sections))


def test_names_must_differ(recipe_of: Make) -> None:
    with pytest.raises(ValueError, match="models: names must differ"):
        recipe_of("AA")
    with pytest.raises(ValueError, match="scorers and pair_judges: names must differ"):
        recipe_of("AB", pair_judges=[{"name": "letters", "callable": "tests.evaluate.scorers:more_letters"}])


def test_the_same_recipe_gives_the_same_samples(recipe_of: Make) -> None:
    recipe = recipe_of("AB")
    evaluate(recipe)
    first = rows_of(recipe)
    torch.manual_seed(123)
    evaluate(recipe)
    assert rows_of(recipe) == first
    evaluate(recipe_of("AB", seed=1))
    assert rows_of(recipe) != first


def test_a_ranking_is_measured_as_all_its_pairs(models: dict[str, str], tmp_path: Path) -> None:
    ranking = [{"prompt": "I like", "completions": [" it", " a film", " no", " yes"], "scores": [2.0, 1.0, 1.0, 3.0]}]
    best, better, worse = " yes", " it", (" a film", " no")
    order = [(best, better), *((best, w) for w in worse), *((better, w) for w in worse)]
    pairs = [{"prompt": "I like", "chosen": c, "rejected": r} for c, r in order]
    whole, apart = (
        reward_accuracy(
            models["R"],
            [SourceSection(path=write_rows(tmp_path / f"{name}.jsonl", rows))],
            TemplateSection(),
            dtype="float32",
            device="cpu",
            seed=0,
        )
        for name, rows in (("ranking", ranking), ("pairs", pairs))
    )
    assert (whole["pairs"], whole["prompts"]) == (5, 1)  # the two that are tied make no pair
    assert whole["accuracy"] == apart["accuracy"]
    assert whole["margin"] == pytest.approx(apart["margin"], abs=1e-5)


def test_every_long_step_is_announced(recipe_of: Make, models: dict[str, str], tmp_path: Path, capfd: Any) -> None:
    pairs = [{"path": write_rows(tmp_path / "pairs.jsonl", PAIRS)}]
    evaluate(recipe_of("AB", reward_model=models["R"], preferences=pairs))
    said = capfd.readouterr().err
    places = [said.index(what) for what in (
        "loading A", "A: log-probabilities of 7 held-out pairs", "loading the judges", "sampling A", "loading B",
        "sampling B", "B: KL to A", "scoring with letters", "on the held-out pairs",
    )]  # fmt: skip
    assert places == sorted(places)
