"""The tiny models of the training tests."""

from tests.train.conftest import model_folder, recipe_of, rows

__all__ = ["model_folder", "recipe_of", "rows"]
