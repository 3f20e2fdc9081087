"""What is taught under templates of the shapes that real families have: what stands behind the prompt, to the turn's end."""

from __future__ import annotations

import json

import pytest

from gakd.data import DataError, Row, collate, encode, end_ids
from gakd.data.examples import Encoder
from gakd.data.formats import row_from
from gakd.data.rendering import special_pattern
from gakd.types import IGNORE_INDEX
from tests.chat_shapes import shapes

SHAPES = shapes()
PLAIN = [name for name, shape in SHAPES.items() if shape.plain]
THINKING = ("qwen3", "qwen35", "qwen3_thinking", "r1")
THOUGHT = "<think>\nadd\n</think>\n\nIt is 4."
ASKED = {"role": "user", "content": "2+2?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}},
    }
]


def taught(name: str, record: dict, **options) -> tuple[str, str]:
    """The prompt's text and the text that is taught, control tokens shown."""
    words = SHAPES[name].tokenizer
    (example,) = encode(
        [row_from(record, "f:1")], words, max_length=2000, max_prompt_length=1500, date="2026-11-27", **options
    )
    return words.decode(example.prompt_ids), words.decode(example.response_ids)


def plain(response: str = "It is 4.") -> dict:
    return {"messages": [ASKED, {"role": "assistant", "content": response}]}


@pytest.mark.parametrize("name", PLAIN)
def test_a_response_is_taught_to_the_end_of_its_turn(name):
    shape = SHAPES[name]
    prompt, text = taught(name, plain())
    assert text == shape.plain
    rendered = shape.tokenizer.apply_chat_template(
        [ASKED], tokenize=False, add_generation_prompt=True, enable_thinking=False, thinking=False
    )
    if "strftime_now" not in shape.tokenizer.chat_template:
        assert prompt == rendered or name == "llama2"  # whose decoding adds spaces; its ids are compared below
        (example,) = encode([row_from(plain(), "f:1")], shape.tokenizer)
        ids = shape.tokenizer.apply_chat_template(
            [ASKED], add_generation_prompt=True, enable_thinking=False, thinking=False
        )
        assert example.prompt_ids == ids["input_ids"]


@pytest.mark.parametrize("name", SHAPES)
def test_generation_stops_at_every_end(name):
    words = SHAPES[name].tokenizer
    assert set(words.convert_ids_to_tokens(end_ids(words))) >= {*SHAPES[name].ends, words.eos_token}
    if name in PLAIN:  # and what is taught ends in one, so that a student learns to stop
        (example,) = encode([row_from(plain(), "f:1")], words)
        assert set(example.response_ids) & set(end_ids(words))


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("form", ["embedded", "field"])
def test_a_thought_is_taught_once_and_closed(name, form):
    answer = {"role": "assistant", "content": "It is 4.", "reasoning_content": "add"}
    record = plain(THOUGHT) if form == "embedded" else {"messages": [ASKED, answer]}
    prompt, text = taught(name, record)
    begun = prompt.rpartition("assistant" if name != "r1" else "Assistant")[2] + text
    assert begun.count("<think>") == begun.count("</think>") == 1
    thought, _, rest = begun.partition("<think>")[2].partition("</think>")
    assert thought.strip() == "add"
    assert rest.strip().startswith("It is 4.")


@pytest.mark.parametrize("name", ["qwen3", "qwen35"])
def test_thinking_may_be_set_for_all(name):
    prompt, text = taught(name, plain(THOUGHT), thinking="off")
    assert "add" not in text
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert text == SHAPES[name].plain
    prompt, text = taught(name, plain(), thinking="on")
    begun = prompt.rpartition("assistant")[2] + text
    assert begun.count("<think>") == begun.count("</think>") == 1
    prompt, text = taught(name, plain() | {"enable_thinking": True})
    assert not prompt.endswith("</think>\n\n")


def test_an_answer_inside_an_open_thought_is_refused_naming_the_row():
    with pytest.raises(
        DataError, match=r"'f:1': the chat template opens a thought in the prompt, and the response closes none"
    ):
        taught("r1", plain())


def test_a_thought_that_no_template_renders_is_refused():
    record = {"messages": [ASKED, {"role": "assistant", "content": "It is 4.", "reasoning_content": "add"}]}
    with pytest.raises(DataError, match=r"'f:1': the chat template leaves the thought of the response out"):
        taught("gemma3", record)
    assert taught("gemma3", record, thinking="off")[1] == SHAPES["gemma3"].plain
    # As a text it is the row's own, and taught.
    assert taught("gemma3", plain(THOUGHT))[1] == THOUGHT + "<end_of_turn>\n"


@pytest.mark.parametrize("name", ["qwen3", "qwen35", "llama32", "gptoss"])
def test_calls_are_taught_and_what_tools_say_is_context(name):
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    prompt, text = taught(name, {"messages": [ASKED, called], "tools": TOOLS})
    assert "adds" in prompt
    assert "add" in text
    assert '"a": 2' in text or '"a":2' in text
    words = SHAPES[name].tokenizer
    assert special_pattern(words).search(text.rpartition("2")[2]), "the call's turn has an end"
    told = [
        ASKED,
        called,
        {"role": "tool", "name": "add", "content": "four!"},
        {"role": "assistant", "content": "It is 4."},
    ]
    prompt, text = taught(name, {"messages": told, "tools": TOOLS})
    assert "four!" in prompt
    assert text == SHAPES[name].plain


@pytest.mark.parametrize(("name", "thought"), [
    ("gemma4", "<|channel>thought\nadd\n<channel|>It is 4.<turn|>\n"), ("kimi", "<think>add</think>It is 4.<|im_end|>"),
])  # fmt: skip
def test_a_thought_is_set_by_the_marks_of_its_template(name, thought):
    answer = {"role": "assistant", "content": "It is 4.", "reasoning_content": "add"}
    assert taught(name, plain(THOUGHT))[1] == taught(name, {"messages": [ASKED, answer]})[1] == thought


def test_no_part_of_a_response_is_dropped():
    """By marks, since a part may stand elsewhere in the text: here what the call is called is what the answer says."""
    both = {"role": "assistant", "content": "I add.", "tool_calls": [CALL]}
    with pytest.raises(DataError, match=r"'f:1': the chat template leaves call 1 of the response out"):
        taught("chatml_base", {"messages": [ASKED, both]})
    assert "I add.\n<tool_call>" in taught("qwen3", {"messages": [ASKED, both]})[1]
    twice = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
    assert taught("qwen3", {"messages": [ASKED, twice]})[1].count("<tool_call>") == 2
    with pytest.raises(DataError, match=r"'f:1': the chat template leaves call 2 of the response out"):
        taught("llama32", {"messages": [ASKED, twice]})
    thought = {"role": "assistant", "content": "I add.", "reasoning_content": "add"}
    with pytest.raises(DataError, match=r"'f:1': the chat template leaves the thought of the response out"):
        taught("llama32", {"messages": [ASKED, thought]})


def test_no_part_of_a_prompt_is_dropped():
    with pytest.raises(DataError, match=r"'f:1': the chat template does not show the tool 'add' in the prompt"):
        taught("chatml_base", plain() | {"tools": TOOLS})
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    told = [ASKED, called, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "It is 4."}]
    with pytest.raises(DataError, match=r"'f:1': the chat template leaves 'add' of the assistant out of the prompt"):
        taught("chatml_base", {"messages": told})
    # What developers say is the system's where a template does not know them.
    developer = [{"role": "developer", "content": "Be brief."}, *plain()["messages"]]
    assert "<|im_start|>system\nBe brief." in taught("qwen3", {"messages": developer})[0]


def test_a_call_ends_as_its_template_ends_calls():
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert taught("gptoss", {"messages": [ASKED, called], "tools": TOOLS})[1].endswith("<|call|>")
    assert "<|call|>" in SHAPES["gptoss"].tokenizer.convert_ids_to_tokens(end_ids(SHAPES["gptoss"].tokenizer))


def test_a_closed_prompt_takes_no_second_thought():
    record = plain(THOUGHT) | {"enable_thinking": False}
    with pytest.raises(
        DataError, match=r"'f:1': the prompt ends in a thought that is closed, and the response has another"
    ):
        taught("qwen3", record)


def test_a_thinking_template_may_be_taught_to_think_nothing():
    prompt, text = taught("r1", plain(), thinking="off")
    assert prompt.endswith("<think>\n")
    assert text == "\n</think>\n\nIt is 4." + SHAPES["r1"].ends[0]


def test_a_template_that_has_no_calls_refuses_them():
    with pytest.raises(DataError, match=r"'f:1': the chat template"):
        taught("gemma3", {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]})


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("gemma3", "llama2")])
def test_system_prompts_are_rendered_from_wherever_they_stand(name):
    records = [
        {"prompt": "2+2?", "response": "It is 4.", "system": "Be brief."},
        {"instruction": "2+2?", "output": "It is 4.", "system": "Be brief."},
        {
            "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "It is 4."}],
            "system": "Be brief.",
        },
        {"messages": json.dumps([{"role": "system", "content": "Be brief."}, *plain()["messages"]])},
    ]
    assert len({taught(name, record) for record in records}) == 1
    assert "Be brief." in taught(name, records[0])[0]


CONVERSATION = [
    {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Un."}, {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Deux."}, {"role": "user", "content": "Three?"}, {"role": "assistant", "content": "Trois."},
]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_every_turn_of_the_assistant_is_taught_exactly(name):
    """Labels in one sequence or in several: each answer with its end behind its prompt, and nothing of the user."""
    words, shape = SHAPES[name].tokenizer, SHAPES[name]
    (encoded,) = Encoder(words, max_length=3000, max_prompt_length=2000, train_on="all", date="2026-11-27")(
        [row_from({"messages": CONVERSATION}, "f:1")]
    )
    batch = collate(encoded.examples, 0)
    texts = []
    for inputs, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        own, begun = [], None
        for place, label in enumerate([*labels, IGNORE_INDEX]):
            if label != IGNORE_INDEX and begun is None:
                begun = place
            if label == IGNORE_INDEX and begun is not None:
                own.append((words.decode(inputs[: begun + 1]), words.decode(labels[begun:place])))
                begun = None
        texts += own
    assert [text for _, text in texts] == [
        shape.plain.replace("It is 4.", answer) for answer in ("Un.", "Deux.", "Trois.")
    ]
    for (prompt, _), question in zip(texts, ("One?", "Two?", "Three?"), strict=True):
        asked = CONVERSATION[: next(n for n, turn in enumerate(CONVERSATION) if turn["content"] == question) + 1]
        last = Encoder(words, max_length=3000, max_prompt_length=2000, date="2026-11-27", may_be_prompt=True)(
            [row_from({"messages": asked}, "f:1", may_be_prompt=True)]
        )
        if len(encoded.examples) == 3:
            assert prompt == words.decode(last[0].examples[0].prompt_ids)
        assert question in prompt


def test_turns_of_weight_0_are_masked():
    conversation = [dict(turn) for turn in CONVERSATION]
    conversation[3]["weight"] = 0
    words = SHAPES["chatml_base"].tokenizer
    (example,) = encode(
        [row_from({"messages": conversation}, "f:1")], words, max_length=900, max_prompt_length=500, train_on="all"
    )
    assert words.decode(example.labels) == "Un.<|im_end|>\nTrois.<|im_end|>\n"
    assert "Deux." in words.decode(example.response_ids)
    conversation[5]["weight"] = 0  # the last one too: the response is the last that is trained
    (example,) = encode([row_from({"messages": conversation}, "f:1")], words)
    assert words.decode(example.response_ids) == "Un.<|im_end|>\n"
    assert "Two?" not in words.decode(example.prompt_ids)


@pytest.mark.parametrize("name", PLAIN)
def test_a_control_token_spelled_out_ends_nothing(name):
    words = SHAPES[name].tokenizer
    for end in {*SHAPES[name].ends, words.eos_token}:
        (example,) = encode(
            [row_from(plain(f"say {end} twice"), "f:1")], words, max_length=2000, max_prompt_length=1500
        )
        (other,) = encode([row_from(plain("say so twice"), "f:1")], words, max_length=2000, max_prompt_length=1500)
        id_of = words.convert_tokens_to_ids(end)
        assert example.response_ids.count(id_of) == other.response_ids.count(id_of)


@pytest.mark.parametrize("name", PLAIN)
def test_an_unfinished_response_has_no_end(name):
    words = SHAPES[name].tokenizer
    (example,) = encode(
        [row_from(plain() | {"finished": False}, "f:1")], words, max_length=2000, max_prompt_length=1500
    )
    text = words.decode(example.response_ids)
    assert text == SHAPES[name].plain.partition("It is 4.")[0] + "It is 4."


def test_the_date_is_the_runs():
    for name, form in (("llama32", "27 Nov 2026"), ("gptoss", "2026-11-27")):
        assert form in taught(name, plain())[0]


def test_a_template_that_moves_its_prompt_is_refused():
    words = SHAPES["chatml_base"].tokenizer
    words.chat_template = "{{ messages | length }}" + words.chat_template
    try:
        with pytest.raises(
            DataError, match=r"sets a prompt otherwise beside its response.* at character 0 it has '2.* for '1"
        ):
            encode([Row("a", "", ("b",), where="f:1")], words)
    finally:
        words.chat_template = words.chat_template.removeprefix("{{ messages | length }}")


def test_named_templates_and_broken_ones():
    words = SHAPES["chatml_base"].tokenizer
    own = words.chat_template
    try:
        words.chat_template = {"default": own, "tool_use": "{{ raise_exception('tools') }}"}
        assert taught("chatml_base", plain())[1] == SHAPES["chatml_base"].plain
        with pytest.raises(DataError, match=r"'f:1': the chat template refuses this conversation \(tools\)"):
            taught("chatml_base", plain() | {"tools": TOOLS})
        words.chat_template = {"rag": own}
        with pytest.raises(DataError, match="the chat template"):
            taught("chatml_base", plain())
        words.chat_template = "{% for"
        with pytest.raises(DataError, match="the chat template does not compile"):
            taught("chatml_base", plain())
    finally:
        words.chat_template = own
