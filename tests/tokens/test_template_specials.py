"""Control tokens in users' texts, added tokens, word-start tokenizers: what a renderer must know of its tokenizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlhf.recipe.sections import TemplateSection
from rlhf.tokens.guard import FIRST
from rlhf.tokens.template import Renderer
from tests.tiny import tiny_tokenizer

PLAIN, CHAT = TemplateSection(), TemplateSection(kind="chat")
USER = {"role": "user", "content": "say <|im_end|>"}


def with_added(*names: str) -> Any:
    """The tiny tokenizer with special tokens that stand in no list of its own (`all_special_tokens`)."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    assert not set(names) & set(tokenizer.all_special_tokens)
    return tokenizer


@pytest.fixture(scope="module")
def word_start() -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer: it puts a space before every text it is given."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], vocab_size=90, show_progress=False)
    core.train_from_iterator(["Answer: the\n one \nprobe a b c yes"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def test_an_added_special_token_in_a_text_stays_text() -> None:
    tokenizer = with_added("<tool>")
    renderer = Renderer(tokenizer, PLAIN)
    ids = renderer.prompt_ids("use a <tool> now")
    assert tokenizer.convert_tokens_to_ids("<tool>") not in ids
    assert tokenizer.decode(ids) == "use a <tool> now"
    assert renderer.special_tokens_in_text == 1


def test_the_longer_of_two_control_tokens_is_the_one_in_the_text() -> None:
    renderer = Renderer(with_added("<tool>", "<tool>end"), PLAIN)
    renderer.render_prompt("<tool>end")
    assert renderer._guard("<tool>end") == chr(FIRST + renderer._guarded.tokens.index("<tool>end"))


def test_a_turn_may_end_with_an_added_token() -> None:
    tokenizer = with_added("<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<end>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    segment = Renderer(tokenizer, CHAT).segment({"prompt": "hello", "completion": "I am"})
    assert tokenizer.decode(segment.completion_ids[0]) == "I am<end><|im_end|>"


def test_nothing_of_the_next_turn_is_trained() -> None:
    """This template ends a turn with no token at all, so that nothing would cut off a generation prompt."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    segment = Renderer(tokenizer, CHAT).segment({"prompt": "hello", "completion": "I am"})
    assert tokenizer.decode(segment.completion_ids[0]) == "I am<|im_end|>"


@pytest.mark.parametrize("section", [PLAIN, CHAT], ids=["plain", "chat"])
def test_a_control_token_is_counted_once_where_it_stands(section: TemplateSection) -> None:
    renderer = Renderer(tiny_tokenizer(), section)
    renderer.segment({"prompt": "<|im_end|>", "completions": ["a", "b", "c <|pad|> <|pad|>"], "ranking": [0, 1, 2]})
    assert renderer.special_tokens_in_text == 3


def test_a_control_token_in_messages_is_counted_once() -> None:
    renderer = Renderer(tiny_tokenizer(), CHAT)
    renderer.segment({"prompt": [USER], "completions": ["a", "b"], "ranking": [0, 1]})
    assert renderer.special_tokens_in_text == 1


def test_a_continuation_gains_no_space_and_is_not_counted(word_start: PreTrainedTokenizerFast) -> None:
    renderer = Renderer(word_start, PLAIN)
    assert (
        word_start.decode([*renderer.prompt_ids("Answer: the o"), *renderer.continuation_ids("ne")])
        == "Answer: the one"
    )
    renderer.continuation_ids("a </s>")
    assert renderer.special_tokens_in_text == 0


def test_only_a_word_start_tokenizer_needs_an_anchor(word_start: PreTrainedTokenizerFast) -> None:
    """Without one, the completions that were split go through the tokenizer's batch call."""
    assert Renderer(word_start, PLAIN)._needs_anchor
    assert not Renderer(tiny_tokenizer(), PLAIN)._needs_anchor


def test_the_private_characters_of_a_users_text_stay() -> None:
    renderer = Renderer(tiny_tokenizer(), PLAIN)
    text = "a" + "".join(chr(FIRST + len(renderer._guarded.tokens) + i) for i in range(2)) + "b"
    assert renderer.render_prompt(text) == text
    assert tiny_tokenizer().decode(renderer.prompt_ids(text)) == text


def test_a_tokenizer_that_cannot_split_control_tokens() -> None:
    """Some tokenizers ignore `split_special_tokens`: the first character goes apart, so no control token is found."""

    class Stubborn(PreTrainedTokenizerFast):
        def __call__(self, text: Any, **options: Any) -> Any:
            options.pop("split_special_tokens", None)
            return super().__call__(text, **options)

    plain = tiny_tokenizer()
    tokenizer = Stubborn(tokenizer_object=plain.backend_tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>")
    ids = Renderer(tokenizer, PLAIN).prompt_ids("say <|im_end|> now")
    assert plain.eos_token_id not in ids
    assert plain.decode(ids) == "say <|im_end|> now"


def test_a_prompt_with_a_control_token_begins_like_any_prompt(word_start: PreTrainedTokenizerFast) -> None:
    ids = Renderer(word_start, PLAIN).prompt_ids("the </s>")
    assert ids[: len(begin := word_start("the", add_special_tokens=False)["input_ids"])] == begin
    assert word_start.decode(ids) == "the </s>"


def test_special_tokens_behind_a_text_are_no_part_of_the_front() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    names = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=names
    )
    assert tokenizer.decode(Renderer(tokenizer, PLAIN).prompt_ids("a")) == "<|im_start|>a"


def test_a_turn_without_its_end_is_taken_whole() -> None:
    """This template puts no end after the turn `x`, although it does after others."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['content'] != 'x' %}{{ '<|pad|>' }}{% endif %}{% endfor %}"
    )
    renderer = Renderer(tokenizer, CHAT)
    answers = [tokenizer.decode(s.completion_ids[0]) for s in renderer.batch_segments(
        [{"prompt": "p", "completion": c} for c in ("x", "y")])]  # fmt: skip
    assert answers == ["x<|im_end|>", "y<|pad|><|im_end|>"]


def test_a_token_that_only_begins_turns_does_not_end_a_completion() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    turns = [{"role": role, "content": text} for role, text in (("assistant", "a"), ("user", "b"), ("assistant", "c"))]
    segment = Renderer(tokenizer, CHAT.model_copy(update={"train_on": "all"})).segment(
        {"prompt": [USER], "completion": turns}
    )
    assert tokenizer.decode(segment.completion_ids[0]) == "a<|im_start|>b<|im_start|>c<|im_end|>"
