"""What every test has: a cache of tokenised rows of its own, which goes when the run ends, and time on a busy machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The workers share the cores: how long an example takes says nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session", autouse=True)
def _token_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="rlhf-tokens-") as folder:
        os.environ["RLHF_TOKENS"] = folder
        yield
        del os.environ["RLHF_TOKENS"]
