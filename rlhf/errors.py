"""The four ways rlhf can fail, each with the exit code a launcher sees.

Stands at the ground of the import graph: everything may raise these, and `cli` alone turns them into exit codes.
The messages are written for users: where, what is wrong, what to do.
"""

from __future__ import annotations


class RlhfError(Exception):
    """Failed at run time; exit code 1."""

    exit_code = 1


class RecipeError(RlhfError):
    """A recipe or a command line that cannot be used; exit code 2.

    Holds every problem found, one line each: `file:line: key: what is wrong; did you mean 'x'?`
    """

    exit_code = 2

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(RlhfError):
    """Data that cannot be used as it is; exit code 3.

    `row` is 1-based and counts the file's rows (its lines, for JSON Lines); None when the whole file is meant.
    """

    exit_code = 3

    def __init__(self, file: str, reason: str, *, row: int | None = None, field: str | None = None) -> None:
        self.file, self.row, self.field, self.reason = file, row, field, reason
        where = file if row is None else f"{file}:{row}"
        super().__init__(f"{where}: {field}: {reason}" if field else f"{where}: {reason}")


class SetupError(RlhfError):
    """This machine lacks something the recipe needs (a package, a device, memory); exit code 4."""

    exit_code = 4


class CheckpointError(RlhfError):
    """A checkpoint that is broken, or belongs to another run; exit code 1."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, for a message of ours; its class where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
