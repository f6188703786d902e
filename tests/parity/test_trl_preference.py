"""DPO's family against TRL's DPOTrainer on a tiny model: its tokens, its forward pass, its losses and gradients.

Both models are in float64, and TRL's head gives its log-probabilities in float32. Exact comparisons are in
tests/losses/test_trl_preference.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.tokens.segments import collate
from rlhf.train.dpo import Dpo
from tests.losses.preference_cases import SETTINGS
from tests.parity.support import PAIR_ROWS, gradients, needs_trl, perturb, rendered, setup, worst_gradient
from tests.parity.test_trl_dpo import Folders, Recipes, trainer_of

pytestmark = needs_trl
SAME = ("robust", "sigmoid_norm", "hinge", "sppo_hard", "exo_pair", "nca_pair", "bco_pair", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop")  # fmt: skip


def test_values_and_gradients_of_every_loss(recipe_of: Recipes, model_folder: Folders, tmp_path: Path) -> None:
    folder = model_folder("llama")
    trainer = trainer_of(folder, PAIR_ROWS, tmp_path)
    found: dict[str, tuple[float, float]] = {}
    stage: Any = None
    for name in SAME:
        section = SETTINGS[name] | {"loss_type": name}
        recipe = recipe_of("dpo", folder, dpo=section)
        segments = rendered(recipe, PAIR_ROWS)
        stage = Dpo(recipe, setup(recipe, segments))
        perturb(stage.module, seed=1)
        stage.module.double(), stage.reference._policy.double()
        trainer.model.double().load_state_dict(stage.module.transformer.state_dict())
        trainer.ref_model.double()
        trainer.model.train()
        trainer.model.zero_grad()
        trainer.loss_types, trainer.loss_weights, trainer.beta = [name], [1.0], section["beta"]
        trainer.label_smoothing = section.get("label_smoothing", 0.0)
        trainer.args.discopop_tau = section.get("discopop_tau", 0.05)
        ours = stage.forward_loss(stage.module, collate(segments), torch.tensor(float(len(segments)))).loss
        ours.backward()
        theirs = trainer.compute_loss(
            trainer.model, trainer.data_collator([dict(row) for row in trainer.train_dataset])
        )
        theirs.backward()
        assert ours.item() == pytest.approx(theirs.item(), rel=5e-6), name
        assert worst_gradient(gradients(stage.module.transformer), gradients(trainer.model)) <= 1e-5, name
        found[name] = ours.item(), float(sum(g.norm() for g in gradients(trainer.model).values()))
    assert min(norm for _, norm in found.values()) > 1e-3
    assert len({round(value, 6) for value, _ in found.values()}) == len(SAME)  # no two are alike
