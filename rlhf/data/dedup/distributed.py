"""The `ray` engine: it does what `fast` does, and Ray shares the work among the cores of one or more machines.

    places ─ sketch ─▶ (content, band hashes) ─ group by band hash ─▶ candidate pairs ─ group by later text ─▶ confirmed edges
                                  driver: equal texts collapse to their first                driver: greedy over the edges

The result is exactly that of `fast`: the same kernels make the same sketches, an edge is a pair whose exact similarity reaches the
threshold, and the greedy pass goes over the edges in the same order. The cost is different. `fast` compares a text only with texts
that stay. The workers do not know which texts stay, so they confirm all pairs of a bucket. Equal texts are reduced to their first one
before that, but for thousands of nearly equal texts the work grows with the square of their number. Each node has a copy of the texts
in shared memory, and the driver has about 50 bytes for each text. Use this engine when one core is too slow.

The tasks are plain Ray tasks. Ray Data was tried: its shuffles took a minute to start on two cores, and two shuffles one after the
other stopped for ever.
"""

from __future__ import annotations

import logging
import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.bands import Bands, choose_bands
from rlhf.data.dedup.removals import Removals
from rlhf.data.dedup.texts import Texts
from rlhf.errors import SetupError
from rlhf.recipe.steps import MatchSection

_PER_TASK = 20_000  # texts sketched by one task
_CPUS = 0.25  # of one task: tasks wait for memory more than for the core


def run(texts: Texts, step: MatchSection, order: NDArray[np.int64], reference: int) -> Removals:
    """See `rlhf.data.dedup.dedup`. Raises SetupError if ray or numba is missing. Joins a running cluster, or starts Ray."""
    bands = choose_bands(step.threshold, step.num_perm)
    ray = _ray()
    if not len(texts):
        return Removals.of([])
    given = ray.put(_Given(texts.data, texts.offsets, order, step, bands, reference))
    count, parts = len(texts), max(2, len(texts) // _PER_TASK)

    def task(work: Any, outputs: int) -> Any:
        return ray.remote(num_cpus=_CPUS, num_returns=outputs)(work).remote

    places = [np.arange(at, min(at + _PER_TASK, count)) for at in range(0, count, _PER_TASK)]
    sketched = [task(_sketch, 3)(given, part) for part in places]
    content, short = (np.concatenate(ray.get([s[k] for s in sketched])) for k in (0, 1))
    first = _first_of_each(content, short, texts, step, order, reference)
    chosen = (first == np.arange(count)) & ~short
    shuffled = [
        task(_by_key, parts)(s[2], p[chosen[p]], chosen[p], parts) for s, p in zip(sketched, places, strict=True)
    ]
    paired = [task(_pairs, parts)(reference, parts, *(rows[k] for rows in shuffled)) for k in range(parts)]
    edges = ray.get([task(_confirm, 1)(given, *(rows[k] for rows in paired)) for k in range(parts)])
    witness, jaccard = _greedy(edges, count, reference)
    _inherit(witness, jaccard, first, reference)
    gone = np.flatnonzero(witness >= 0)
    by_text, similarity = np.full(count, -1, np.int64), np.zeros(count)
    by_text[order[gone]], similarity[order[gone]] = order[witness[gone]], jaccard[gone]
    return Removals.confirmed(by_text, similarity)


class _Given(NamedTuple):
    """What every task needs, in shared memory."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    order: NDArray[np.int64]
    step: MatchSection
    bands: Bands
    reference: int


def _ray() -> Any:
    try:
        import numba  # noqa: F401
        import ray
    except ImportError as e:
        raise SetupError(f"engine: ray needs ray and numba ({e}); run: pip install 'rlhf[ray]'") from e
    if not ray.is_initialized():
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray


def _kernels_view(given: _Given) -> Any:
    """What the kernels need, in a worker: the shared arrays themselves, not copies."""
    from rlhf.data.dedup.compiled import given_of

    texts = Texts(given.data, given.offsets)
    return given_of(texts, given.step, given.bands, given.order, given.reference, wide=True, sigma=True)


def _sketch(
    given: _Given, places: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.uint64]]:
    """content [n], short [n] and band hashes [n, bands] (zeros for a short text) of some places."""
    from rlhf.data.dedup.compiled import sketches

    return sketches(_kernels_view(given), places.copy())


def _first_of_each(
    content: NDArray[np.uint64],
    short: NDArray[np.bool_],
    texts: Texts,
    step: MatchSection,
    order: NDArray[np.int64],
    reference: int,
) -> NDArray[np.int64]:
    """For each place, the first place with an equal normalised text. Long reference texts do not count.

    A long text that equals a reference text may match an earlier reference text, so it is compared like any other.
    """
    from rlhf.data.dedup.shingles import normalise

    first = np.arange(len(content))
    counts = np.flatnonzero(short | (first >= reference))
    by_content = counts[np.argsort(content[counts], kind="stable")]
    edges = np.flatnonzero(np.r_[True, np.diff(content[by_content].view(np.int64)) != 0, True])
    for k in np.flatnonzero(np.diff(edges) > 1).tolist():
        seen: dict[str, int] = {}  # the text decides, not its hash
        for place in by_content[edges[k] : edges[k + 1]].tolist():
            first[place] = seen.setdefault(normalise(texts[order[place]], step.max_chars), place)
    return first


def _by_key(
    hashes: NDArray[np.uint64], places: NDArray[np.int64], chosen: NDArray[np.bool_], parts: int
) -> list[NDArray[np.uint64]]:
    """(key, place) [n, 2] of each band of each chosen text, divided into `parts` by key."""
    keys = hashes[chosen]
    rows = np.stack([keys.ravel(), np.repeat(places, keys.shape[1]).astype(np.uint64)], axis=1)
    return _deal(rows, rows[:, 0] % np.uint64(parts), parts)


def _pairs(reference: int, parts: int, *dealt: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """(later, earlier) [n, 2] of all places with the same key, divided by the later one. With references, the earlier one is a reference."""
    rows = np.concatenate(dealt)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    key, place = rows[:, 0], rows[:, 1].astype(np.int64)
    start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]][: len(key)])
    rank = np.arange(len(key)) - np.repeat(start, np.diff(np.r_[start, len(key)]))
    later = np.repeat(np.arange(len(key)), rank)  # each makes pairs with the `rank` places before it in its bucket
    back = np.arange(len(later)) - np.repeat(np.cumsum(rank) - rank, rank) + 1
    pairs = np.stack([place[later], place[later - back]], axis=1)
    if reference:
        pairs = pairs[(pairs[:, 0] >= reference) & (pairs[:, 1] < reference)]
    return _deal(pairs, pairs[:, 0] % parts, parts)


def _deal(rows: NDArray[Any], part: NDArray[Any], parts: int) -> list[NDArray[Any]]:
    return [np.unique(rows[part == k], axis=0) for k in range(parts)]


def _confirm(given: _Given, *dealt: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Edges (later, earlier) [n, 2] in order: the pairs that reach the threshold. And their exact similarity [n]."""
    from rlhf.data.dedup.compiled import similarities

    pairs = np.unique(np.concatenate(dealt), axis=0)
    found = similarities(_kernels_view(given), pairs)
    return pairs[found >= 0], found[found >= 0]


def _greedy(
    edges: list[tuple[NDArray[np.int64], NDArray[np.float64]]], count: int, reference: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """witness [count] (-1: the text stays) and similarity [count]. A witness is the earliest place that stays and has an edge to this one."""
    pairs, found = (np.concatenate([part[k] for part in edges]) for k in (0, 1))
    at = np.lexsort((pairs[:, 1], pairs[:, 0]))
    witness, jaccard = np.full(count, -1, np.int64), np.zeros(count)
    for (later, earlier), similarity in zip(pairs[at].tolist(), found[at].tolist(), strict=True):
        if witness[later] < 0 and (reference or witness[earlier] < 0):
            witness[later], jaccard[later] = earlier, similarity
    return witness, jaccard


def _inherit(
    witness: NDArray[np.int64], jaccard: NDArray[np.float64], first: NDArray[np.int64], reference: int
) -> None:
    """Of equal texts, give each later one the result of the first."""
    later = np.flatnonzero((first != np.arange(len(first))) & (np.arange(len(first)) >= reference))
    same = first[later]
    stays = (witness[same] < 0) & ((reference == 0) | (same < reference))
    witness[later] = np.where(stays, same, witness[same])
    jaccard[later] = np.where(stays, 1.0, jaccard[same])
