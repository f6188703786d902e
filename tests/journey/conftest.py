"""The tiny models and recipes of the stages' own tests."""

from __future__ import annotations

from tests.train.conftest import model_folder, recipe_of, rows

__all__ = ["model_folder", "recipe_of", "rows"]
