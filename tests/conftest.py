"""What every test has: a cache of tokenised rows of its own, which goes when the run ends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _token_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="rlhf-tokens-") as folder:
        os.environ["RLHF_TOKENS"] = folder
        yield
        del os.environ["RLHF_TOKENS"]
