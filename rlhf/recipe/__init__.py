"""The YAML contract: a typed schema per method, and the loader that explains what is wrong with a recipe."""

from rlhf.recipe.loader import dump, load

__all__ = ["dump", "load"]
