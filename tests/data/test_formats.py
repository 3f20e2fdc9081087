"""Every format that a record may have, as a table; every refusal with its line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gakd.data.columns import parse_columns, rename
from gakd.data.formats import Untrained, row_from
from gakd.data.rows import DataError, Row, record_of
from gakd.errors import InputError

SYSTEM = {"role": "system", "content": "Be brief."}
USER, ASSISTANT = {"role": "user", "content": "Add 1 2"}, {"role": "assistant", "content": "3"}
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
ARGUMENTS = {"a": 1, "b": None}
CALL = {"type": "function", "function": {"name": "add", "arguments": ARGUMENTS}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
THOUGHT = {**ASSISTANT, "reasoning_content": "1 + 2"}
PLAIN = Row("Add 1 2", "", ("3",))


def sharegpt(*turns: str) -> list[dict[str, str]]:
    return [dict(zip(("from", "value"), turn.split(":", 1), strict=True)) for turn in turns]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "Add", "input": "1 2", "output": "3"}, Row("Add", "1 2", ("3",))),
        ({"instruction": "Add", "context": "1 2", "response": "3"}, Row("Add", "1 2", ("3",))),
        ({"instruction": "Add 1 2", "output": "3", "system": "Be brief."}, PLAIN._replace(history=(SYSTEM,))),
        (
            {"instruction": "Add 1 2", "output": "3", "system": "Be brief.", "history": [["Hi", "Hello"]]},
            PLAIN._replace(history=(SYSTEM, HI, HELLO)),
        ),
        ({"instruction": "Add 1 2", "output": "3", "system": "", "history": [], "tools": ""}, PLAIN),
        ({"instruction": "Add 1 2", "output": "3", "history": '[["Hi", "Hello"]]'}, PLAIN._replace(history=(HI, HELLO))),
        ({"instruction": None, "prompt": "Add 1 2", "response": None, "completion": "3", "messages": None}, PLAIN),
        ({"prompt": "Add 1 2", "completion": "3", "system": "Be brief."}, PLAIN._replace(history=(SYSTEM,))),
        ({"prompt": [USER], "completion": [ASSISTANT]}, PLAIN),
        ({"prompt": [SYSTEM, HI, HELLO, USER], "completion": "3"}, PLAIN._replace(history=(SYSTEM, HI, HELLO))),
        ({"prompt": [USER], "completion": ["3", "three"]}, PLAIN._replace(responses=("3", "three"))),
        ({"prompt": [USER, CALLING, RESULT], "completion": [ASSISTANT]}, PLAIN._replace(between=(CALLING, RESULT))),
        ({"prompt": "Add 1 2", "completion": [THOUGHT]}, PLAIN._replace(answer=THOUGHT)),
        ({"prompt": "Add 1 2", "response": "3", "reasoning": "1 + 2"}, PLAIN._replace(answer=THOUGHT)),
        ({"messages": [USER, ASSISTANT], "label": True, "id": 7}, PLAIN),
        ({"messages": json.dumps([USER, ASSISTANT])}, PLAIN),
        ({"messages": [USER, ASSISTANT], "system": "Be brief."}, PLAIN._replace(history=(SYSTEM,))),
        ({"messages": [SYSTEM, USER, ASSISTANT], "system": "Be brief."}, PLAIN._replace(history=(SYSTEM,))),
        ({"messages": [USER, {**ASSISTANT, "weight": 1, "id": 3, "images": [], "name": None}]}, PLAIN),
        ({"messages": [{**USER, "weight": 0.0}, {**ASSISTANT, "weight": 1.0}]}, PLAIN),
        ({"messages": [USER, ASSISTANT, HI, {**HELLO, "weight": 0}]}, PLAIN),
        (
            {"messages": [HI, {**HELLO, "weight": 0}, USER, ASSISTANT]},
            PLAIN._replace(history=(HI, {**HELLO, "weight": 0})),
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Add "}, {"type": "text", "text": "1 2"}]},
                       ASSISTANT]}, PLAIN),
        ({"messages": [USER, {**ASSISTANT, "thinking": "1 + 2", "reasoning": None}]}, PLAIN._replace(answer=THOUGHT)),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "reasoning_content": "1 + 2"}]},
            PLAIN._replace(responses=("",), answer={**THOUGHT, "content": ""}),
        ),
        ({"messages": [USER, CALLING, RESULT, ASSISTANT]}, PLAIN._replace(between=(CALLING, RESULT))),
        ({"messages": [USER, CALLING]}, PLAIN._replace(responses=("",), answer=CALLING)),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [
                {"function": {"name": "add", "arguments": json.dumps(ARGUMENTS)}, "type": "function"}]}]},
            PLAIN._replace(responses=("",), answer=CALLING),
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": json.dumps([{"name": "add", "arguments": ARGUMENTS}])}]},
            PLAIN._replace(responses=("",), answer=CALLING),
        ),
        (
            {"messages": [USER, {"role": "assistant", "function_call": {"name": "add", "arguments": "no JSON"}}]},
            PLAIN._replace(responses=("",), answer={**CALLING, "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": "no JSON"}}]}),
        ),
        (
            {"messages": [USER, CALLING, {"role": "function", "name": "add", "content": "", "tool_call_id": "7"}, ASSISTANT]},
            PLAIN._replace(between=(CALLING, {"role": "tool", "content": "", "name": "add", "tool_call_id": "7"})),
        ),
        ({"conversations": sharegpt("human:Add 1 2", "gpt:3")}, PLAIN),
        (
            {"conversations": sharegpt("system:Be brief.", "user:Hi", "bing:Hello", "human:Add 1 2", "chatgpt:3")},
            PLAIN._replace(history=(SYSTEM, HI, HELLO)),
        ),
        ({"conversations": sharegpt("human:Add 1 2", "model:3"), "system": "Be brief."}, PLAIN._replace(history=(SYSTEM,))),
        (
            {"conversations": sharegpt("human:Add 1 2", f"function_call:{json.dumps(CALL['function'])}", "observation:3",
                                       "gpt:3")},
            PLAIN._replace(between=(CALLING, RESULT)),
        ),
        ({"conversation": [USER, ASSISTANT]}, PLAIN),
        ({"conversations": [USER, ASSISTANT], "tools": json.dumps([TOOL])}, PLAIN._replace(tools=(TOOL,))),
        ({"messages": [USER, ASSISTANT], "tools": [json.dumps(TOOL)]}, PLAIN._replace(tools=(TOOL,))),
        (
            {"messages": [USER, ASSISTANT], "chat_template_kwargs": {"level": "low"}, "enable_thinking": True},
            PLAIN._replace(template_kwargs={"level": "low", "enable_thinking": True}),
        ),
        ({"messages": [USER, ASSISTANT], "finished": False, "images": [], "chosen": None, "weight": 1},
         PLAIN._replace(finished=False)),
    ],
)  # fmt: skip
def test_formats(record, expected):
    assert row_from(record, "f:1") == expected._replace(where="f:1")
    assert row_from(record_of(expected), "f:1")[1:] == expected._replace(where="f:1")[1:]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([1], "a row is an object, got list; expected one JSON object a line"),
        ({"question": "a"}, "no known format in keys ['question']"),
        ({"instruction": "a"}, "no response in keys ['instruction']; expected output or response"),
        ({"prompt": "a", "response": None}, "the response must be text, got None"),
        ({"prompt": [], "response": "a"}, "the prompt must be a list of at least one message, got []"),
        ({"prompt": ["a"], "response": "a"}, "the instruction must be text, got ['a']"),
        ({"prompt": [USER, ASSISTANT], "response": "a"}, "the prompt must end with a message of the user or of a tool"),
        ({"prompt": "Read", "input": "lost", "response": "a"}, "the prompt does not hold the input beside it, 'lost'"),
        ({"prompt": [USER], "input": "lost", "response": "a"}, "the prompt does not hold the input beside it, 'lost'"),
        ({"prompt": "a", "completion": [USER, ASSISTANT]}, "the response must be text or one message of the assistant"),
        (
            {"instruction": "a", "output": "b", "history": [["a"]]},
            "history must be a list of [question, answer], got ['a']",
        ),
        ({"instruction": "a", "output": "b", "history": "none"}, "history must be a list of [question, answer]"),
        ({"messages": "none"}, "messages must be a list of at least one message, got 'none'"),
        ({"messages": [USER]}, "messages must be a list of at least two messages"),
        (
            {"messages": [USER, ASSISTANT, HI]},
            "a conversation must end with a user's message and the assistant's response",
        ),
        ({"messages": [SYSTEM, ASSISTANT]}, "no user's message is before the response"),
        ({"messages": [USER, SYSTEM, ASSISTANT]}, "a message of the system is behind the last user's"),
        ({"messages": [{"role": "robot", "content": "a"}, ASSISTANT]}, "a message is {role: system, developer, user,"),
        ({"messages": [{"role": [], "content": "a"}, ASSISTANT]}, "a message is {role"),
        ({"messages": [{"role": "user"}, ASSISTANT]}, "a message's content is empty"),
        ({"messages": [{"role": "user", "content": 3}, ASSISTANT]}, "a message's content must be text, got 3"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]},
            "images and audio are not supported",
        ),
        ({"messages": [{**USER, "value": "b"}, ASSISTANT]}, "has both content and value"),
        (
            {"messages": [USER, {**ASSISTANT, "prefix": True}]},
            "a message of the assistant has the key 'prefix', which would",
        ),
        ({"messages": [{**USER, "reasoning": "a"}, ASSISTANT]}, "a message of the user has the key 'reasoning'"),
        ({"messages": [{**USER, "tool_calls": [CALL]}, ASSISTANT]}, "a message of the user has the key 'tool_calls'"),
        ({"messages": [{**USER, "name": "me"}, ASSISTANT]}, "the last user's message has the key 'name'"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "a message's weight must be 0 or 1, got 0.5"),
        ({"messages": [USER, {**ASSISTANT, "weight": True}]}, "a message's weight must be 0 or 1, got True"),
        ({"messages": [{**USER, "weight": 1}, ASSISTANT]}, "a message of the user has weight 1"),
        ({"messages": [USER, {**ASSISTANT, "reasoning": "a", "thinking": "b"}]}, "which differ: keep one of them"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": "no"}]}, "tool_calls must be a list of calls, got 'no'"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [3]}]}, "a call of a tool is {type: function"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "a\0"}}]}]}, "holds a NUL byte"),
        ({"conversations": sharegpt("human:a", "function_call:no JSON")}, "a call of a tool is {type: function"),
        ({"messages": [SYSTEM, USER, ASSISTANT], "system": "Be long."}, "the system prompt beside the messages is not"),
        ({"messages": [USER, ASSISTANT], "tools": {"a": 1}}, "tools must be a list of objects, got {'a': 1}"),
        ({"messages": [USER, ASSISTANT], "tools": ["a"]}, "tools must be a list of objects, got ['a']"),
        ({"messages": [USER, ASSISTANT], "chat_template_kwargs": 3}, "chat_template_kwargs must be an object, got 3"),
        (
            {"messages": [USER, ASSISTANT], "chat_template_kwargs": {"tokenize": 1}},
            "chat_template_kwargs holds 'tokenize'",
        ),
        ({"messages": [USER, ASSISTANT], "enable_thinking": "yes"}, "enable_thinking must be true or false"),
        ({"messages": [USER, ASSISTANT], "images": ["a.png"]}, "the row has images, but text alone is trained on"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "preference pair: --columns response=chosen trains on the chosen",
        ),
        ({"messages": [USER, ASSISTANT], "rejected_response": "c"}, "the row has the key rejected_response"),
        ({"prompt": "a", "response": "b", "weight": 0.5}, "the row has weight 0.5"),
        ({"prompt": "a", "response": "b", "finished": "no"}, "finished says whether the response has its end"),
    ],
)
def test_refusals(record, reason):
    with pytest.raises(DataError) as refused:
        row_from(record, "f:1")
    line = str(refused.value)
    assert line.startswith("f:1: ")
    assert reason in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, {**ASSISTANT, "weight": 0}]},
        {"prompt": [HI, HELLO, USER], "completion": [{**ASSISTANT, "weight": 0}]},
    ],
)
def test_a_conversation_that_no_turn_of_is_trained_can_be_told_apart(record):
    with pytest.raises(Untrained, match=r"f:1: .* weight 0"):
        row_from(record, "f:1")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "Add 1 2"}, Row("Add 1 2")),
        ({"prompt": "Add 1 2", "response": ""}, Row("Add 1 2")),
        ({"instruction": "Add", "input": "1 2"}, Row("Add", "1 2")),
        ({"prompt": [SYSTEM, USER]}, Row("Add 1 2", history=(SYSTEM,))),
        ({"messages": [USER]}, Row("Add 1 2")),
        ({"messages": [HI, HELLO, USER]}, Row("Add 1 2", history=(HI, HELLO))),
        ({"messages": [USER, CALLING, RESULT]}, Row("Add 1 2", between=(CALLING, RESULT))),
        ({"messages": [USER, ASSISTANT]}, PLAIN),
        ({"prompt": "Add 1 2", "response": "3"}, PLAIN),
    ],
)
def test_prompts_alone_are_read_where_they_are_asked_for(record, expected):
    assert row_from(record, "f:1", may_be_prompt=True) == expected._replace(where="f:1")
    if not expected.responses:
        with pytest.raises(DataError):
            row_from(record, "f:1")


def test_nulls_of_a_typed_table_are_absent_keys():
    filled = {**TOOL, "strict": None, "function": {**TOOL["function"], "description": None}}
    call = {"type": "function", "id": None, "function": {"name": "add", "arguments": {"a": 1, "c": None}}}
    record = {
        "messages": [{**USER, "tool_calls": None}, {"role": "assistant", "content": None, "tool_calls": [call]}],
        "tools": [filled], "prompt": None, "finished": None,
    }  # fmt: skip
    row = row_from(record, "f:1", arrow=True)
    assert row.tools == (TOOL,)
    assert row.answer == {**CALLING, "tool_calls": [{**CALL, "function": {"name": "add", "arguments": {"a": 1}}}]}
    assert row_from({**record, "finished": True}, "f:1").tools == (filled,)  # in JSON a null is a value


def test_a_nest_that_is_deeper_than_the_stack_is_one_line():
    nest: Any = "a"
    for _ in range(100_000):
        nest = [nest]
    try:
        for record in ({"messages": [USER, ASSISTANT], "tools": [{"a": nest}]}, {"prompt": nest, "response": "b"}):
            with pytest.raises(DataError, match="f:1: "):
                row_from(record, "f:1")
    finally:
        while isinstance(nest, list):  # the interpreter's own stack must not be asked to free it
            nest = nest[0]


def test_columns():
    assert parse_columns(None) == {}
    assert parse_columns("prompt=question, response=a=b") == {"prompt": "question", "response": "a=b"}
    for text, reason in (
        ("", "expected NAME=KEY"), ("prompt", "expected NAME=KEY"), ("=a", "expected NAME=KEY"),
        ("promt=a", "nothing is read as 'promt'; expected one of instruction, prompt"),
        ("prompt=a,prompt=b", "prompt is named twice"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=reason):
            parse_columns(text)


@pytest.mark.parametrize(
    ("record", "columns", "expected"),
    [
        ({"q": "a", "s": "b", "n": 1}, "prompt=q,response=s", {"prompt": "a", "response": "b", "n": 1}),
        ({"prompt": "p", "response": "r"}, "prompt=response,response=prompt", {"prompt": "r", "response": "p"}),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "response=chosen", {"prompt": "p", "response": "c"}),
        ({"prompt": "p", "output": "o", "gold": "g", "messages": [1]}, "response=gold", {"prompt": "p", "response": "g"}),
        ({"instruction": "i", "problem": "q", "output": "o"}, "prompt=problem", {"prompt": "q", "output": "o"}),
        ([1], "prompt=a", [1]),
    ],
)  # fmt: skip
def test_named_columns_replace_what_is_read_as_the_same(record, columns, expected):
    assert rename(record, parse_columns(columns), "f:1") == expected


def test_a_column_that_is_not_there_lists_those_that_are():
    with pytest.raises(
        DataError, match=r"f:1: no key 'question' to read as prompt, only \['a', 'b'\]; correct --columns"
    ):
        rename({"b": 1, "a": 2}, {"prompt": "question"}, "f:1")
