"""rlhf: from human rankings to a preference-tuned model, on one to eight GPUs or a laptop."""

__version__ = "0.1.0"


def run(recipe: str, overrides: tuple[str, ...] | list[str] = ()) -> dict:
    """Run one recipe file, as `rlhf train RECIPE key=value ...` does. Returns the run's summary.

    Raises RecipeError, DataError, SetupError or CheckpointError (rlhf.errors).
    """
    from .run import run as run_recipe

    return run_recipe(recipe, overrides)
