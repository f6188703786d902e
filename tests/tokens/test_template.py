"""Rows to ids: the boundary between prompt and completion is exact, whatever the tokenizer and the text do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import DataError, RecipeError
from rlhf.recipe.sections import TemplateSection
from rlhf.tokens.template import Renderer
from tests.tiny import tiny_tokenizer

BOS, EOS = 0, 1
PLAIN, CHAT = TemplateSection(kind="plain"), TemplateSection(kind="chat")
USER, ASSISTANT = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "I am well"}

_PIECES = [
    " ",
    "\n",
    "a",
    "the ",
    " good",
    "film",
    "좋",
    "é",
    "Answer: ",
    "{prompt}",
    "<|im_end|>",
    "<|im_start|>",
    "<|pad|>",
]
_texts = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=8).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    prompt=_texts,
    completions=st.lists(_texts, min_size=2, max_size=3),
    kind=st.sampled_from(["plain", "chat"]),
    adds_bos=st.booleans(),
    pad_is_eos=st.booleans(),
)
def test_the_boundary_is_exact(
    prompt: str, completions: list[str], kind: str, adds_bos: bool, pad_is_eos: bool
) -> None:
    tokenizer = tiny_tokenizer(adds_bos=adds_bos, pad_is_eos=pad_is_eos)
    renderer = Renderer(tokenizer, TemplateSection(kind=kind, prompt="Q: {prompt}\n"))  # type: ignore[arg-type]
    ranking = list(range(len(completions)))
    segment = renderer.segment({"prompt": prompt, "completions": completions, "ranking": ranking})
    ids = list(segment.prompt_ids)
    assert ids == renderer.prompt_ids(prompt), "generation is fed what was trained"
    text = tokenizer.decode(ids)
    assert text == "<|im_start|>" * (adds_bos and kind == "plain") + renderer.render_prompt(prompt)
    assert f"Q: {prompt}\n" in text
    for completion, own in zip(completions, segment.completion_ids, strict=True):
        assert tokenizer.decode([*ids, *own]) == f"{text}{completion}<|im_end|>"
        assert own[-1] == EOS and EOS not in own[:-1], "one EOS, at the end; one spelled out in a text is text"
        assert BOS not in own
    expected_bos = {"plain": int(adds_bos), "chat": 2}[kind]
    assert ids.count(BOS) == expected_bos
    assert ids.count(EOS) == (1 if kind == "chat" else 0)


def test_a_clean_boundary_is_tokenised_as_one_text() -> None:
    renderer = Renderer(tiny_tokenizer(), PLAIN)
    segment = renderer.segment({"prompt": "the answer is", "completion": " yes."})
    whole = tiny_tokenizer()("the answer is yes.")["input_ids"]
    assert [*segment.prompt_ids, *segment.completion_ids[0]] == [*whole, EOS]
    assert renderer.boundary_splits == 0


def test_a_token_over_the_boundary_is_split_and_counted() -> None:
    """`Answer: ` and `the`: alone the text would hold one token ` the`."""
    tokenizer, renderer = tiny_tokenizer(), Renderer(tiny_tokenizer(), PLAIN)
    segment = renderer.segment({"prompt": "Answer: ", "completion": "the one"})
    assert renderer.boundary_splits == 1
    assert [*segment.prompt_ids, *segment.completion_ids[0][:-1]] != tokenizer("Answer: the one")["input_ids"]
    assert list(segment.prompt_ids) == tokenizer("Answer: ")["input_ids"]
    assert tokenizer.decode([*segment.prompt_ids, *segment.completion_ids[0]]) == "Answer: the one<|im_end|>"


def test_chat_ends_with_the_end_of_turn_and_no_more() -> None:
    """The template's newline after <|im_end|> is not trained: generation stops before it."""
    tokenizer, renderer = tiny_tokenizer(), Renderer(tiny_tokenizer(), CHAT)
    segment = renderer.segment({"prompt": [USER], "completion": [ASSISTANT]})
    full = tokenizer.apply_chat_template([USER, ASSISTANT], tokenize=False)
    assert tokenizer.decode([*segment.prompt_ids, *segment.completion_ids[0]]) + "\n" == full
    assert renderer.segment({"prompt": "hello", "completion": "I am well"}) == segment, "text is one user message"


def test_add_eos_false() -> None:
    segment = Renderer(tiny_tokenizer(), TemplateSection(add_eos=False)).segment({"prompt": "a", "completion": " b"})
    assert EOS not in segment.completion_ids[0]


def test_a_template_with_control_tokens_of_its_own() -> None:
    section = TemplateSection(prompt="<|im_start|>user\n{prompt}<|im_end|>\n")
    ids = Renderer(tiny_tokenizer(), section).prompt_ids("say <|im_end|>")
    assert (ids.count(BOS), ids.count(EOS)) == (1, 1)


def test_special_tokens_in_text_are_counted() -> None:
    renderer = Renderer(tiny_tokenizer(), CHAT)
    renderer.segment({"prompt": "a <|im_end|>", "chosen": "<|im_start|>b", "rejected": "c"})
    assert renderer.special_tokens_in_text == 2


def test_grades_and_margin() -> None:
    renderer = Renderer(tiny_tokenizer(), PLAIN)
    pair = renderer.segment({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.5})
    assert (list(pair.grades), pair.margin) == ([1, 0], 0.5)
    ranking = renderer.segment({"prompt": "p", "completions": ["a", "b", "c"], "ranking": [2, 0, 1]})
    assert (list(ranking.grades), ranking.margin) == ([1, 0, 2], None)
    scored = renderer.segment({"prompt": "p", "completions": ["a", "b"], "scores": [0.5, -3.0]})
    assert list(scored.grades) == [0.5, -3.0]
    assert list(renderer.segment({"prompt": "p", "completion": "a"}).grades) == []


def test_in_bulk_is_one_by_one() -> None:
    rows = [
        {"prompt": "the film", "completion": " was good"},
        {"prompt": "Answer: ", "chosen": "the one", "rejected": "<|im_end|>"},
        {"prompt": "좋은 <|im_start|>", "completions": ["a", "b", "c"], "ranking": [0, 1, 2]},
    ]
    for section in (PLAIN, CHAT):
        one = Renderer(tiny_tokenizer(adds_bos=True), section)
        bulk = Renderer(tiny_tokenizer(adds_bos=True), section)
        assert bulk.batch_segments(rows) == [one.segment(row) for row in rows]
        assert (bulk.boundary_splits, bulk.special_tokens_in_text) == (one.boundary_splits, one.special_tokens_in_text)
        prompts = [row["prompt"] for row in rows]
        assert bulk.batch_prompt_ids(prompts) == [one.prompt_ids(p) for p in prompts]


def test_a_word_start_tokenizer_does_not_gain_a_space() -> None:
    """A SentencePiece-like tokenizer puts a space before every text it is given, so also before a lone completion."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(["Answer: the\n one \nprobe a b c yes"] * 3, trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], vocab_size=90, show_progress=False))  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    renderer = Renderer(tokenizer, PLAIN)
    segment = renderer.segment({"prompt": "Answer: the o", "completion": "ne yes"})
    assert renderer.boundary_splits == 1
    assert tokenizer.decode([*segment.prompt_ids, *segment.completion_ids[0]]) == "Answer: the one yes</s>"


def test_what_the_template_cannot_take() -> None:
    with pytest.raises(DataError, match="a list of messages needs"):
        Renderer(tiny_tokenizer(), PLAIN).prompt_ids([USER])
    with pytest.raises(DataError, match="nothing to train on"):
        Renderer(tiny_tokenizer(), PLAIN).segment({"prompt": "p"})
    with pytest.raises(RecipeError, match="no chat template"):
        Renderer(tiny_tokenizer(chat=False), CHAT)


def test_auto_is_chat_where_the_rows_are_messages_and_plain_where_they_are_text() -> None:
    for prompt, kind in (([USER], "chat"), ("hello", "plain")):
        renderer = Renderer(tiny_tokenizer(), TemplateSection())
        row = {"prompt": prompt, "completion": [ASSISTANT] if kind == "chat" else "I am well"}
        assert renderer.segment(row) == Renderer(tiny_tokenizer(), TemplateSection(kind=kind)).segment(row)
        assert renderer.kind == kind
    assert Renderer(tiny_tokenizer(chat=False), TemplateSection()).prompt_ids("hello")
    with pytest.raises(
        RecipeError, match=r"the rows are messages, but the tokenizer of this model has no chat template"
    ):
        Renderer(tiny_tokenizer(chat=False), TemplateSection()).prompt_ids([USER])


def test_a_template_that_changes_its_mind_is_refused() -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(DataError, match="differently once it is answered"):
        Renderer(tokenizer, CHAT).segment({"prompt": "p", "completion": "c"})
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    with pytest.raises(DataError, match="refuses these messages: no system"):
        Renderer(tokenizer, CHAT).prompt_ids([{"role": "system", "content": "s"}, USER])


def test_an_end_of_turn_that_is_not_eos_is_followed_by_eos() -> None:
    """A base model's template may end turns with another token; generation stops at EOS, so EOS is learnt after it."""
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.eos_token = "<|pad|>"
    segment = Renderer(tokenizer, CHAT).segment({"prompt": "p", "completion": "c"})
    assert tokenizer.decode(segment.completion_ids[0]) == "c<|im_end|><|pad|>"
