"""The `ray` engine: with local workers, the removals of `fast` in every number; and its parts by themselves."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from rlhf.data.dedup import Texts, dedup, distributed
from rlhf.errors import SetupError
from rlhf.recipe.steps import MatchSection
from tests.data.dedup.oracle import ENGLISH, KOREAN, ODD, near_duplicates

RAY, FAST = MatchSection(engine="ray"), MatchSection(engine="fast")
TEXTS = [
    *("ab", "AB!", "a"),
    *near_duplicates(150, 0, ENGLISH),
    *near_duplicates(150, 1, KOREAN),
    *near_duplicates(150, 2, ODD, 12),
    *("a", "ab", "", "..."),
]
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
        yield
        ray.shutdown()


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize("reference", [0, 120])
def test_the_removals_of_fast(cluster: None, reference: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_PER_TASK", 100)  # five tasks of each kind
    texts = Texts.of(TEXTS)
    removed = list(dedup(texts, RAY, reference=reference))
    assert removed == list(dedup(texts, FAST, reference=reference))
    assert sum(r.jaccard < 1 for r in removed) > 10
    order = np.random.default_rng(0).permutation(len(texts))
    expected = list(dedup(texts, FAST, order=order, reference=reference))
    assert list(dedup(texts, RAY, order=order, reference=reference)) == expected


@pytest.mark.slow
@needs_ray
def test_nothing_to_compare(cluster: None) -> None:
    for texts in ([], ["a", "b", "c"], ["a first text", "and quite another"]):
        assert not len(dedup(Texts.of(texts), RAY))


def test_pairs_of_a_bucket() -> None:
    rows = np.array([[7, 4], [5, 1], [7, 2], [5, 3], [7, 0], [9, 5]], np.uint64)
    even, odd = distributed._pairs(0, 2, rows[:3], rows[3:])
    assert even.tolist() == [[2, 0], [4, 0], [4, 2]] and odd.tolist() == [[3, 1]]
    even, odd = distributed._pairs(2, 2, rows)
    assert even.tolist() == [[2, 0], [4, 0]] and odd.tolist() == [[3, 1]]
    assert [p.tolist() for p in distributed._pairs(0, 2, rows[:0])] == [[], []]


def test_greedy_over_edges() -> None:
    """1 goes for 0; 2 is like 1 alone, which has gone, so it stays; 3 goes for 2, the earliest that stays."""
    edges = [
        (np.array([[3, 2], [1, 0]]), np.array([0.9, 0.8])),
        (np.array([[2, 1], [3, 1]]), np.array([0.85, 0.95])),
    ]
    witness, jaccard = distributed._greedy(edges, 5, 0)
    assert witness.tolist() == [-1, 0, -1, 2, -1]
    assert jaccard.tolist() == [0, 0.8, 0, 0.9, 0]


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SetupError, match=r"engine: ray needs ray and numba .*pip install 'rlhf\[ray\]'"):
        dedup(["a", "b"], RAY)
