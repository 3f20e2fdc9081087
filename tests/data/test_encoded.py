"""Examples on disk: as `encode` makes them, whatever the processes; found again by all that made them; counted."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

from gakd.data import Data, DataConfig, DataError, Example, encode, load_data, load_rows, load_split
from gakd.data import encoded as encoded_module
from gakd.data.encoded import Examples, examples_mark, keys_of, lengths_of
from gakd.data.load import encoder_of, load_source, load_summary
from gakd.errors import InputError
from tests import tiny
from tests.chat_shapes import shapes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GAKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def rows(count, **more):
    return [{"instruction": f"q {n}", "output": "w" * (n % 40 + 1)} | more for n in range(count)]


def config(dataset, **more):
    return DataConfig(dataset=dataset, max_length=120, max_prompt_length=80, **more)


def same(one: Example, other: Example) -> bool:
    return one == other and type(one.row.responses) is tuple


def test_examples_are_those_of_encode(tmp_path):
    path, words = write(tmp_path / "rows.jsonl", rows(300)), tiny.tokenizer()
    for split in ("train", "valid", "test"):
        examples = load_split(config(path), words, split)
        expected = encode(load_rows(path, split), words, max_length=120, max_prompt_length=80)
        assert list(examples) == [examples[n] for n in range(len(examples))] == expected
        assert all(map(same, examples, expected))
        assert (
            lengths_of(examples).tolist() == [example.length for example in expected] == lengths_of(expected).tolist()
        )
        assert keys_of(examples) == keys_of(expected) == [example.key for example in expected]
        assert examples_mark(examples) == examples_mark(expected)
        assert list(examples[1:3]) == expected[1:3]
        assert isinstance(examples[:2], Examples)


def test_processes_and_batches_change_nothing(tmp_path, monkeypatch):
    path, words = write(tmp_path / "rows.jsonl", rows(300)), tiny.tokenizer()
    alone = list(load_split(config(path), words, "train"))
    monkeypatch.setenv("GAKD_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(encoded_module, "_ROWS_A_PROCESS", 20)
    monkeypatch.setattr(encoded_module, "_BATCH", 7)
    monkeypatch.setattr(encoded_module, "cores", lambda: 3)
    assert list(load_split(config(path), words, "train")) == alone


def test_rich_rows_come_back_whole(tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    record = {
        "messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "é \U0001f600"}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "4"}, {"role": "assistant", "content": "c", "reasoning_content": "t"},
        ],
        "tools": [{"type": "function", "function": {"name": "add"}}], "chat_template_kwargs": {"x": 1}, "finished": False,
    }  # fmt: skip
    records, words = [record, {"instruction": "a", "output": ["b", "c"]}], shapes()["qwen3"].tokenizer
    path = write(tmp_path / "rows.jsonl", records)
    settings = DataConfig(path, max_length=2000, max_prompt_length=1500)
    summary = load_source(settings, encoder_of(settings, words), path, "train", whole=True)
    assert [example.row for example in summary.examples] == load_rows(path, "train", whole=True)


def test_the_second_start_tokenizes_nothing(tmp_path, monkeypatch):
    path, words = write(tmp_path / "rows.jsonl", rows(60)), tiny.tokenizer()
    before = list(load_split(config(path), words, "train"))

    def never(*_: object) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(encoded_module._Job, "__call__", never)
    assert list(load_split(config(path), words, "train")) == before


@pytest.mark.parametrize(
    "change",
    ["rows", "max_length", "thinking", "template", "train_on", "columns", "eos", "chat_template", "vocabulary", "date"],
)
def test_whatever_makes_other_ids_makes_another_table(tmp_path, change):
    records, words = rows(60, other="o"), tiny.tokenizer()
    if change == "date":
        words.chat_template = "{{ strftime_now('%d') }}" + words.chat_template
    path = write(tmp_path / "rows.jsonl", records)
    settings = config(path, date="2026-11-27")
    before = load_split(settings, words, "train")
    if change == "rows":
        records = rows(60, output="other")
        write(tmp_path / "rows.jsonl", records)
    elif change == "columns":
        settings.columns = "response=other"
    elif change == "eos":
        words.eos_token, settings.template = "<|endoftext|>", "none"
    elif change == "chat_template":
        words.chat_template += " "
    elif change == "vocabulary":
        words.add_tokens(["www"])
    else:
        new = {"max_length": 110, "thinking": "on", "template": "none", "train_on": "all", "date": "2026-11-28"}
        setattr(settings, change, new[change])
    after = load_split(settings, words, "train")
    assert after._table._fingerprint != before._table._fingerprint
    if change not in ("thinking", "train_on", "max_length", "chat_template"):
        assert examples_mark(after) != examples_mark(before)


def test_a_date_that_no_template_sets_makes_no_other_table(tmp_path):
    path, words = write(tmp_path / "rows.jsonl", rows(60)), tiny.tokenizer()
    tables = [
        load_split(config(path, date=date), words, "train")._table._fingerprint for date in ("2026-11-27", "2026-11-28")
    ]
    assert tables[0] == tables[1]


def test_tables_that_nobody_asks_for_are_forgotten(tmp_path, cache):
    path, words = write(tmp_path / "rows.jsonl", rows(60)), tiny.tokenizer()
    load_split(config(path), words, "train")
    (table,) = (cache / "examples").glob("*.arrow")
    old = time.time() - 40 * 24 * 3600
    os.utime(table, (old, old))
    load_split(config(path), words, "train")  # asked for: it stays
    assert table.exists()
    os.utime(table, (old, old))
    load_split(config(path, thinking="on"), words, "train")
    assert not table.exists()


def test_what_is_left_out_is_counted_with_its_reason(tmp_path):
    records = [
        *rows(4), {"instruction": "q", "output": 5}, {"instruction": "x" * 100, "output": "long"}, {"instruction": "only"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
        {"instruction": "cut", "output": "c" * 200},
    ]  # fmt: skip
    path, words = write(tmp_path / "train.jsonl", records), tiny.tokenizer()
    settings = config(path, skip_bad_rows=True)
    with pytest.warns(UserWarning, match="left out") as reported:
        summary = load_source(settings, encoder_of(settings, words), path, "train", whole=True)
    said = [str(one.message) for one in reported]
    assert f"{path}: left out 2 bad rows (1x the response must be text; 1x no response in keys" in said[0]
    assert said[0].endswith(f"the first at {path}:5")
    assert f"left out 1 rows, all turns of which have weight 0, the first at {path}:8" in said[1]
    assert said[2] == f"left out 1 of 6 rows whose prompt is longer than 80 tokens, the first at '{path}:6'"
    assert (summary.rows, summary.kept, summary.cut) == (9, 5, 1)
    assert summary.cut_share == 0.2
    with pytest.raises(DataError, match=r"train\.jsonl:5: the response must be text, got 5\. --skip-bad-rows"):
        load_source(config(path), encoder_of(config(path), words), path, "train", whole=True)


def test_cut_responses_are_said(tmp_path, capsys):
    path, words = write(tmp_path / "rows.jsonl", rows(300, output="c" * 200)), tiny.tokenizer()
    data = load_data(config(path), words)
    said = capsys.readouterr().out
    assert said == (
        f"train: {len(data.train)} of {len(data.train)} responses are cut at 120 tokens (--max-length), and do not end\n"
    )
    assert not any(words.eos_token_id in example.response_ids for example in data.train)
    load_data(config(write(tmp_path / "short.jsonl", rows(300))), words)
    assert capsys.readouterr().out == ""


def test_a_row_that_a_template_refuses_is_a_bad_row(tmp_path):
    words = tiny.tokenizer()
    words.chat_template = (
        "{% if messages[0].content == 'q 3' %}{{ raise_exception('not 3') }}{% endif %}" + words.chat_template
    )
    path = write(tmp_path / "rows.jsonl", rows(6))
    with pytest.raises(DataError, match=r"rows\.jsonl:4': the chat template refuses this conversation \(not 3\)"):
        load_source(config(path), encoder_of(config(path), words), path, "train", whole=True)
    settings = config(path, skip_bad_rows=True)
    with pytest.warns(UserWarning, match=r"left out 1 bad rows .*rows\.jsonl:4"):
        summary = load_source(settings, encoder_of(settings, words), path, "train", whole=True)
    assert [example.row.instruction for example in summary.examples] == ["q 0", "q 1", "q 2", "q 4", "q 5"]


def test_prompts_alone_are_for_recipes_that_write(tmp_path):
    words = tiny.tokenizer()
    path = write(tmp_path / "data" / "train.jsonl", [{"prompt": f"q {n}"} for n in range(300)])
    with pytest.raises(DataError, match=r"train\.jsonl:1: no response in keys"):
        load_data(config(path), words)
    with pytest.raises(DataError, match=r"has prompts alone, and the valid split is what .*--valid-dataset"):
        load_data(config(path), words, prompts_alone=True)
    held_out = write(tmp_path / "held_out.jsonl", rows(10))
    settings = config(path, valid_dataset=held_out, test_dataset=held_out)
    data = load_data(settings, words, prompts_alone=True)
    assert len(data.valid) == 10
    assert words.decode(data.train[0].response_ids) == "<|im_end|>\n"
    with pytest.raises(DataError, match="give --train-on last"):
        load_data(
            config(path, train_on="all", valid_dataset=held_out, test_dataset=held_out), words, prompts_alone=True
        )


def test_a_long_row_costs_no_more_than_its_window(tmp_path):
    """What is thrown away is not tokenized: ten megabytes in a window of 120 tokens."""
    words = tiny.tokenizer()
    seen = []

    def spy(texts, **options):
        seen.extend(len(text) for text in texts)
        return type(words).__call__(words, texts, **options) if texts else {"input_ids": []}

    encoder = encoder_of(config(""), words)
    assert encoder.tokens.apart
    encoder.tokens._ids = lambda texts, **options: spy(list(texts), **options)["input_ids"]  # type: ignore[method-assign]
    from gakd.data import Row

    (encoded,) = encoder([Row("a", "", ("é " * 5_000_000,))])
    assert encoded.cut
    assert encoded.examples[0].length == 120
    assert max(seen) <= 64 * 120
    (spaces,) = encoder([Row("a" * 10_000_000, "", ("b",))])
    assert spaces.examples == []


def test_another_split_to_train_on(tmp_path):
    words = tiny.tokenizer()
    write(tmp_path / "set" / "train_sft.jsonl", rows(200))
    write(tmp_path / "set" / "test_sft.jsonl", rows(10))
    data = load_data(config(str(tmp_path / "set"), train_split="train_sft"), words)
    assert len(data.test) == 10
    assert 180 < len(data.train) < 200
    assert len(data.train) + len(data.valid) == 200
    with pytest.raises(InputError, match=r"no split 'nope'"):
        load_data(config(str(tmp_path / "set"), train_split="nope"), words)


def test_the_first_rows_alone(tmp_path):
    path, words = write(tmp_path / "rows.jsonl", rows(300)), tiny.tokenizer()
    settings = config(path, max_rows=50)
    summary = load_source(settings, encoder_of(settings, words), path, "train", whole=True)
    assert [example.row.instruction for example in summary.examples] == [f"q {n}" for n in range(50)]


def test_all_turns_are_for_training_alone(tmp_path):
    words = tiny.tokenizer()
    words.chat_template = words.chat_template.replace(
        "{% if enable_thinking is defined", "{% if false and enable_thinking is defined"
    )
    turns = [
        [{"role": "user", "content": f"a {n}"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": f"c {n}"},
         {"role": "assistant", "content": "d"}] for n in range(300)
    ]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [{"messages": one} for one in turns])
    data = load_data(DataConfig(path, train_on="all", max_length=300, max_prompt_length=200), words)
    assert {words.decode(example.labels) for example in data.train} == {"b<|im_end|>\nd<|im_end|>\n"}
    assert {words.decode(example.labels) for example in [*data.valid, *data.test]} == {"d<|im_end|>\n"}
    assert np.array_equal(data.train.column("supervised"), [example.supervised for example in data.train])  # type: ignore[attr-defined]


def test_marks_say_what_data_are_known_by(tmp_path):
    path, words = write(tmp_path / "rows.jsonl", rows(300)), tiny.tokenizer()
    data = load_data(config(path), words)
    assert data.marks.keys() == {"train", "valid", "test", "tokenizer", "template", "date", "lengths", "prompts alone"}
    assert Data(list(data.train), data.valid, data.test, 0, data.config, data.encoding).marks == data.marks
    assert load_summary(config(path), encoder_of(config(path), words), "train").kept == len(data.train)


def test_a_row_of_several_examples_counts_once(tmp_path):
    turns = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>x</think>b"}, {"role": "user", "content": "c"},
        {"role": "assistant", "content": "<think>y</think>d"},
    ]  # fmt: skip
    path, words = write(tmp_path / "rows.jsonl", [{"messages": turns}]), shapes()["qwen3"].tokenizer
    settings = config(path, train_on="all")
    summary = load_source(settings, encoder_of(settings, words), path, "train", whole=True)
    assert (summary.rows, summary.kept, len(summary.examples)) == (1, 1, 2)
    assert summary.examples.column("prompt_length").tolist() == [
        len(example.prompt_ids) for example in summary.examples
    ]


def test_prompts_alone_are_left_out_of_what_is_judged(tmp_path):
    words = tiny.tokenizer()
    train = write(tmp_path / "train.jsonl", rows(20))
    mixed = write(tmp_path / "mixed.jsonl", [*rows(3), {"prompt": "only"}])
    settings = config(train, valid_dataset=mixed, test_dataset=mixed)
    summary = load_summary(settings, encoder_of(settings, words, prompts_alone=True), "valid", answered=True)
    assert (summary.kept, summary.left_out) == (3, {"it has no response to compare with": (1, f"{mixed}:4")})


@pytest.mark.parametrize("left", [0, 10, 0.5, 0.99])
def test_a_table_that_lost_its_end_is_made_again(tmp_path, cache, left):
    path, words = write(tmp_path / "rows.jsonl", rows(60)), tiny.tokenizer()
    before = list(load_split(config(path), words, "train"))
    (table,) = (cache / "examples").glob("*.arrow")
    content = table.read_bytes()
    table.write_bytes(content[: left if isinstance(left, int) else int(left * len(content))])
    assert list(load_split(config(path), words, "train")) == before
