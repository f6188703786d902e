"""What the models that come as a GGUF have in common: reading the file, and writing a Hugging Face folder in bfloat16.

Under `smollm2` and `gemma3`, which know their architecture's names; nothing else reads GGUF.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import SetupError

if TYPE_CHECKING:
    import numpy as np

CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # token types; 1 is an ordinary token


class Fields:
    """A file's metadata, each value read only when it is asked for: reading all of it takes seconds."""

    def __init__(self, reader: Any) -> None:
        self._fields = reader.fields

    def __getitem__(self, name: str) -> Any:
        return self._fields[name].contents()


def open_gguf(path: Path) -> tuple[Any, Fields]:
    """The package gguf's reader of the file, and the file's metadata. Raises SetupError without that package."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise SetupError("the package gguf is not installed; run: pip install gguf") from error
    reader = GGUFReader(path)
    return reader, Fields(reader)


def write_weights(tensors: Iterable[tuple[str, np.ndarray]], path: Path) -> None:
    """Float32 arrays as bfloat16 safetensors, by name; one array at a time is held in float32."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    state = {name: torch.from_numpy(np.array(array)).to(torch.bfloat16).contiguous() for name, array in tensors}
    save_file(state, path, metadata={"format": "pt"})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A value as a small JSON file, to be read by people too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
