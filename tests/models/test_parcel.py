"""What goes up to a hub: whole folders of ours, and nothing else that lies in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.errors import RecipeError
from rlhf.models.lineage import Base, Lineage
from rlhf.models.parcel import pack
from rlhf.runs.manifest import atomic_folder


@pytest.fixture
def sealed(tmp_path: Path) -> Callable[..., Path]:
    """`run/final` with adapters, or a whole model in `merged`."""

    def make(base: str = "owner/base", identity: str = "owner/base@abc", *, adapters: bool = True) -> Path:
        with atomic_folder(tmp_path / ("run/final" if adapters else "merged")) as folder:
            (folder / ("adapter_model.safetensors" if adapters else "model.safetensors")).write_bytes(b"weights")
            if adapters:
                (folder / "README.md").write_text("# the run's own\n")
            template = {"kind": "plain", "prompt": "{prompt}"}
            Lineage("dpo", Base(base, identity, "float32", None), (), template, "", 1, 1, "0.1.0").write(folder)
        return tmp_path / ("run/final" if adapters else "merged")

    return make


def test_a_run_its_final_and_a_merged_folder(sealed: Callable[..., Path]) -> None:
    final = sealed()
    parcel = pack(str(final.parent), "it")
    assert parcel == pack(str(final), "it")
    assert parcel.files == {file.name: file for file in final.iterdir()} and parcel.notes == ()
    assert parcel.bytes == sum(file.stat().st_size for file in final.iterdir())
    merged = sealed(adapters=False)
    files = pack(str(merged), "it").files
    assert set(files) == {"model.safetensors", "lineage.json", "manifest.json", "README.md"}
    card = files["README.md"]
    assert isinstance(card, bytes) and b"base_model: owner/base\n" in card and b"# it\n" in card
    assert not (merged / "README.md").exists(), "the folder stays as it is"


def test_a_local_base_is_warned_of_where_it_is_needed(sealed: Callable[..., Path]) -> None:
    final = sealed("models/base", "0123")
    (note,) = pack(str(final), "it").notes
    assert note.startswith("the adapters belong on models/base, a folder of this machine: others cannot load them.")
    assert f"rlhf merge {final} -o FOLDER" in note
    assert pack(str(sealed("models/base", "0123", adapters=False)), "it").notes == ()


def test_what_rlhf_did_not_write_stays_and_an_edited_card_goes(sealed: Callable[..., Path]) -> None:
    final = sealed()
    (final / "key.txt").write_text("secret")
    (final / "README.md").write_text("# better words\n")
    parcel = pack(str(final), "it")
    assert parcel.notes == ("left out, because rlhf did not write it: key.txt",)
    assert parcel.files["README.md"] == final / "README.md" and "key.txt" not in parcel.files
    (final / "README.md").unlink()
    card = pack(str(final), "it").files["README.md"]
    assert isinstance(card, bytes) and b"LoRA adapters" in card


def test_a_folder_that_is_not_whole_or_not_ours(sealed: Callable[..., Path], tmp_path: Path) -> None:
    final = sealed()
    (final / "adapter_model.safetensors").write_bytes(b"weightz")
    (final / "lineage.json").unlink()
    with pytest.raises(RecipeError) as caught:
        pack(str(final), "it")
    said = "; train or merge again, or put the file back"
    assert sorted(caught.value.problems) == [
        f"{final}: adapter_model.safetensors is damaged: its SHA-256 differs{said}",
        f"{final}: lineage.json is missing{said}",
    ]
    (final / "manifest.json").unlink()
    with pytest.raises(RecipeError, match=r"has no manifest.json, so it is no final/"):
        pack(str(final), "it")
    with atomic_folder(tmp_path / "rows") as folder:
        (folder / "rows.jsonl").write_text("{}\n")
    with pytest.raises(RecipeError, match=r"has no lineage.json, so it is no final/"):
        pack(str(tmp_path / "rows"), "it")
    with pytest.raises(RecipeError, match="no such folder: nowhere"):
        pack("nowhere", "it")
    shutil.rmtree(final)
    (final.parent / "status.json").write_text(json.dumps({"state": "running"}))
    with pytest.raises(RecipeError, match="is a run that has not written its final/ yet"):
        pack(str(final.parent), "it")
