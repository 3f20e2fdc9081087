"""Prompts and tokenization against what transformers renders, and the paper's template letter by letter."""

from __future__ import annotations

import pytest

from gakd.data import DataError, Row, encode, render
from gakd.data.formats import row_from
from gakd.data.rows import record_of
from tests import tiny

ROWS = [Row("Add", "1 2", ("3", "three"), where="f:1"), Row("Say hi", "", ("Hello there",), where="f:2")]


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


def test_chat_prompts_end_where_the_response_begins_and_thinking_is_off(words):
    assert render(ROWS[0], words) == (
        "<|im_start|>user\nAdd\n\n1 2<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    history = Row("Add", "", ("3",), ({"role": "system", "content": "Be brief."},))
    assert render(history, words).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAdd")


def test_alpaca_prompts_are_the_papers(words):
    assert render(ROWS[0], words, "alpaca") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n"
    )
    assert render(ROWS[1], words, "alpaca") == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay hi\n\n### Response:\n"
    )


@pytest.mark.parametrize("template", ["chat", "alpaca", "none"])
def test_ids_are_prompt_then_first_response_then_the_end_of_the_turn(words, template):
    end = "<|im_end|>\n" if template == "chat" else "<|im_end|>"
    for row, example in zip(ROWS, encode(ROWS, words, template), strict=True):
        assert words.decode(example.prompt_ids) == render(row, words, template)
        assert words.decode(example.response_ids) == row.responses[0] + end
        assert example.length == len(example.prompt_ids) + len(example.response_ids)
        assert example.row is row


def test_a_response_that_was_cut_where_it_was_written_does_not_end(words):
    rows = [row_from({"instruction": "Say hi", "output": "Hel", "finished": flag}, "f:1") for flag in (False, True)]
    cut, whole = encode(rows, words)
    assert words.decode(whole.response_ids) == "Hel<|im_end|>\n"
    assert words.decode(cut.response_ids) == "Hel"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hel"}]
    assert not row_from({"messages": turns, "finished": False}, "f:2").finished
    with pytest.raises(DataError, match=r"f:3: finished says whether .* true or false, got 'no'"):
        row_from({"instruction": "a", "output": "b", "finished": "no"}, "f:3")


def test_special_tokens_in_the_prompt_are_single_ids(words):
    ids = encode(ROWS, words)[0].prompt_ids
    assert ids[0] == words.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(words.eos_token_id) == 1


def test_a_control_token_spelled_out_in_a_response_does_not_end_it(words):
    (example,) = encode([Row("Quote it", "", ("before <|im_end|> after",))], words)
    assert example.response_ids.count(words.eos_token_id) == 1
    assert words.decode(example.response_ids) == "before <|im_end|> after<|im_end|>\n"


def test_long_responses_are_cut_and_then_do_not_end(words):
    prompt = len(encode(ROWS, words)[1].prompt_ids)
    (example,) = encode(ROWS[1:], words, max_length=prompt + 4, max_prompt_length=prompt)
    assert words.decode(example.response_ids) == "Hell"
    (fits,) = encode(ROWS[1:], words, max_length=prompt + 13, max_prompt_length=prompt)
    assert words.decode(fits.response_ids) == "Hello there<|im_end|>\n"


def test_long_prompts_are_left_out_and_counted(words):
    rows = [*ROWS, Row("x" * 300, "", ("y",), where="f:3")]
    with pytest.warns(
        UserWarning, match=r"left out 1 of 3 rows whose prompt is longer than 200 tokens, the first at 'f:3'"
    ):
        assert len(encode(rows, words, max_prompt_length=200)) == 2
    with pytest.raises(DataError, match="none is left; raise --max-prompt-length"):
        encode(rows[2:], words, max_prompt_length=200)


def test_impossible_settings_say_what_to_do(words):
    with pytest.raises(DataError, match="max_prompt_length 256 leaves no room for a response in max_length 256"):
        encode(ROWS, words, max_length=256, max_prompt_length=256)
    bare = tiny.tokenizer()
    bare.chat_template = None
    with pytest.raises(DataError, match="no chat template: use --template alpaca"):
        encode(ROWS, bare)
    conversation = Row("Add", "", ("3",), ({"role": "system", "content": "Be brief."},), "f:9")
    with pytest.raises(DataError, match="f:9: the alpaca template holds one instruction"):
        encode([conversation], words, "alpaca")


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Say hi", "input": "", "output": "Hi"},
        {"instruction": "Say hi", "input": "to me", "output": ["Hi", "Hello"], "finished": False},
        {
            "messages": [
                {"role": "system", "content": "Answer in French."}, {"role": "user", "content": "One?"},
                {"role": "assistant", "content": "Un."}, {"role": "user", "content": "And two?"},
                {"role": "assistant", "content": "Deux."},
            ]
        },
    ],
)  # fmt: skip
def test_a_row_is_written_as_it_was_read(record):
    assert record_of(row_from(record, "f:1")) == record
