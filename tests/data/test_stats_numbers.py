"""Percentiles, intervals, effect sizes, scripts and repeats against computations made another way."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.rows import Located
from rlhf.data.stats.chunk import characters, chunks
from rlhf.data.stats.console import _bias
from rlhf.data.stats.lengths import LengthBias, SideLengths
from rlhf.data.stats.numbers import Moments, cohens_d, histogram, percentile, summary, wilson
from rlhf.data.stats.repeats import EXCERPT, SHARED_FROM, Frequent, Repeats, RowNames, leakage, normalised
from rlhf.data.stats.scripts import DOMINANT, scripts_of

WORDS = st.sampled_from(["yes", "no", "Yes", " yes", "maybe", "a\nb", "a b", "ä", "a\u0308"])


def located(rows: list[dict], file: str = "f") -> list[Located]:
    return [Located(file, i, row) for i, row in enumerate(rows, 1)]


def fed(accumulator, rows: list[dict], size: int = 3, file: str = "f"):
    for chunk in chunks(located(rows, file), characters, size):
        accumulator.add(chunk)
    return accumulator


@given(st.lists(st.integers(-50, 300), min_size=1, max_size=200), st.sampled_from([0.05, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_percentiles_are_numpys_nearest_rank(values: list[int], share: float) -> None:
    assert percentile(Counter(values), share) == np.percentile(values, 100 * share, method="inverted_cdf")


@given(st.lists(st.integers(-40, 5000), min_size=1, max_size=200))
def test_a_histogram_holds_every_value_once(values: list[int]) -> None:
    h = histogram(Counter(values))
    assert sum(h["counts"]) == len(values) and len(h["edges"]) == len(h["counts"]) + 1
    assert len(set(np.diff(h["edges"]))) == 1 and (h["edges"][0] >= 0 or 0 in h["edges"] or h["edges"][-1] <= 0)
    inside = [v for v in values if h["edges"][0] <= v < h["edges"][-1]]
    counted, _ = np.histogram(np.clip(values, h["edges"][0], h["edges"][-1] - 1), bins=h["edges"])
    assert counted.tolist() == h["counts"]
    assert len(values) - len(inside) <= 0.01 * len(values)  # the two tails


def test_a_summary_of_nothing_is_none() -> None:
    assert summary(Counter()) is None
    assert wilson(0, 0) is None


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(hits, n)
        assert found is not None and found["value"] == hits / n
        assert found["low"] == pytest.approx(low, abs=5e-5) and found["high"] == pytest.approx(high, abs=5e-5)


@given(st.lists(st.lists(st.floats(0, 10), max_size=9), min_size=1, max_size=5).filter(lambda p: sum(map(len, p)) > 1))
def test_moments_in_parts_are_numpys_of_the_whole(parts: list[list[float]]) -> None:
    moments, whole = Moments(), np.concatenate(parts)
    for part in parts:
        moments.add(np.array(part, dtype=float))
    assert moments.n == len(whole)
    assert moments.mean == pytest.approx(whole.mean())
    assert moments.variance == pytest.approx(whole.var(ddof=1), abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=60))
def test_length_bias_of_pairs_against_a_table(sizes: list[tuple[int, int]]) -> None:
    bias = fed(LengthBias(), [{"prompt": "p", "chosen": "a" * a, "rejected": "b" * b} for a, b in sizes]).report()
    a, b = np.array(sizes).T
    assert (bias["pairs"], bias["ties"]) == (len(sizes), int((a == b).sum()))
    assert bias["baseline_accuracy"] == pytest.approx(np.where(a > b, 1, np.where(a == b, 0.5, 0)).mean())
    assert bias["mean_difference"] == pytest.approx((a - b).mean())
    if (a != b).any():
        assert bias["longer_wins"]["value"] == pytest.approx((a > b)[a != b].mean())
    else:
        assert bias["longer_wins"] is None
    pooled = np.sqrt((np.log(a).var(ddof=1) + np.log(b).var(ddof=1)) / 2)
    if pooled > 1e-6:
        assert bias["cohens_d"] == pytest.approx((np.log(a).mean() - np.log(b).mean()) / pooled)


def test_cohens_d_without_spread() -> None:
    assert cohens_d(Moments(), Moments()) is None


def test_length_bias_of_a_ranking_takes_each_pair_of_different_grade() -> None:
    """Scores 2, 2, 0 of lengths 5, 1, 3: two pairs, one won by the longer; the 3-cycle [1, 2, 0] has three."""
    scored = {"prompt": "p", "completions": ["aaaaa", "b", "ccc"], "scores": [2.0, 2.0, 0.0]}
    bias = fed(LengthBias(), [scored]).report()
    assert (bias["pairs"], bias["longer_wins"]["value"]) == (2, 0.5)
    ranked = {"prompt": "p", "completions": ["a", "bbb", "cc"], "ranking": [1, 2, 0]}
    assert fed(LengthBias(), [ranked]).report()["longer_wins"]["value"] == 1.0


def test_lengths_by_side() -> None:
    rows = [
        {"prompt": "12345", "chosen": "1", "rejected": "123"},
        {
            "prompt": [{"role": "user", "content": "12"}],
            "chosen": [{"role": "assistant", "content": "1234"}],
            "rejected": [{"role": "assistant", "content": "1"}],
        },
        {"prompt": "1234567"},
    ]
    lengths = fed(SideLengths(), rows, size=2)
    report = lengths.report()
    assert {side: d["count"] for side, d in report.items()} == {"prompt": 3, "chosen": 2, "rejected": 2, "row": 3}
    assert (report["prompt"]["max"], report["prompt"]["longest"]) == (7, "f:3")
    assert (report["row"]["max"], report["row"]["longest"]) == (8, "f:1")  # 5 + 3
    over = lengths.over(6)
    assert (over["rows"], over["longest"], over["example"]) == (2, 8, "f:1")
    assert lengths.over(8)["rows"] == 0 and lengths.over(8)["example"] is None


# --- scripts ----------------------------------------------------------------------------------------------------------

FIRST_WORDS = {"LATIN": "Latin", "HANGUL": "Hangul", "CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "CYRILLIC": "Cyrillic",
    "ARABIC": "Arabic", "GREEK": "Greek", "HEBREW": "Hebrew", "THAI": "Thai", "DEVANAGARI": "Devanagari"}  # fmt: skip


@given(st.text(st.sampled_from("abcXYZäßж ДЯαβ한국어가漢字日本ひらカナアءبתאไทนम，。1 2!?’—"), max_size=30))
def test_scripts_against_unicode_names(text: str) -> None:
    """The oracle reads each letter's name, e.g. HANGUL SYLLABLE GA, one by one."""
    letters = [c for c in text if unicodedata.category(c)[0] == "L"]
    counts = Counter(FIRST_WORDS[unicodedata.name(c).split()[0]] for c in letters)
    for name in ("Kana", "Hangul"):
        if counts[name]:
            counts[name] += counts.pop("Han", 0)
    expected = "none"
    if letters:
        most = max(counts.values())
        expected = next(k for k, n in counts.items() if n == most) if most >= DOMINANT * len(letters) else "mixed"
    assert scripts_of(["abc", text, "한글"]) == ["Latin", expected, "Hangul"]


def test_one_kana_or_hangul_letter_makes_japanese_or_korean_of_han() -> None:
    han = "漢字日本漢字日本漢字"
    assert scripts_of([han, han + "ら", han + "가", "ら" + han, "a" + han]) == ["Han", "Kana", "Hangul", "Kana", "Han"]


def test_every_letter_of_the_common_scripts_is_known() -> None:
    for first, last, script in (
        (0xAC00, 0xD7A3, "Hangul"),
        (0x4E00, 0x9FFF, "Han"),
        (0x410, 0x44F, "Cyrillic"),
        (0x41, 0x5A, "Latin"),
    ):
        assert set(scripts_of([chr(c) for c in range(first, last + 1)])) == {script}
    assert scripts_of(["123 ?!", "", "😀", "naïve café", "\ud800"]) == ["none", "none", "none", "Latin", "none"]


# --- repeats ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=25))
def test_repeats_and_contradictions_by_brute_force(triples: list[tuple[str, str, str]]) -> None:
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in triples]
    report = fed(Repeats(), rows).report()
    prompts = Counter(p for p, _, _ in triples)
    assert report["prompts"]["distinct"] == len(prompts)
    assert report["prompts"]["repeats"] == len(rows) - len(prompts)
    assert report["prompts"]["largest"] == max(prompts.values())
    assert report["rows"]["distinct"] == len(set(triples))
    both = {(p, frozenset((c, r))) for p, c, r in triples if c != r and (p, r, c) in triples}
    found = report["contradictory"]
    assert found["pairs"] == len(both)
    assert found["rows"] == sum((p, frozenset((c, r))) in both for p, c, r in triples)
    if both:
        one, other = (triples[int(place.split(":")[1]) - 1] for place in found["example"])
        assert one == (other[0], other[2], other[1])
    if report["rows"]["repeats"]:
        one, other = (triples[int(place.split(":")[1]) - 1] for place in report["rows"]["example"])
        assert one == other and report["rows"]["example"][0] != report["rows"]["example"][1]


@given(st.lists(st.tuples(st.integers(0, 9).map(str), st.sampled_from("ab")), min_size=1, max_size=40))
def test_shared_answers_by_brute_force(pairs: list[tuple[str, str]]) -> None:
    report = fed(Repeats(), [{"prompt": p, "completion": c} for p, c in pairs]).report()["shared_answers"]
    prompts = defaultdict(set)
    for p, c in pairs:
        prompts[c].add(p)
    shared = {c for c, ps in prompts.items() if len(ps) >= SHARED_FROM}
    assert report["completions"] == sum(c in shared for _, c in pairs)
    assert {(m["excerpt"], m["prompts"]) for m in report["most"]} == {(c, len(prompts[c])) for c in shared}
    for most in report["most"]:
        assert pairs[int(most["example"].split(":")[1]) - 1][1] == most["excerpt"]


@given(st.lists(WORDS, min_size=1, max_size=12), st.lists(WORDS, min_size=1, max_size=12))
def test_leakage_by_brute_force(left: list[str], right: list[str]) -> None:
    a = fed(Repeats(), [{"prompt": p} for p in left], file="a")
    b = fed(Repeats(), [{"prompt": p} for p in right], file="b")
    common = {" ".join(unicodedata.normalize("NFC", p).casefold().split()) for p in left} & {
        " ".join(unicodedata.normalize("NFC", p).casefold().split()) for p in right
    }
    report = leakage(a, b)
    leaked = [i for i, p in enumerate(right, 1) if normalised(p) in common]
    assert (report["prompts"], report["rows"]) == (len(common), len(leaked))
    assert [b for _, b in report["examples"]] == [f"b:{i}" for i in leaked[:5]]
    for place, other in report["examples"]:
        assert normalised(left[int(place[2:]) - 1]) == normalised(right[int(other[2:]) - 1])


def test_digits_apart_are_not_digits_together() -> None:
    assert normalised("Add 1 2") != normalised("Add 12") and normalised("2+3") != normalised("2-3")


def test_places_in_runs() -> None:
    rows = [("a", 1), ("a", 2), ("a", 5), ("b", 6), ("b", 7), ("b", 7)]
    places = RowNames()
    for file, row in rows:
        places.add(Located(file, row, {}))
    assert [places[i] for i in range(6)] == [f"{file}:{row}" for file, row in rows]


def test_a_frequent_text_is_kept_however_many_others_pass() -> None:
    frequent = Frequent(size=10)
    for i in range(5000):
        frequent.add(hash(f"other {i}"), f"other {i}")
        if i % 4 == 0:
            frequent.add(1, "x" * 500)
    assert frequent.get(1) == "x" * EXCERPT and frequent.get(2) is None


def test_a_row_leaves_a_few_dozen_bytes() -> None:
    import tracemalloc

    def rows():
        for i in range(20_000):
            yield Located("f", i + 1, {"prompt": f"{i} " * 200, "chosen": f"{i}a" * 200, "rejected": f"{i}b" * 200})

    repeats, lengths = Repeats(), SideLengths()
    tracemalloc.start()
    for chunk in chunks(rows(), characters):
        repeats.add(chunk)
        lengths.add(chunk)
    del chunk
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / 20_000 < 120


def test_one_pair_and_one_tie_are_counted_in_the_singular() -> None:
    bias = {"pairs": 2, "ties": 1, "cohens_d": None, "longer_wins": {"value": 1.0, "low": 0.2, "high": 1.0}}
    _, said = next(_bias(bias, "characters"))
    assert said.endswith("of 1 pair, 1 tie")
