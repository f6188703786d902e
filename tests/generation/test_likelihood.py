"""Last lines by likelihood: scores against plain full forwards in float64, the form of guided decoding, draws, limits, tokens."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.errors import RecipeError
from rlhf.generation.engine import Completion
from rlhf.generation.engines import likelihood, open_engine
from rlhf.generation.engines.likelihood import LastLines, drawn, free_lines, log_likelihoods
from rlhf.generation.engines.sampling import last_line_pattern
from rlhf.generation.engines.transformers_text import TransformersText
from rlhf.generation.text_engine import Answer, OneLine, Request
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.synthesis import TextSampling, TransformersSection
from rlhf.tokens.segments import Segment
from tests.tiny import tiny_tokenizer

VERDICTS = ["Verdict: A", "Verdict: B", "Verdict: tie"]
PROMPTS = ["The film was", "I", "What is a good film?\n", "무엇을 도와드릴까요?", "yes", "Q 7", "good " * 20]
LONGEST = max(len(tiny_tokenizer()(choice).input_ids) for choice in VERDICTS)
GREEDY = TextSampling(temperature=0, max_new_tokens=40)
ONCE = TextSampling(temperature=1.0, max_new_tokens=40)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[TransformersText]:
    """In float64, in which all that follows is exact."""
    section = TransformersSection(engine="transformers", model=ModelSection(name_or_path=str(model)), chat="plain")
    opened = open_engine(section, name="judge")
    assert isinstance(opened, TransformersText)
    opened._engine.policy.double()
    yield opened


def ask(
    engine: TransformersText, prompts: list[Any], sampling: TextSampling, choices: list[str], seed: int = 0
) -> dict[str, Answer]:
    asked = engine.answers([Request(str(p), p) for p in prompts], sampling, seed=seed, choices=choices)
    return {request.key: answer for request, answer in asked}


class Oracle:
    """log P(choice | prompt, text) by one plain forward pass each, in float64: the ids of all three, one after the other."""

    def __init__(self, model: Path) -> None:
        self.network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)

    @torch.no_grad()
    def __call__(self, prompt: str, text: str, choice: str, temperature: float = 1.0) -> float:
        front, text_ids, tail = (
            tiny_tokenizer()(s, add_special_tokens=False).input_ids for s in (prompt, text, choice)
        )
        ids = [*front, *text_ids, *tail]
        logits = self.network(torch.tensor([ids])).logits[0] / temperature
        steps = range(len(ids) - len(tail) - 1, len(ids) - 1)
        return sum(float(logits[i].log_softmax(-1)[ids[i + 1]]) for i in steps)


@pytest.fixture(scope="module")
def oracle(model: Path) -> Oracle:
    return Oracle(model)


def merging_tokenizer() -> Any:
    """Byte-level BPE that looks at no word boundaries, trained so that a line break and what follows become one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["yes\nVerdict: A", "no\nVerdict: B"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")


def split(text: str) -> tuple[str, str]:
    before, line, last = text.rpartition("\n")
    return before + line, last


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("budget", [1, 60, 4096])
def test_the_scores_equal_plain_forwards(
    engine: TransformersText, oracle: Oracle, segments: bool, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = engine._engine.policy
    assert policy.segments
    monkeypatch.setattr(policy, "segments", segments)
    monkeypatch.setattr(likelihood, "TOKENS", budget)
    ids = lambda text: tiny_tokenizer()(text).input_ids  # noqa: E731
    found = log_likelihoods(policy, [Segment(ids(p), list(map(ids, VERDICTS))) for p in PROMPTS], temperature=0.7)
    expected = [[oracle(p, "", c, 0.7) for c in VERDICTS] for p in PROMPTS]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-5)


def test_the_last_line_is_the_likeliest_after_what_was_written(
    engine: TransformersText, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sampling in (GREEDY, GREEDY.model_copy(update={"num_beams": 3, "n": 2})):
        said = set()
        free = {p: a.texts for p, a in ask_free(engine, sampling).items()}
        answers = ask(engine, PROMPTS, sampling, VERDICTS)
        for prompt, answer in answers.items():
            assert answer.ended == [True] * sampling.n and len(answer.texts) == sampling.n
            for text, first in zip(answer.texts, free[prompt], strict=True):
                before, last = split(text)
                assert before[-1:] == "\n" and first.startswith(before[:-1])
                size = len(
                    tiny_tokenizer()(before).input_ids
                )  # all of it, or what fits: half a character is several tokens
                assert before[:-1] == first.rstrip("\n") or size > sampling.max_new_tokens - LONGEST - 5
                scores = {choice: oracle(prompt, before, choice) for choice in VERDICTS}
                assert last == max(scores, key=scores.__getitem__)
                said.add(last)
        assert len(said) > 1 or sampling.num_beams > 1  # so that a constant could not pass
        with monkeypatch.context() as patch:
            patch.setattr(engine._engine.policy, "segments", False)
            assert ask(engine, PROMPTS, sampling, VERDICTS) == answers


def ask_free(engine: TransformersText, sampling: TextSampling) -> dict[str, Answer]:
    """What is written before: the same sampling without choices, with the longest choice and a line break less to write."""
    limit = {"max_new_tokens": sampling.max_new_tokens - LONGEST - 1}
    asked = [Request(p, p) for p in PROMPTS]
    return {r.key: a for r, a in engine.answers(asked, sampling.model_copy(update=limit), seed=0)}


def test_the_tokens_are_those_sampled_and_those_of_the_last_line(engine: TransformersText) -> None:
    sampling = ONCE.model_copy(update={"n": 3})
    free, guided = ask_free(engine, sampling), ask(engine, PROMPTS, sampling, VERDICTS)
    size = {choice: len(tiny_tokenizer()(choice).input_ids) for choice in VERDICTS}
    for prompt, answer in guided.items():
        last = sum(size[split(text)[1]] for text in answer.texts)
        added = sum(
            not first.startswith(split(text)[0]) for first, text in zip(free[prompt].texts, answer.texts, strict=True)
        )
        assert answer.completion_tokens == free[prompt].completion_tokens + last + added
        assert answer.completion_tokens <= sampling.n * sampling.max_new_tokens
        assert answer.prompt_tokens == free[prompt].prompt_tokens
    greedy = ask(engine, PROMPTS[:1], GREEDY.model_copy(update={"n": 4}), OneLine(VERDICTS))[PROMPTS[0]]
    assert greedy.texts == greedy.texts[:1] * 4 and greedy.completion_tokens == size[greedy.texts[0]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_likelihoods(engine: TransformersText, oracle: Oracle, temperature: float) -> None:
    """4,000 draws a prompt: chi-square with two degrees of freedom, under its 99.9th percentile."""
    sampling = TextSampling(temperature=temperature, n=4000, max_new_tokens=16)
    for prompt, answer in ask(engine, PROMPTS[:3], sampling, OneLine(VERDICTS)).items():
        weights = [math.exp(oracle(prompt, "", choice, temperature)) for choice in VERDICTS]
        counts = Counter(answer.texts)
        expected = [4000 * weight / sum(weights) for weight in weights]
        assert sum((counts[c] - e) ** 2 / e for c, e in zip(VERDICTS, expected, strict=True)) < 13.8
        assert answer.ended == [True] * 4000


def test_each_request_draws_from_a_stream_of_its_own(engine: TransformersText) -> None:
    requests = [Request(f"key {i}", PROMPTS[0]) for i in range(64)]
    sampling = ONCE.model_copy(update={"temperature": 100.0})  # all but even shares
    answers = engine.answers(requests, sampling, seed=0, choices=OneLine(["A", "B"]))
    assert 16 < sum(answer.texts == ["A"] for _, answer in answers) < 48


def test_a_number_picks_its_share() -> None:
    scores = [math.log(w) - 900 for w in (0.2, 0.5, 0.3)]
    assert [drawn(scores, x) for x in (0.0, 0.199, 0.201, 0.699, 0.701, 1 - 2**-53)] == [0, 0, 1, 1, 2, 2]


def test_a_request_draws_the_same_in_any_company(engine: TransformersText) -> None:
    sampling = ONCE.model_copy(update={"n": 3, "batch_size": 6})
    for choices in (VERDICTS, OneLine(VERDICTS)):
        whole = ask(engine, PROMPTS, sampling, choices, seed=3)
        assert ask(engine, PROMPTS[::-1], sampling.model_copy(update={"batch_size": 64}), choices, seed=3) == whole
        assert ask(engine, PROMPTS[2:4], sampling, choices, seed=3) == {p: whole[p] for p in PROMPTS[2:4]}
        assert ask(engine, PROMPTS, sampling, choices, seed=4) != whole


@pytest.mark.parametrize(
    ("text", "before", "last"),
    [
        ("", "", None), ("Because", "Because\n", None), ("Because.\n\n", "Because.\n\n", None), ("\n", "\n", None),
        ("Verdict: B", "", "Verdict: B"), ("a\nVerdict: tie", "a\n", "Verdict: tie"), ("a\nVerdict: A \n", "a\n", "Verdict: A"),
        ("Verdict: A.", "", None), ("a\n\nVerdict: C\nVerdict: B", "a\n\n", None), ("Verd\nVerdict A\nx", "Verd\nVerdict A\nx\n", None),
        ("a\nVerdict: A\nor rather\nVerdict: B", "a\n", "Verdict: A"), (" Verdict: A", " Verdict: A\n", None),
        ("\n" * 30 + "Verdict: A", "\n" * 30, "Verdict: A"), ("\n" * 31 + "Verdict: A", "\n" * 30, None),
    ],
)  # fmt: skip
def test_what_of_a_text_stays(text: str, before: str, last: str | None) -> None:
    assert free_lines(text, VERDICTS) == (before, last)
    for choice in VERDICTS if last is None else [last]:  # the very texts that guided decoding may give
        assert re.fullmatch(last_line_pattern(VERDICTS), before + choice)


def test_the_start_of_a_line_that_was_broken_off_is_not_a_line() -> None:
    assert free_lines("a\nVerd", VERDICTS, ended=False) == ("a\n", None)
    assert free_lines("Verdict: ", VERDICTS, ended=False) == ("", None)
    assert free_lines("a\nVerd", VERDICTS, ended=True) == ("a\nVerd\n", None)
    assert free_lines("a\nbeca", VERDICTS, ended=False) == ("a\nbeca\n", None)


def test_choices_that_begin_differently() -> None:
    assert free_lines("Both.\ntie, I say\nx", ["A+", "tie"]) == ("Both.\n", None)
    assert free_lines("Both.\nA+", ["A+", "tie"]) == ("Both.\n", "A+")


def test_the_limit_holds_the_last_line(engine: TransformersText, oracle: Oracle) -> None:
    for limit in (LONGEST, LONGEST + 1):  # no room for a token and a line break before it: nothing is sampled
        answers = ask(engine, PROMPTS, GREEDY.model_copy(update={"max_new_tokens": limit}), VERDICTS)
        for prompt, answer in answers.items():
            assert answer.texts == [max(VERDICTS, key=lambda choice: oracle(prompt, "", choice))]
    more = ask(engine, PROMPTS, GREEDY.model_copy(update={"max_new_tokens": LONGEST + 2}), VERDICTS)
    assert any("\n" in answer.texts[0] for answer in more.values())
    with pytest.raises(
        RecipeError, match=rf"engine judge: sampling\.max_new_tokens: {LONGEST - 1}, but .* takes {LONGEST} tokens"
    ):
        ask(engine, PROMPTS, GREEDY.model_copy(update={"max_new_tokens": LONGEST - 1}), VERDICTS)
    with pytest.raises(ValueError, match="begins with another"):
        ask(engine, PROMPTS, GREEDY, ["Score: 1", "Score: 10"])


def test_a_prompt_that_is_too_long_is_still_its_own_error(engine: TransformersText) -> None:
    answers = ask(engine, ["good " * 300, "yes"], GREEDY, OneLine(VERDICTS))
    assert "more than the model's 256 positions" in str(answers["good " * 300].error)
    assert answers["yes"].error is None and answers["yes"].texts[0] in VERDICTS


def test_text_that_takes_more_tokens_when_read_again_is_cut_to_the_limit(engine: TransformersText) -> None:
    lines = LastLines(engine._engine.policy, engine._encoder, VERDICTS, GREEDY, 0)
    odd = Completion([7, 7], "yes\n" + "\ufffd" * 100, False)  # two ids here, hundreds as text
    [(_, _, [got])] = lines(iter([(Request("k", "x"), [5, 6])]), lambda asked, *_: ((*one, [odd]) for one in asked))
    before, last = split(got.text)
    assert before.startswith("yes\n\ufffd") and last in VERDICTS
    size = len(tiny_tokenizer()(got.text).input_ids)
    assert GREEDY.max_new_tokens - 10 < size <= GREEDY.max_new_tokens


def test_a_tokenizer_that_merges_over_the_seam_changes_nothing(
    model: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One whose "\\nVerdict: " is a token: the choice's ids still follow those of the text, for all choices alike."""
    merging = merging_tokenizer()
    choices = ["Verdict: A", "Verdict: B"]
    together = merging("yes\nVerdict: A").input_ids
    apart = [merging(text).input_ids for text in ("yes\n", *choices)]
    assert together != apart[0] + apart[1]
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path)
    merging.save_pretrained(tmp_path)
    section = TransformersSection(engine="transformers", model=ModelSection(name_or_path=str(tmp_path)), chat="plain")
    engine = open_engine(section, name="judge")
    assert isinstance(engine, TransformersText)
    seen: list[Segment] = []

    def spy(policy: Any, segments: list[Segment], *, temperature: float) -> list[list[float]]:
        seen.extend(segments)
        return log_likelihoods(policy, segments, temperature=temperature)

    monkeypatch.setattr(likelihood, "log_likelihoods", spy)
    lines = LastLines(engine._engine.policy, engine._encoder, choices, GREEDY, 0)
    said = Completion([9], "yes", True)
    [(_, _, [got])] = lines(iter([(Request("k", "x"), [5, 6])]), lambda asked, *_: ((*one, [said]) for one in asked))
    assert seen == [Segment([5, 6, *apart[0]], apart[1:])]
    assert got.ids == [9, *merging("\n").input_ids, *apart[1 + choices.index(split(got.text)[1])]]
