"""Data sets of the Hugging Face hub, `path: owner/name`, through the `datasets` library and its Arrow tables.

Used by `sources`. Only text and numbers are decoded, and no code of the data set runs. Where a name, a configuration, a split or a
connection is wrong, the error says so and says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.data.readers.text_files import accept
from rlhf.data.rows import Located, Quarantine
from rlhf.errors import DataError, SetupError, first_line
from rlhf.recipe.sections import SourceSection

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 4096


def read_hub(source: SourceSection, quarantine: Quarantine) -> Iterator[Located]:
    """The rows of one split (`train` unless the source names one), numbered from 1.

    Raises DataError for a name, configuration or split that does not exist or cannot be reached, and SetupError without `datasets`.
    """
    split = source.split or "train"
    name = f"{source.path}:{split}"
    row = 0
    for batch in hub_batches(source):
        for data in batch.to_pylist():
            row += 1
            if located := accept(name, row, data, quarantine):
                yield located


def hub_batches(source: SourceSection) -> Iterator[pa.RecordBatch]:
    """The split's Arrow batches of at most `BATCH_ROWS` rows."""
    for table in _load(source).with_format("arrow").iter(BATCH_ROWS):
        yield from table.to_batches()


def hub_files(source: SourceSection) -> list[Path]:
    """The local files in which the split's rows lie, once they have been fetched."""
    return [Path(file["filename"]) for file in _load(source).cache_files]


def _load(source: SourceSection) -> Any:
    try:
        import datasets
    except ImportError:
        raise SetupError(
            f"{source.path}: no such file or folder; to look for it on the hub, install the package datasets: "
            "pip install 'rlhf[hub]'"
        ) from None
    from datasets.exceptions import DatasetNotFoundError

    split = source.split or "train"
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(source.path, name=source.config, split=split)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise DataError(source.path, f"{_not_reached(error)} ({first_line(error)})") from error
    except ValueError as error:
        said = first_line(error)
        if "split" in said.lower():
            raise DataError(source.path, f"no split {split!r}: {said}", field="split") from error
        if "config" in said.lower():
            raise DataError(source.path, f"{said}. Say config: NAME", field="config") from error
        raise DataError(source.path, f"{_not_reached(error)} ({said})") from error
    except Exception as error:  # anything that the library or its transport raises is about this data set
        raise DataError(
            source.path, f"the hub's data set could not be read: {type(error).__name__}: {first_line(error)}"
        ) from error


def _not_reached(error: Exception) -> str:
    here = "no such file or folder here"
    if _is_offline():
        return f"{here}, not in the hub's local cache, and HF_HUB_OFFLINE=1 forbids the network: unset it, or download the data set first"
    endpoint = os.environ.get("HF_ENDPOINT", "the Hugging Face hub")
    if isinstance(error, ConnectionError):
        return f"{here}, and {endpoint} did not answer: check the connection, or give a local path"
    return f"{here}, and {endpoint} has no data set of this name that can be read without a token: check the spelling (owner/name), or set HF_TOKEN"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
