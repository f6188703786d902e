"""The `rlhf` command. Thin: each command parses its arguments, calls the package that does the work, and reports errors."""

from rlhf.cli.commands import app, main

__all__ = ["app", "main"]
