"""Any JSON value is a row or one line, and so is a file of any bytes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gakd.data import DataError, Row, load_rows
from gakd.data.formats import row_from
from gakd.data.rows import record_of

FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=300)
TEXTS = st.text(max_size=6) | st.sampled_from(["a", "", " ", "\0", "\ud800", "[]", "{", '[{"role": "user"}]', "0"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
ROLES = st.sampled_from(
    [
        "system",
        "developer",
        "user",
        "assistant",
        "tool",
        "human",
        "gpt",
        "observation",
        "function_call",
        "function",
        "robot",
    ]
)
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=2)
CALLS = st.lists(
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXTS, "arguments": VALUES})})
    | st.fixed_dictionaries({"name": TEXTS, "arguments": VALUES}),
    max_size=2,
)
MESSAGES = st.lists(
    st.builds(
        lambda fixed, more: fixed | more,
        st.fixed_dictionaries({"role": ROLES, "content": st.just("a") | TEXTS | PARTS | VALUES})
        | st.fixed_dictionaries({"from": ROLES, "value": st.just("a") | TEXTS}),
        st.dictionaries(
            st.sampled_from(["reasoning_content", "thinking", "tool_calls", "name", "weight", "tool_call_id", "id", "other"]),
            VALUES | CALLS | st.sampled_from([0, 1, 0.0]), max_size=2,
        ),
    ),
    max_size=5,
)  # fmt: skip
KEYS = [
    "instruction", "input", "context", "output", "response", "completion", "prompt", "messages", "conversations",
    "conversation", "system", "history", "tools", "chat_template_kwargs", "enable_thinking", "reasoning", "finished",
    "weight", "images", "chosen", "rejected", "other",
]  # fmt: skip
GOOD_TURNS = st.lists(
    st.sampled_from(["a", "b"]).flatmap(
        lambda text: st.sampled_from(
            [
                {"role": "user", "content": text},
                {"from": "gpt", "value": text},
                {"role": "assistant", "content": text, "weight": 0},
                {"role": "assistant", "thinking": text},
                {"role": "assistant", "tool_calls": [{"name": text, "arguments": "{}"}]},
                {"role": "tool", "content": text, "tool_call_id": "7"},
                {"from": "system", "value": text},
            ]
        )
    ),
    max_size=4,
).map(lambda turns: [{"role": "user", "content": "a"}, *turns, {"role": "assistant", "content": "b"}])
GOOD = st.sampled_from(
    [
        {"instruction": "a", "input": "c", "output": "b"},
        {"prompt": "a", "completion": ["b", "c"]},
        {"prompt": [{"role": "user", "content": "a"}], "response": "b", "thinking": "c"},
        {"prompt": "a", "system": "b"},
    ]
) | st.builds(lambda key, turns: {key: turns}, st.sampled_from(["messages", "conversations"]), GOOD_TURNS)
EXTRA = st.dictionaries(st.sampled_from(KEYS), st.just("a") | VALUES | MESSAGES | MESSAGES.map(json.dumps), max_size=5)
RECORDS = GOOD | st.builds(lambda good, extra: good | dict(list(extra.items())[:2]), GOOD, EXTRA) | EXTRA  # fmt: skip


def result_of(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returned, or what its DataError said."""
    try:
        return call(), ""
    except DataError as error:
        return None, str(error)


def is_one_line(text: str) -> bool:
    return len(text.splitlines()) == 1 and len(text) < 700


@FUZZ
@given(record=RECORDS | VALUES, arrow=st.booleans(), may_be_prompt=st.booleans())
def test_any_value_is_a_row_or_one_line(record: Any, arrow: bool, may_be_prompt: bool):
    row, refusal = result_of(lambda: row_from(record, "f:1", arrow=arrow, may_be_prompt=may_be_prompt))
    if row is None:
        assert refusal.startswith("f:1: ")
        assert is_one_line(refusal)
        return
    assert isinstance(row, Row)
    assert row.responses or may_be_prompt
    json.dumps(row, ensure_ascii=False).encode("utf-8")  # no surrogate is left in it
    again = row_from(record_of(row), "f:1", may_be_prompt=may_be_prompt)
    if len(row.responses) <= 1 and not row.input:
        assert again == row


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


LINES = st.lists(RECORDS.map(lambda record: json.dumps(record).encode()) | st.binary(max_size=20), max_size=4)
CONTENTS = st.one_of(
    st.binary(max_size=200),
    LINES.map(b"\n".join),
    st.lists(RECORDS, max_size=3).map(lambda records: json.dumps(records, indent=1).encode()),
    st.lists(st.lists(TEXTS, max_size=3), max_size=4).map(
        lambda rows: "\n".join(["prompt,response", *(",".join(cells) for cells in rows)]).encode("utf-8", "replace")
    ),
    st.binary(max_size=60).map(lambda content: b"PAR1" + content + b"PAR1"),
)
NAMES = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.zst"]


@settings(FUZZ, max_examples=250)
@given(name=st.sampled_from(NAMES), content=CONTENTS, skip=st.booleans())
def test_any_bytes_are_rows_or_one_line(folder: Path, name: str, content: bytes, skip: bool):
    path = folder / name
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("GAKD_CACHE", str(folder / "cache"))
        rows, refusal = result_of(lambda: load_rows(str(path), "train", skip_bad_rows=skip, whole=True))
    assert rows or (is_one_line(refusal) and str(path) in refusal)
