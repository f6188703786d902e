"""A whole run whose reward is a server: what it is sent, a restart in the middle, and what may change when the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import CheckpointError, RlhfError
from rlhf.recipe.training import TrainRecipe
from rlhf.runs.identity import of_callable, of_model
from rlhf.train.run import train
from tests.generation.test_reward_server import Rewards, lengths
from tests.http_server import Server, running
from tests.train.conftest import REVIEWS, metrics_of


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = Server(Rewards)
    made.asked, made.replies = [], [lengths]
    with running(made):
        yield made


@pytest.fixture
def run(ragged: Callable[..., TrainRecipe], rows: dict[str, str], server: Any) -> Callable[..., TrainRecipe]:
    lines = [{"prompt": p, "gold": c} for p, c, _ in REVIEWS]
    Path(rows["ppo"]).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def recipe(steps: int, out: str = "run", **options: Any) -> TrainRecipe:
        reward = {"name": "there", "url": f"{server.address}/score", "columns": ["gold"], "max_retries": 0} | options
        saving = {"save_steps": 1, "save_total_limit": None}
        return ragged(out=out, ppo={"rewards": [reward]}, training={"max_steps": steps}, checkpoint=saving)

    return recipe


def test_a_run_that_lost_its_server_goes_on_as_if_it_had_not(run: Callable[..., TrainRecipe], server: Any) -> None:
    """With more patience than before, which is no other run; the steps are those of a run that lost nothing."""
    whole = run(3, "whole", batch_size=3)
    train(whole)
    gold = {p: c for p, c, _ in REVIEWS}
    for _, body, _ in server.asked:
        assert body.keys() == {"prompts", "completions", "ended", "gold"} and len(body["prompts"]) <= 3
        assert body["gold"] == [gold[prompt] for prompt in body["prompts"]]
    server.replies = [lengths, lengths, (503, "gone")]
    with pytest.raises(RlhfError, match=r"there: .* no answer after 1 try: HTTP 503"):
        train(run(3))
    server.replies = [(503, "starting"), lengths]
    train(run(3, max_retries=2, batch_size=5, timeout=9.0))
    kept = ("score", "score/there", "loss", "kl", "grad_norm")
    ours, theirs = ([{k: x[k] for k in kept} for x in metrics_of(r)] for r in (whole, run(3)))
    assert ours == theirs


def test_the_lineage_names_all_that_the_run_asked(
    ragged: Callable[..., TrainRecipe], server: Any, reward_model: Callable[[], str]
) -> None:
    """Each reward under its key, with its content where that can be known; the card says the same."""
    model, function, address = reward_model(), "tests.train.rewards:count_letters", f"{server.address}/score"
    rewards = [{"model": model}, {"callable": function}, {"url": address, "max_retries": 0}]
    recipe = ragged(ppo={"rewards": rewards}, training={"max_steps": 1})
    train(recipe)
    folder = Path(recipe.output_dir) / "final"
    assert json.loads((folder / "lineage.json").read_text())["roles"] == {
        "ppo.rewards.0.model": {"name": model, "identity": of_model(model)},
        "ppo.rewards.1.callable": {"name": function, "identity": of_callable(function)},
        "ppo.rewards.2.url": {"name": address},
    }
    card = (folder / "README.md").read_text()
    assert all(
        f"- `{key}`: `{name}`" in card for key, name in [("ppo.rewards.0.model", model), ("ppo.rewards.2.url", address)]
    )


def test_another_server_is_another_run(run: Callable[..., TrainRecipe], server: Any) -> None:
    train(run(1))
    with pytest.raises(CheckpointError, match=r"ppo\.rewards"):
        train(run(2, url=f"{server.address}/other"))
