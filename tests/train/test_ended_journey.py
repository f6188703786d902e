"""Samples to rankings to pairs to a reward model to PPO: whether a text ended is known at the end of the way as at its start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import rlhf
from rlhf.generation.engine import Completion
from rlhf.generation.reward_scorer import RewardScorer, Sample
from rlhf.models.load import load_scalar_model
from rlhf.recipe.sections import ModelSection
from rlhf.tokens.segments import Segment, collate
from tests.golden.support import recipe_file
from tests.tiny import tiny_tokenizer
from tests.train.ppo_support import EOS, LETTERS, Recipes, iteration, stage_of

NF4 = {"quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}}
WEIGHTS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": {"r": 4}}, "nf4": {"lora": {"r": 4}} | NF4}


def sides(folder: Path) -> list[tuple[str, str, bool]]:
    """(prompt, completion, ended) of both sides of every pair."""
    rows = [row for path in sorted(folder.glob("train/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [(row["prompt"], row[side], row[f"{side}_ended"]) for row in rows for side in ("chosen", "rejected")]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_from_the_sampler_to_ppo(
    weights: str, ending: Callable[..., str], recipe_of: Recipes, rows: dict[str, str], tmp_path: Path
) -> None:
    if weights == "nf4":
        pytest.importorskip("bitsandbytes")
    generation = {
        "method": "generate",
        "output_dir": str(tmp_path / "samples"),
        "model": {"name_or_path": ending(5.0)},
        "prompts": rows["ppo"],
        "sampling": {"max_new_tokens": 8, "n": 6},
        "scorers": [LETTERS],
    }
    rlhf.run(recipe_file(generation, tmp_path / "g"))
    build = {
        "method": "data",
        "output_dir": str(tmp_path / "pairs"),
        "sources": [{"path": str(tmp_path / "samples/train")}],
        "steps": [{"pairs": {"strategy": "all"}}],
    }
    rlhf.run(recipe_file(build, tmp_path / "b"))
    texts = sides(tmp_path / "pairs")
    cut = [not ended for *_, ended in texts]
    assert 0.2 < sum(cut) / len(cut) < 0.9

    data = {"train": str(tmp_path / "pairs/train"), "max_length": 64}
    reward = recipe_of("reward", ending(5.0), out="reward", data=data, **WEIGHTS[weights])
    said = rlhf.run(recipe_file(reward.model_dump(mode="json"), tmp_path / "r"))
    final = f"{reward.output_dir}/final"
    assert said["rows"]["train"]["unfinished"] == sum(cut)

    stage = stage_of(recipe_of("ppo", ending(5.0), ppo={"rewards": [{"model": final}]}, **WEIGHTS[weights]))
    scorer = stage.scorers[0].score
    assert isinstance(scorer, RewardScorer) and scorer.scale is not None and scorer.scale.knows_unfinished
    assert scorer.scale.unfinished == pytest.approx(sum(cut) / len(cut))
    tokenizer = tiny_tokenizer()
    ids = [(list(tokenizer(p).input_ids), list(tokenizer(c).input_ids) + [EOS] * e) for p, c, e in texts]
    samples = [
        Sample(p, prompt, Completion(own, c, e)) for (p, c, e), (prompt, own) in zip(texts, ids, strict=True)
    ]  # as the policy would have sampled them
    model = load_scalar_model(ModelSection(name_or_path=final))  # as the reward stage left it
    with torch.no_grad():
        trained = model(collate([Segment(prompt, [own]) for prompt, own in ids]))
    expected = ((trained - scorer.scale.mean) / scorer.scale.std).tolist()
    assert scorer(samples) == pytest.approx(expected, abs=2e-3 if weights == "nf4" else 1e-4)
    assert all(torch.isfinite(r.scores).all() for r in iteration(stage))
