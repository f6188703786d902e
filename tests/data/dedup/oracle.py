"""What the engines are held to: every pair compared with Python sets, and texts that make them work."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlhf.data.dedup import Removal, Texts, jaccard, normalise, shingles
from rlhf.recipe.steps import MatchSection

ENGLISH = "the film was good and the answer is yes but nobody asked about rivers or mountains when we left the old town"
KOREAN = (
    "영화가 정말 재미있었고 배우들의 연기도 훌륭했지만 결말은 조금 아쉬웠다 그래도 다시 보고 싶은 작품이다 추천합니다"
)
ODD = "İstanbul ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ Straße é e\u0301 👍🏽 𝐁𝐎𝐋𝐃 𐐀𐐁 １２３ ⅷ ² ۳ ẞ ǅ ﬁ 한\u1112\u1161\u11ab がか\u3099 中文字 नमस्ते ª"


def brute_force(
    texts: Sequence[str], step: MatchSection, order: Sequence[int] | None = None, reference: int = 0
) -> list[Removal]:
    """Greedy keep-first by the definition: each text against every kept one, in order."""
    clean = [normalise(t, step.max_chars) for t in texts]
    sets = [shingles(t, step.shingle_size) for t in clean]

    def similarity(a: int, b: int) -> float:
        if not sets[a] and not sets[b]:
            return float(clean[a] == clean[b])
        return jaccard(sets[a], sets[b])

    places = list(range(len(texts))) if order is None else list(order)
    kept = [i for i in places if i < reference]
    removed = []
    for i in (i for i in places if i >= reference):
        matches = ((k, s) for k in kept if (s := similarity(i, k)) >= step.threshold)
        if found := next(matches, None):
            removed.append(Removal(i, *found, found[1]))
        elif not reference:
            kept.append(i)
    return sorted(removed)


def near_duplicates(count: int, seed: int, words: str = ENGLISH, length: int = 40) -> list[str]:
    """Random texts of which half are an earlier one with up to four characters changed, so of all degrees of likeness."""
    rng, vocabulary = random.Random(seed), words.split()
    texts: list[str] = []
    for _ in range(count):
        if not texts or rng.random() < 0.5:
            text = list(" ".join(rng.choices(vocabulary, k=length)))
        else:
            text = list(rng.choice(texts))
            for _ in range(rng.randrange(5)):
                text[rng.randrange(len(text))] = rng.choice(words)
        texts.append("".join(text))
    return texts


def check_precision(texts: Texts | Sequence[str], step: MatchSection, removed: Sequence[Removal]) -> None:
    """No witness is removed, and every drop's exact similarity is as stated and reaches the threshold."""
    gone = {r.index for r in removed}
    assert len(gone) == len(removed)
    for r in removed:
        assert r.witness not in gone
        a, b = (normalise(texts[i], step.max_chars) for i in (r.index, r.witness))
        exact = jaccard(shingles(a, step.shingle_size), shingles(b, step.shingle_size))
        assert r.jaccard == r.similarity == exact >= step.threshold
        assert exact < 1 or len(a) >= step.shingle_size or a == b
