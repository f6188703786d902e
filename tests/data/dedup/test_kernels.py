"""The kernels, one by one, against their definitions in plain Python and NumPy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from rlhf.data.dedup import Texts, chars, jaccard, jit, kernels, normalise, shingles, sketch
from rlhf.data.dedup import similarity as exact
from rlhf.data.dedup.bands import Bands
from tests.data.dedup.oracle import ENGLISH, KOREAN, ODD, near_duplicates

SIGMAS = ["Σ", "ΑΣ", "ΑΣ.", "ΑΣΑ", "Α\u00adΣ\u0301 ", "1Σ", "ΑΣ\u0301Α", "ab ΑΣ", "ΣΣ", "𐐀Σ", "İΣ", "ΑΣ👍"]
TEXTS = [*near_duplicates(60, 0, ODD, 30), *near_duplicates(20, 0, ENGLISH), *near_duplicates(20, 0, KOREAN), *SIGMAS]
ANY = st.text(max_size=60) | st.lists(st.sampled_from([*SIGMAS, "\ud800", "\U0010ffff", "a", "가"])).map("".join)


def codes_of(text: str, max_chars: int) -> np.ndarray:
    texts, codes = Texts.of([text]), np.full(len(text.encode("utf-8", "surrogatepass")) + 1, 77, np.uint32)
    n = kernels.read(texts.data, 0, len(texts.data), max_chars, chars.lower_table(True, True), codes)
    return codes[:n]


@settings(deadline=None)
@given(st.sampled_from(TEXTS) | ANY, st.integers(1, 40))
def test_reading_normalises(text: str, max_chars: int) -> None:
    assert "".join(map(chr, codes_of(text, max_chars))) == normalise(text, max_chars)


def test_every_character_normalises() -> None:
    """All of Unicode, each between two letters."""
    for start in range(0, sys.maxunicode, 0x1000):
        text = "x".join(map(chr, range(start, start + 0x1000)))
        assert "".join(map(chr, codes_of(text, len(text)))) == normalise(text, None)


def test_a_table_too_small_says_so() -> None:
    codes, small = np.zeros(9, np.uint32), chars.lower_table(False, False)
    for text, expected in [("a👍", kernels.WIDER), ("aΣ", kernels.SIGMAS), ("aσ", 2)]:
        data = Texts.of([text]).data
        assert kernels.read(data, 0, len(data), 9, small, codes) == expected


@pytest.mark.parametrize("size", [1, 2, 5, 8, 9, 20])
def test_keys_and_sketches(size: int) -> None:
    bands = Bands(23, 6)
    keys, values, out = np.zeros(500, np.uint64), np.zeros(bands.bins, np.uint32), np.zeros(bands.number, np.uint64)
    by_key: dict[int, str] = {}
    for text in filter(None, (normalise(t, 400) for t in TEXTS)):
        codes = np.array(list(map(ord, text)), np.uint32)
        expected = sketch.sketch(text, size, bands)
        if len(text) < size:
            assert expected == (int(kernels.hash_short(codes, len(codes))), None)
            continue
        n = kernels.keys_of(codes, len(codes), size, keys)
        assert keys[:n].tolist() == sketch.keys(codes.astype(np.uint64), size).tolist()
        for i, key in enumerate(keys[:n].tolist()):
            assert by_key.setdefault(key, text[i : i + size]) == text[i : i + size]
        assert expected.content == int(kernels.hash_all(keys, n))
        kernels.bins_of(keys, n, bands.bins, values)
        kernels.bands_of(values, bands.number, bands.rows, out)
        assert expected.bands is not None and expected.bands.tolist() == out.tolist()


@pytest.mark.parametrize("count", [1, 3, 20, 400])
def test_sketches_estimate_the_similarity(count: int) -> None:
    """Over many pairs the share of equal values is the Jaccard similarity, and it varies no more than for MinHash."""
    rng = np.random.default_rng(count)
    shared = int(count * 0.6)
    estimates = []
    for _ in range(300):
        own, other = rng.integers(0, 2**64, (2, count), np.uint64)
        other[:shared] = own[:shared]
        estimates.append(np.mean(sketch.bins(own, 128) == sketch.bins(other, 128)))
    expected = shared / (2 * count - shared)
    deviation = np.sqrt(expected * (1 - expected) / 128)
    assert abs(np.mean(estimates) - expected) < 5 * deviation / np.sqrt(300) + 1e-9
    assert np.std(estimates) <= 1.15 * deviation


@settings(deadline=None)
@given(st.sampled_from(TEXTS), st.sampled_from(TEXTS), st.integers(0, 30), st.sampled_from([0.01, 0.5, 0.8, 1.0]))
def test_similarity_is_exact_or_below_the_threshold(a: str, b: str, cut: int, threshold: float) -> None:
    b = a[cut:] + b[:cut] if cut % 2 else b
    a, b = normalise(a, 400), normalise(b, 400)
    if min(len(a), len(b)) < 5:
        return
    own, keys, foreign, counted = (
        np.zeros((2, 500), np.uint64),
        np.zeros(500, np.uint64),
        *np.zeros((2, 500), np.uint64),
    )
    heads, foreign_heads = np.zeros((2, 1 << exact.table_bits(500)), np.uint32)
    codes = [np.array(list(map(ord, t)), np.uint32) for t in (a, b)]
    n = kernels.keys_of(codes[0], len(a), 5, own[0][1:])
    distinct = exact.make_set(own[0], n, heads)
    assert distinct == len(shingles(a, 5))
    m = kernels.keys_of(codes[1], len(b), 5, keys)
    marks = counted.astype(np.uint32)
    for mark in (1, 2):
        found = exact.similarity(own[0], n, distinct, heads, marks, mark, keys, m, foreign, foreign_heads, threshold)
        expected = jaccard(shingles(a, 5), shingles(b, 5))
        assert found == (expected if expected >= threshold else -1.0)


def test_the_cache_knows_every_kernel() -> None:
    """Numba itself would not notice a kernel that changed in another file than its caller's."""
    folder = Path(jit.__file__).parent
    assert {p.name for p in folder.glob("*.py") if "@jit\n" in p.read_text()} <= set(jit.KERNELS)


def test_the_cache_moves_when_a_kernel_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = jit._folder()
    monkeypatch.setattr(jit, "KERNELS", jit.KERNELS[:-1])
    assert jit._folder() != before


def test_kernels_compile_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_CACHE", "/proc/nowhere")
    assert jit.jit(lambda x: x + 1)(1) == 2
