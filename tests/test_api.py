"""`rlhf.run` takes a dict as well as a file."""

from __future__ import annotations

import pytest

import rlhf
from rlhf.errors import RecipeError


def test_a_dict_is_not_changed_and_takes_overrides() -> None:
    recipe = {"method": "dpo", "output_dir": "o", "model": {"name_or_path": "m"}, "data": {"train": [{"path": "x"}]}}
    with pytest.raises(RecipeError, match=r"training\.lr: unknown key"):
        rlhf.run(recipe, ["training.lr=1", "data.max_length=5"])
    assert recipe["data"] == {"train": [{"path": "x"}]}
