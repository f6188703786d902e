"""What of a run goes up to a model hub: the files of its `final/` (or of a folder of `rlhf merge`), found to be whole.

The folder's manifest says what belongs to it and with which content; anything else that lies there stays at home. The model
card alone may have been edited. A folder without one gets a card made of its lineage, for the hub only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import RecipeError
from rlhf.models.card import short_card
from rlhf.models.lineage import ADAPTER, Lineage, read_lineage
from rlhf.models.lineage import NAME as LINEAGE
from rlhf.runs import manifest

CARD = "README.md"


@dataclass(frozen=True)
class Parcel:
    """The files by their names, each a path or its content; and what the sender should know."""

    folder: Path
    files: dict[str, Path | bytes]
    method: str
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in self.files.values())


def pack(run: str, name: str) -> Parcel:
    """The parcel of a run's folder, its `final/` or a merged folder; `name` is the title of a card that has to be made.

    Raises RecipeError for a folder that rlhf did not write, or that is not what rlhf wrote.
    """
    folder = _folder_of(run)
    if not (folder / manifest.NAME).is_file():
        raise RecipeError(f"{folder}: has no {manifest.NAME}, so it is no final/ of a run and no folder of rlhf merge")
    broken = [problem for problem in manifest.problems(folder) if not problem.startswith(f"{CARD} ")]
    if broken:
        raise RecipeError([f"{folder}: {problem}; train or merge again, or put the file back" for problem in broken])
    lineage = read_lineage(folder)
    if lineage is None:
        raise RecipeError(f"{folder}: has no {LINEAGE}, so it is no final/ of a run and no folder of rlhf merge")
    own = set(manifest.names(folder)) | {manifest.NAME}
    files: dict[str, Path | bytes] = {file: folder / file for file in sorted(own - {CARD})}
    adapters = ADAPTER in own
    card = folder / CARD
    files[CARD] = card if card.is_file() else _card(folder, lineage, name, adapters)
    return Parcel(folder, files, lineage.method, tuple(_notes(run, folder, lineage, own | {CARD}, adapters)))


def _card(folder: Path, lineage: Lineage, name: str, adapters: bool) -> bytes:
    scoring = None
    if lineage.method == "reward" and not adapters:
        from rlhf.models.classifier import how_to_score  # it brings transformers along

        scoring = how_to_score(folder)
    return short_card(lineage, name, adapters=adapters, scoring=scoring).encode()


def _folder_of(run: str) -> Path:
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise RecipeError(f"no such folder: {run}")
    if (folder / "final").is_dir():
        return folder / "final"
    if (folder / "status.json").is_file():
        raise RecipeError(f"{run} is a run that has not written its final/ yet")
    return folder


def _notes(run: str, folder: Path, lineage: Lineage, own: set[str], adapters: bool) -> list[str]:
    notes = []
    if adapters and lineage.base.hub_name is None:
        notes.append(
            f"the adapters belong on {lineage.base.name_or_path}, a folder of this machine: others cannot load them. "
            f"Push the whole model instead: rlhf merge {run} -o FOLDER, then rlhf push FOLDER"
        )
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if strangers := sorted(there - own):
        notes.append(f"left out, because rlhf did not write it: {', '.join(strangers)}")
    return notes
