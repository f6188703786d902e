"""What a reward function is called with: told from its parameters, so that a recipe names no column twice.

    prompts, completions, completion_ids, ended    are always there
    any other parameter                            is a column of the rows; one without a default must be there
    a parameter after `*`                          is a setting: its default, or the recipe's `kwargs`
    **columns                                      takes every column

This is TRL's signature, `f(completions, **columns)`; and ours, `f(prompts, completions)`, whose first two may have any names.
`kwargs` may also set a parameter that would else be a column. A run looks at the function itself. `rlhf check` reads the
signature from the file and runs none of it. Imports nothing heavy.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.errors import RecipeError
from rlhf.recipe.callables import definition_of, import_callable
from rlhf.recipe.scorers import GIVEN, ScorerSection

SHIPPED = "rlhf.rewards:"
NOT_COLUMNS = {*GIVEN, "prompt", "completion"}  # what `**columns` does not take: it is there as prompts and completions


@dataclass(frozen=True)
class Arguments:
    """How one function is called. `by_position`: prompts and completions come first, whatever the function calls them."""

    by_position: bool
    given: tuple[str, ...]  # those of `GIVEN` that it takes by name
    needed: tuple[str, ...]  # columns without a default
    optional: tuple[str, ...]  # columns with one
    every: bool
    settings: Mapping[str, Any]

    def columns(self, there: Iterable[str]) -> list[str]:
        """Those of the columns that are there which the function gets."""
        taken = {*self.needed, *self.optional}
        return [name for name in there if name in taken or (self.every and name not in self.settings)]


@dataclass(frozen=True)
class Columns:
    """The columns of the rows that travel with a prompt to the scorers. `needed`: each with who needs it."""

    needed: Mapping[str, str]
    optional: frozenset[str] = frozenset()
    every: bool = False

    def __bool__(self) -> bool:
        return bool(self.needed or self.optional or self.every)

    @property
    def names(self) -> set[str]:
        return {*self.needed, *self.optional}

    def may_be_mapped(self, mapping: Mapping[str, str] | None) -> set[str]:
        """The names that a source's `columns` may give beside its format's."""
        return self.names | (set(mapping or ()) if self.every else set())

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a row's columns that travel."""
        return {k: v for k, v in row.items() if k in self.names or (self.every and k not in NOT_COLUMNS)}

    def as_key(self) -> dict[str, Any]:
        """For the key of a cache: what `of` depends on."""
        return {"names": sorted(self.names), "every": self.every}

    def problem_with(self, there: Iterable[str], place: str) -> str | None:
        """Why rows with the columns `there` do not do, or None. `place` is their source."""
        there = list(dict.fromkeys(there))
        for name, who in self.needed.items():
            if name not in there:
                near = difflib.get_close_matches(name, there, n=1)
                example = near[0] if near else "COLUMN"
                return (
                    f"{who} needs the column {name!r} of the rows, and {place} has none; its columns are "
                    f"{', '.join(there) or 'none'}. Say which it is, columns: {{{name}: {example}}} beside the path, "
                    "or give the parameter a default value"
                )
        return None


NONE = Columns({})


def arguments_of(spec: str, signature: inspect.Signature, kwargs: Mapping[str, Any]) -> Arguments:
    """How a function with this signature is called. Raises RecipeError for `kwargs` that do not fit it."""
    parameters = list(signature.parameters.values())
    every = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    by_name = "completions" in named or (every and not named)
    if not by_name:  # the first two have names of the user's own
        named = dict(list(named.items())[2:])
    free = {name: p for name, p in named.items() if name not in GIVEN}
    for name in kwargs:
        if name in GIVEN or (name not in free and not every):
            near = difflib.get_close_matches(name, free, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its settings are {', '.join(free) or 'none'}"
            raise RecipeError(f"kwargs: {spec} has no setting {name!r}; {hint}")
    missing = [n for n, p in free.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty and n not in kwargs]
    if missing:
        raise RecipeError(f"kwargs: {spec} needs {', '.join(missing)}; write kwargs: {{{missing[0]}: ...}}")
    columns = {name: p for name, p in free.items() if p.kind is not p.KEYWORD_ONLY and name not in kwargs}
    return Arguments(
        by_position=not by_name,
        given=tuple(name for name in GIVEN if name in named or (every and by_name)),
        needed=tuple(name for name, p in columns.items() if p.default is p.empty),
        optional=tuple(name for name, p in columns.items() if p.default is not p.empty),
        every=every,
        settings=dict(kwargs),
    )


def imported_arguments(spec: str, kwargs: Mapping[str, Any]) -> Arguments:
    """How the function is called. Raises RecipeError where it cannot be imported or called so."""
    function = import_callable(spec)
    if inspect.iscoroutinefunction(function):
        raise RecipeError(f"callable: {spec} is async; write a plain function")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in without a signature
        return Arguments(True, (), (), (), False, dict(kwargs))
    arguments = arguments_of(spec, signature, kwargs)
    if spec.startswith(SHIPPED):  # asked about no completions, it looks at its settings
        try:
            function(**{name: [] for name in (*arguments.given, *arguments.needed)}, **arguments.settings)
        except ValueError as error:
            raise RecipeError(f"kwargs: {spec}: {error}") from error
    return arguments


def written_arguments(spec: str, kwargs: Mapping[str, Any]) -> Arguments | None:
    """The same, read from the function's file and not run; None where the text cannot tell. Our own functions are run."""
    if spec.startswith(SHIPPED):
        return imported_arguments(spec, kwargs)
    found = definition_of(spec)
    if found is None or found.decorator_list:
        return None
    return arguments_of(spec, _signature(found.args), kwargs)


def columns_of(
    scorers: Iterable[ScorerSection], arguments: Callable[[str, Mapping[str, Any]], Arguments | None]
) -> Columns:
    """What the scorers ask of the rows; `arguments` is one of the two functions above, and raises what it raises.

    A function whose parameters cannot be told may take every column.
    """
    needed: dict[str, str] = {}
    optional: set[str] = set()
    every = False
    for scorer in scorers:
        needed |= {name: scorer.url or "" for name in scorer.columns if name not in needed}
        if scorer.callable is None:
            continue
        asked = arguments(scorer.callable, scorer.kwargs)
        every |= asked is None or asked.every
        if asked is not None:
            needed |= {name: scorer.callable for name in asked.needed if name not in needed}
            optional |= set(asked.optional)
    return Columns(needed, frozenset(optional - set(needed)), every)


def _signature(written: ast.arguments) -> inspect.Signature:
    """The signature of a function as it is written; a default's value is not computed."""
    positional = [*written.posonlyargs, *written.args]
    defaults = [False] * (len(positional) - len(written.defaults)) + [True] * len(written.defaults)
    P = inspect.Parameter
    kinds = [P.POSITIONAL_ONLY] * len(written.posonlyargs) + [P.POSITIONAL_OR_KEYWORD] * len(written.args)
    found = [
        P(a.arg, kind, default=None if has else P.empty)
        for a, kind, has in zip(positional, kinds, defaults, strict=True)
    ]
    if written.vararg:
        found.append(P(written.vararg.arg, P.VAR_POSITIONAL))
    pairs = zip(written.kwonlyargs, written.kw_defaults, strict=True)
    found += [P(a.arg, P.KEYWORD_ONLY, default=P.empty if value is None else None) for a, value in pairs]
    if written.kwarg:
        found.append(P(written.kwarg.arg, P.VAR_KEYWORD))
    return inspect.Signature(found)
