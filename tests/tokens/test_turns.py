"""Which tokens of a conversation train: an independent check on characters, for six chat templates."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest

from rlhf.errors import DataError
from rlhf.recipe.sections import TemplateSection
from rlhf.tokens.segments import IGNORE_INDEX, Segment, collate, pad
from rlhf.tokens.template import Renderer
from tests.data.support import row
from tests.tiny import tiny_tokenizer
from tests.tokens.chat_templates import CHATML, TEMPLATES

QUESTIONS = ["hello there", "what is a good film?", "좋은 영화?", "1 2 3 </s><|im_end|>"]
ANSWERS = ["I am well, thank you.", "the one that you like", "\n영화였습니다. <|eot_id|>é", "4 5 6"]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def eight(*marks: bool) -> list[dict[str, Any]]:
    """Four questions with their answers."""
    more: list[dict[str, Any]] = [{"train": mark} for mark in marks] or [{}] * 4
    pairs = zip(QUESTIONS, ANSWERS, more, strict=True)
    return [m for q, a, mark in pairs for m in (user(q), said(a, **mark))]


@cache
def tokenizer_of(name: str) -> Any:
    template, bos, eos, others, _, _ = TEMPLATES[name]
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens(
        {"bos_token": bos, "eos_token": eos, "pad_token": eos, "additional_special_tokens": others}
    )
    tokenizer.chat_template = template
    return tokenizer


def segment(name: str, data: dict[str, Any], train_on: str = "last") -> Segment:
    return Renderer(tokenizer_of(name), TemplateSection(kind="chat", train_on=train_on)).segment(data)  # type: ignore[arg-type]


def trained_texts(name: str, one: Segment, which: int = 0) -> list[str]:
    """The trained runs of a completion, decoded; read from the padded labels, as a model gets them."""
    padded = pad(collate([one]), 0)
    runs: list[list[int]] = [[]]
    for label in padded.labels[which].tolist():
        if label != IGNORE_INDEX:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer_of(name).decode(run) for run in runs if run]


def expected(name: str, place: int) -> str:
    """By hand: the answer as the template writes it, and the end of its turn."""
    answer, end = ANSWERS[place], TEMPLATES[name][5]
    answer = answer.strip() if name in ("llama_3", "mistral", "gemma") else answer
    before = " " if name == "mistral" else "<think>\n\n</think>\n\n" if name == "qwen" and place == 3 else ""
    after = {"llama_3": "<|end_of_text|>", "gemma": "<eos>"}.get(name, "") if place == 3 else ""
    return before + answer + end + after


CHOICES = [
    ("last", (), [3]),
    ("all", (), [0, 1, 2, 3]),
    ("marked", (False, True, False, True), [1, 3]),
    ("marked", (True, False, True, False), [0, 2]),
]


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize(("train_on", "marks", "places"), CHOICES)
def test_exactly_the_chosen_turns_train(name: str, train_on: str, marks: Any, places: list[int]) -> None:
    data = row("messages", messages=eight(*marks))
    one = segment(name, data, train_on)
    found = trained_texts(name, one)
    wanted = [expected(name, place) for place in places]
    assert found == wanted
    # All ids together are the template's one rendering: nothing was left out between the turns.
    tokenizer = tokenizer_of(name)
    whole = tokenizer.decode([*one.prompt_ids, *one.completion_ids[0]])
    rendered = tokenizer.apply_chat_template([{k: m[k] for k in ("role", "content")} for m in eight()], tokenize=False)
    if places == [3] or places[-1] == 3:
        wanted_end = TEMPLATES[name][5]
        assert whole.startswith(rendered[: rendered.rindex(wanted_end) + len(wanted_end)])
    header = TEMPLATES[name][4]
    assert tokenizer.decode(one.prompt_ids).endswith(header), "the prompt ends where generation starts"
    assert not any(header in text for text in found)


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_one_turn_trains_alike_by_every_choice(name: str) -> None:
    data = {"prompt": [user("hello")], "completion": [said("I am well")]}
    assert segment(name, data, "all") == segment(name, data, "last") == segment(name, data, "marked")


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_the_sides_of_a_pair_may_differ_in_a_tail_of_turns(name: str) -> None:
    chosen, rejected = eight(), [*eight()[:5], said("no"), *eight()[6:]]
    data = row("preference", chosen=chosen, rejected=rejected)
    assert (len(data["prompt"]), len(data["chosen"])) == (5, 3)
    one = segment(name, data, "all")
    assert trained_texts(name, one, 0) == [expected(name, 2), expected(name, 3)]
    no = (" " if name == "mistral" else "") + "no" + TEMPLATES[name][5]
    assert trained_texts(name, one, 1) == [no, expected(name, 3)]
    last = segment(name, data)
    assert [trained_texts(name, last, side) for side in (0, 1)] == [[expected(name, 3)]] * 2
    assert last.completion_ids == one.completion_ids and last.prompt_ids == one.prompt_ids


CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}]
CALLING = [
    user("1 2"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    said("it is 3"),
    user("thank you"),
    said("good"),
]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("llama_3", '{"name": "add", "parameters": {"a": 1, "b": 2}}<|eot_id|>'),
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}}]</s>'),
        ("qwen", '\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>'),
    ],
)
def test_tool_calls_train_and_tools_and_their_answers_do_not(name: str, call: str) -> None:
    one = segment(name, row("messages", messages=CALLING, tools=TOOLS), "all")
    found = trained_texts(name, one)
    assert found[0] == call
    assert [text.strip().split("<")[0] or text for text in found[1:2]] == ["it is 3"]
    assert len(found) == 3 and found[2].removeprefix("<think>\n\n</think>\n\n").strip().startswith("good")
    whole = tokenizer_of(name).decode([*one.prompt_ids, *one.completion_ids[0]])
    assert '"description": "adds"' in whole


@pytest.mark.parametrize("name", ["chatml", "gemma", "zephyr"])
def test_a_template_without_a_place_for_tools_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="leaves out the tools"):
        segment(name, row("messages", messages=eight(), tools=TOOLS))
    with pytest.raises(DataError, match="leaves out the tool calls"):
        segment(name, row("messages", messages=CALLING), "all")


def test_earlier_thoughts_that_the_template_takes_out_do_not_train() -> None:
    messages = [user("a"), said("<think>\n1 2\n</think>\n\nyes"), user("b"), said("<think>\n3\n</think>\n\nthe film")]
    found = trained_texts("qwen", segment("qwen", row("messages", messages=messages), "all"))
    assert found == ["yes<|im_end|>", "<think>\n3\n</think>\n\nthe film<|im_end|>"]


def test_a_completion_that_did_not_end_has_no_end_and_its_earlier_turns_do() -> None:
    data = row("demonstration", messages=eight(), ended=False)
    assert trained_texts("chatml", segment("chatml", data, "all")) == [
        *(expected("chatml", place) for place in range(3)),
        ANSWERS[3],
    ]


MARKED = CHATML.replace(
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}",
)


def test_generation_marks_of_the_template_agree_or_the_row_is_refused() -> None:
    data = row("messages", messages=eight())
    tokenizer = copy.deepcopy(tokenizer_of("chatml"))
    all_turns = TemplateSection(kind="chat", train_on="all")
    tokenizer.chat_template = MARKED
    assert Renderer(tokenizer, all_turns).segment(data) == segment("chatml", data, "all")
    tokenizer.chat_template = MARKED.replace("m['role'] == 'assistant' %}{% gen", "m['role'] == 'user' %}{% gen")
    with pytest.raises(DataError, match="not what the template's generation marks say"):
        Renderer(tokenizer, all_turns).segment(data)


def test_a_template_that_writes_a_turn_twice_is_refused() -> None:
    tokenizer = copy.deepcopy(tokenizer_of("chatml"))
    tokenizer.chat_template = CHATML.replace("m['content'] + '<|im_end|>", "m['content'] + m['content'] + '<|im_end|>")
    with pytest.raises(DataError, match="a turn cannot be told from the others: message 2 stands 2 times"):
        Renderer(tokenizer, TemplateSection(kind="chat", train_on="all")).segment(row("messages", messages=eight()))


def test_a_row_without_a_marked_turn_is_refused_and_marks_that_do_nothing_are_counted() -> None:
    data = row("messages", messages=eight(False, False, False, False))
    with pytest.raises(DataError, match="no assistant turn is marked to train"):
        segment("chatml", data, "marked")
    renderer = Renderer(tokenizer_of("chatml"), TemplateSection(kind="chat"))
    assert renderer.segment(data) == segment("chatml", row("messages", messages=eight()))
    assert renderer.marks_ignored == 1


def test_ids_are_those_of_one_text_and_of_what_generation_starts_from() -> None:
    """Before every turn stand the ids that generation would start from."""
    renderer = Renderer(tokenizer_of("chatml"), TemplateSection(kind="chat", train_on="all"))
    messages = eight()
    one = renderer.segment(row("messages", messages=messages))
    ids, trained = [*one.prompt_ids, *one.completion_ids[0]], [False] * len(one.prompt_ids) + one.trained(0)
    starts = [i for i in range(1, len(ids)) if trained[i] and not trained[i - 1]]
    assert len(starts) == 4
    for start, place in zip(starts[:2], (1, 3), strict=False):
        assert ids[:start] == renderer.prompt_ids(messages[:place])
