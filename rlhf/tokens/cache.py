"""Where tokenised rows are kept, and the key of each set of them.

The key holds everything that the tokens and the report depend on: the content of every source file, how the recipe reads it, the tokenizer,
the template, the limits, the seed, and the code (this package's and the libraries') that makes tokens of rows. An entry too many in the key
costs a second tokenisation. An entry too few gives a wrong run: TRL's cache of reference log-probabilities has that fault.

The folder is `$RLHF_TOKENS`, else `tokens` in the cache folder (see `rlhf.runs.cache`). `rlhf data cache` lists it and cleans it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as once
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf import __version__
from rlhf.data.sources import identity
from rlhf.errors import DataError
from rlhf.recipe.sections import SourceSection, TemplateSection
from rlhf.runs import cache, manifest
from rlhf.runs.identity import of_file
from rlhf.tokens.store import TokenFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PACKAGES = Path(__file__).parents[1]
LIBRARIES = ("transformers", "tokenizers", "jinja2", "markdownify")  # they turn texts into ids, or HTML into text


def root() -> Path:
    """The folder of all token folders."""
    return Path(os.environ.get("RLHF_TOKENS") or cache.root() / "tokens").expanduser()


def token_folder(
    sources: Sequence[SourceSection],
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSection,
    what: Mapping[str, Any],
    seed: int,
    make: Callable[[Path], None],
) -> TokenFolder:
    """The folder for these rows. If it is not there, `make(empty_folder)` makes it, and what `make` raises is raised.

    If another process is making the folder, this one waits. Raises SetupError when the cache cannot be written, and DataError for a
    file that cannot be read, or that changed while `make` read it: its rows would be kept under the key of the old content.
    """
    contents = _contents(sources)
    key = {
        "version": __version__,
        "code": code_of("data", "tokens"),
        "libraries": versions_of(LIBRARIES),
        "tokenizer": _tokenizer(tokenizer),
        "template": template.model_dump(),
        "seed": seed,
        "what": dict(what),
        "sources": [[source.model_dump(), files] for source, files in zip(sources, contents, strict=True)],
    }

    def make_from_these(folder: Path) -> None:
        make(folder)
        for source, before, now in zip(sources, contents, _contents(sources), strict=True):
            if now != before:
                raise DataError(
                    source.path, "changed while its rows were tokenised; run this again when the file is complete"
                )

    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return TokenFolder(
        cache.folder(name, __version__, make_from_these, parent=root(), variable="RLHF_TOKENS", quiet=True)
    )


@dataclass(frozen=True)
class Entry:
    """One folder of the cache: its size in bytes, when it was made (seconds since 1970), its rows, and their sources."""

    path: Path
    bytes: int
    made: float
    rows: int
    sources: list[str]

    @property
    def about(self) -> str:
        """When it was made, and its sources, on one line."""
        return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(self.made))}  {', '.join(self.sources)}"


def entries(older_than_days: float = 0) -> Iterator[Entry]:
    """The folders of the cache that are older than that, the newest first. A folder that is not whole has 0 rows.

    A folder that a killed process left unfinished is among them. A folder that a running process is making is not.
    """
    folders = [p for p in root().glob("[!.]*") if p.is_dir()]
    folders += [p for p in root().glob(f"{manifest.TEMPORARY}*") if not _is_being_made(p)]
    latest = time.time() - older_than_days * 86400
    for path in sorted((p for p in folders if p.stat().st_mtime <= latest), key=lambda p: -p.stat().st_mtime):
        try:
            report = json.loads((path / "report.json").read_text(encoding="utf-8"))["report"]
        except (OSError, ValueError, KeyError):
            report = {"rows_out": 0, "sources": [{"path": "not whole: the process that made it was stopped"}]}
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        yield Entry(path, size, path.stat().st_mtime, report["rows_out"], [s["path"] for s in report["sources"]])


def clean(older_than_days: float = 0) -> tuple[int, int]:
    """Remove the folders that are older than that. Returns how many folders, and how many bytes."""
    gone = list(entries(older_than_days))
    for entry in gone:
        shutil.rmtree(entry.path)
    return len(gone), sum(entry.bytes for entry in gone)


def _is_being_made(partial: Path) -> bool:
    """Whether a process holds the lock under which this folder is made (see `cache.folder`)."""
    from filelock import FileLock, Timeout

    name = partial.name.removeprefix(manifest.TEMPORARY).rpartition("-")[0]
    try:
        with FileLock(partial.parent / f".{name}.lock", timeout=0):
            return False
    except Timeout:
        return True


def _contents(sources: Sequence[SourceSection]) -> list[list[list[str]]]:
    """The files of each source, each with the hash of its content."""
    return [[_file(path) for path in identity(source)] for source in sources]


def _file(path: Path) -> list[str]:
    """A file's name and the hash of its content. Raises DataError for a file that cannot be read."""
    try:
        return [str(path), of_file(path)]
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}") from error


@once
def versions_of(packages: Sequence[str]) -> dict[str, str | None]:
    """The versions of packages of others; None for one that is not there."""
    versions: dict[str, str | None] = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


@once
def code_of(*packages: str) -> str:
    """A hash of the source of these packages of ours: when that code changes, what it made is made again."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((PACKAGES / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides which ids a tokenizer gives."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    options = {k: repr(v) for k, v in sorted(getattr(tokenizer, "init_kwargs", {}).items())}
    special = [str(token) for token in tokenizer.all_special_tokens]
    about = [type(tokenizer).__name__, whole, tokenizer.chat_template, special, options]
    return hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()
