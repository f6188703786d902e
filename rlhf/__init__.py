"""rlhf: from human rankings to a preference-tuned model."""

__version__ = "0.1.0"

from rlhf.runs.start import run

__all__ = ["__version__", "run"]
