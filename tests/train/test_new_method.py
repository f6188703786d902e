"""A new training method touches four places: its recipe, its loss, its stage, and its entry among the methods.

A toy method is added from a module of its own. Everything else (loading, checking, rows, the loop, checkpoints, `final/`,
status) knows it without being told.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import rlhf
from rlhf.cli import app
from rlhf.recipe import schema

TOY = '''
from typing import Literal

from torch import nn

from rlhf.losses import LossOutput
from rlhf.recipe.sections import PositiveFloat, Section
from rlhf.recipe.training import TrainRecipe
from rlhf.train.supervised import Supervised


class ToySection(Section):
    """Likelihood, times a weight."""

    weight: PositiveFloat = 1.0


class ToyRecipe(TrainRecipe):                        # 1: its recipe
    stage = "toy_method:Toy"
    row_kinds = frozenset({"demonstration"})

    method: Literal["toy"]
    toy: ToySection = ToySection()


def toy_loss(*, logprobs, weight, num_tokens):       # 2: its loss
    loss = -weight * logprobs.sum() / num_tokens
    return LossOutput(loss, {"loss": loss.detach()})


class Toy(Supervised):                               # 3: its stage
    def __init__(self, recipe, setup):
        super().__init__(setup.policy(), recipe, setup)
        self.weight = recipe.toy.weight

    def count(self, batch):
        return batch.num_targets

    def forward_loss(self, module: nn.Module, batch, count):
        return toy_loss(logprobs=module(batch), weight=self.weight, num_tokens=count)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module where imports find it, and 4: its entry."""
    (tmp_path / "toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_method", raising=False)
    import toy_method  # type: ignore[import-not-found]

    monkeypatch.setitem(schema.METHODS, "toy", toy_method.ToyRecipe)


def test_a_method_of_a_users_own_runs_from_check_to_final(
    toy: None, tmp_path: Path, model_folder: Callable[[str], str], rows: dict[str, str]
) -> None:
    recipe = {
        "method": "toy",
        "output_dir": str(tmp_path / "run"),
        "model": {"name_or_path": model_folder("llama")},
        "data": {"train": rows["sft"], "max_length": 64},
        "toy": {"weight": 2.0},
        "training": {"max_steps": 2, "learning_rate": 1e-3},
        "checkpoint": {"save_steps": 2},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe))
    checked = CliRunner().invoke(app, ["check", str(path)])
    assert checked.exit_code == 0 and "(toy)" in checked.output
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0 and "completion" in shown.output
    rlhf.run(str(path))
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
    assert (tmp_path / "run/final/lineage.json").is_file()
    path.write_text(path.read_text().replace(rows["sft"], rows["dpo"]).replace("weight: 2.0", "wieght: 2.0"))
    wrong = CliRunner().invoke(app, ["check", str(path)])
    assert wrong.exit_code == 2 and "toy.wieght: unknown key; did you mean 'weight'?" in wrong.stderr
