"""Train and test apart by a hash: all rows of one prompt on one side, whatever else is in the data. Used by `build`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from rlhf.errors import DataError


def held_out(keys: Sequence[str], share: float, seed: int) -> set[str]:
    """The keys that go to test: those whose hash with the seed falls below `share`.

    A key's side does not depend on the other rows, nor on their order, so that added rows move none; except that
    each side gets at least one key. Raises DataError when there is only one key.
    """
    places = {key: _place(key, seed) for key in keys}
    if len(places) < 2:
        raise DataError("split", f"needs two different prompts at least to have two sides, there is {len(places)}")
    chosen = {key for key, place in places.items() if place < share}
    by_place = sorted(places, key=lambda key: places[key])
    return (chosen or {by_place[0]}) - ({by_place[-1]} if len(chosen) == len(places) else set())


def _place(key: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
