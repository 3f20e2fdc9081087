"""Dataset files of any bytes: one clear line, or exactly the labels that the readable rows ask for."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gakd.data import DataConfig, DataError, Row, collate, encode, load_rows
from gakd.data.formats import unwrap_alpaca
from gakd.data.load import load_split
from gakd.types import IGNORE_INDEX
from tests import tiny
from tests.recipe_runs import arguments, make_material, metrics, run_here, scores

WORDS = tiny.tokenizer()
EOS, PAD = 258, 256
LONGEST, LONGEST_PROMPT = 330, 290  # tokens, outside the fuzz
FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=400)


# ---- the oracle: rows, tokens and labels, written down a second time and as plainly as possible ----


class Expected(NamedTuple):
    turns: list[tuple[str, str]]  # up to the response
    input: str
    response: str
    finished: bool


def expected_row(line: bytes) -> Expected | None:
    """What one line asks for, None where it is malformed."""
    try:
        record = json.loads(line.decode("utf-8").strip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("finished", True) not in (True, False):
        return None
    if not isinstance(record.get("finished", True), bool):
        return None
    finished = record.get("finished", True)
    beside = [record.get(key) for key in ("input", "context")]
    beside = next((value for value in beside if value is not None and value != ""), "")
    if record.get("messages") not in (None, "", [], {}) or (
        "messages" in record and not {"instruction", "prompt"} & set(record)
    ):
        messages = record["messages"]
        if not isinstance(messages, list) or len(messages) < 2:
            return None
        for message in messages:
            if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant", "tool"):
                return None
        turns = [(message["role"], message.get("content")) for message in messages]
        # A tool may have nothing to say.
        if not all(
            is_text(f"{content}." if (role, type(content)) == ("tool", str) else content) for role, content in turns
        ):
            return None
        roles = [role for role, _ in turns]
        if roles[-1] != "assistant" or "user" not in roles:
            return None
        between = roles[len(roles) - roles[::-1].index("user") : -1]
        if not set(between) <= {"assistant", "tool"}:
            return None
        return Expected(turns[:-1], "", turns[-1][1], finished)
    if "instruction" in record:
        instruction, keys = record["instruction"], ("output", "response")
        if not isinstance(beside, str) or (beside and not is_text(f"{beside}.")):
            return None
    elif "prompt" in record:
        instruction, keys = record["prompt"], ("response", "completion", "output")
        if not isinstance(instruction, str) or not isinstance(beside, str) or beside not in instruction:
            return None
        beside = ""
    else:
        return None
    present = [key for key in keys if key in record]
    if not present:
        return None
    responses = record[present[0]]
    responses = responses if isinstance(responses, list) else [responses]
    if not responses or not all(is_text(text) for text in [instruction, *responses]):
        return None
    return Expected([("user", instruction)], beside, responses[0], finished)


def is_text(value: object) -> bool:
    if not isinstance(value, str) or value.strip() == "" or "\0" in value:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def byte_ids(text: str) -> list[int]:
    """Byte-level: printable bytes stand for themselves, the others for the characters from 256 on; ids by code point."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: byte for byte in printable} | {byte: 256 + index for index, byte in enumerate(others)}
    order = sorted(symbols.values())
    return [order.index(symbols[byte]) for byte in text.encode("utf-8")]


def prompt_ids(row: Expected, template: str) -> list[int]:
    if template == "alpaca":
        (_, instruction), *_ = row.turns
        paired = ", paired with an input that provides further context" if row.input else ""
        given_input = f"### Input:\n{row.input}\n\n" if row.input else ""
        text = (
            f"Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
            f"request.\n\n### Instruction:\n{instruction}\n\n{given_input}### Response:\n"
        )
    else:
        turns = list(row.turns)
        if row.input:
            turns[-1] = ("user", turns[-1][1] + "\n\n" + row.input)
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        text += "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ids: list[int] = []
    for part in re.split(r"(<\|endoftext\|>|<\|im_start\|>|<\|im_end\|>)", text):
        special = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
        ids += [special[part]] if part in special else byte_ids(part)
    return ids


def expected_labels(
    row: Expected, template: str, longest: int, longest_prompt: int
) -> tuple[list[int], list[int]] | None:
    """Inputs and labels of one row; None where its prompt is too long."""
    prompt = prompt_ids(row, template)
    if len(prompt) > longest_prompt:
        return None
    end = [EOS] if template == "alpaca" else [258, *byte_ids("\n")]  # the chat template's own end of a turn
    response = byte_ids(row.response) + (end if row.finished else [])
    ids = (prompt + response)[:longest]
    return ids[:-1], [IGNORE_INDEX] * (len(prompt) - 1) + ids[len(prompt) :]


# ---- files ----

GOOD_TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
) | st.sampled_from(
    ["a", "Ünïcödé ✓", "e\u0301", "\U0001f600", "\ufeff", "\u200b", "\u2028", "a\r\nb", "<|im_end|>", "x<|im_start|>user\ny",
     "</think>", "[/bold]", "{braces}", "%s", "\\ud800", "x" * 400, "é" * 200]
)  # fmt: skip
BAD_TEXTS = st.sampled_from(["", " ", "\n\t\u3000", "\0", "a\0b", "\ud800", "b\udfff", "\ude00\ud83d"])
TEXTS = GOOD_TEXTS | BAD_TEXTS
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**30)])
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(GOOD_TEXTS, inner, max_size=2),
    max_leaves=4,
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
MESSAGE = st.fixed_dictionaries({"role": ROLES, "content": GOOD_TEXTS})
CONVERSATIONS = st.builds(
    lambda history, question, answer: [
        *history, {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    ],
    st.lists(MESSAGE, max_size=2), GOOD_TEXTS, GOOD_TEXTS,
)  # fmt: skip
KEYS = [
    "instruction",
    "input",
    "context",
    "output",
    "response",
    "completion",
    "prompt",
    "messages",
    "finished",
    "other",
]
GOOD_PAIRS = st.one_of(
    st.tuples(st.tuples(st.just("instruction"), GOOD_TEXTS), st.tuples(st.just("output"), GOOD_TEXTS)),
    st.tuples(
        st.tuples(st.just("instruction"), GOOD_TEXTS),
        st.tuples(st.sampled_from(["input", "context"]), TEXTS | st.none()),
        st.tuples(st.just("response"), st.lists(GOOD_TEXTS, min_size=1, max_size=3)),
    ),
    st.tuples(st.tuples(st.just("prompt"), GOOD_TEXTS), st.tuples(st.just("completion"), GOOD_TEXTS)),
    st.tuples(st.tuples(st.just("messages"), CONVERSATIONS)),
).map(list)
BAD_MESSAGES = st.lists(MESSAGE | st.fixed_dictionaries({"role": VALUES, "content": VALUES}) | VALUES, max_size=3)
EXTRA_PAIRS = st.lists(
    st.tuples(st.sampled_from(KEYS), VALUES)  # a key may come twice
    | st.tuples(st.just("messages"), BAD_MESSAGES)
    | st.tuples(st.just("finished"), st.booleans()),
    max_size=2,
)


def json_line(pairs: list[tuple[str, Any]], ascii_only: bool) -> bytes:
    parts = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=ascii_only)}" for key, value in pairs)
    return ("{" + ", ".join(parts) + "}").encode("utf-8", "surrogatepass")


CLEAN_LINES = st.builds(json_line, GOOD_PAIRS, st.booleans())
MUTATED_LINES = st.builds(
    lambda good, extra, ascii_only: json_line(good + extra, ascii_only), GOOD_PAIRS, EXTRA_PAIRS, st.booleans()
)
REPLACED_LINES = st.builds(
    lambda good, bad: json_line([*good[:-1], (good[-1][0], bad)], True), GOOD_PAIRS, BAD_TEXTS | VALUES
)
CUT_LINES = st.builds(lambda line, share: line[: int(share * len(line))], MUTATED_LINES, st.floats(0, 1))
SPOILT_LINES = st.builds(
    lambda line, share, byte: line[: int(share * len(line))] + byte + line[int(share * len(line)) + 1 :],
    MUTATED_LINES, st.floats(0, 1), st.sampled_from([b"\0", b"\xff", b'"', b"{", b",", b"\xed\xa0\x80", b"\x85", b"\r"]),
)  # fmt: skip
ODD_LINES = st.sampled_from(
    [b"", b"  ", b"\t\r", b"\xc2\xa0", b"null", b"NaN", b"[]", b"{}", b'"a"', b"[" * 100_000, b"\0" * 100, b"1" * 5000,
     b'[{"prompt": "a", "response": "b"}]', b'\xef\xbb\xbf{"prompt": "a", "response": "b"}',
     b'{"prompt": "a", "response": "b", "n": ' + b"1" * 5000 + b"}", b'{"prompt": "a", "response": "b"} {}',
     b'{"prompt": "a", "response": "b", "n": 1e999}', '{"prompt": "a", "response": "b"}'.encode("utf-16")]
)  # fmt: skip
LINES = st.one_of(
    CLEAN_LINES,
    CLEAN_LINES,
    MUTATED_LINES,
    REPLACED_LINES,
    CUT_LINES,
    SPOILT_LINES,
    ODD_LINES,
    st.binary(max_size=20),
    st.builds(json_line, EXTRA_PAIRS, st.booleans()),
)
FILES = st.builds(
    lambda mark, lines, breaks, end: mark + breaks.join(lines) + end,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf"]), st.lists(LINES, min_size=1, max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]), st.sampled_from([b"", b"\n", b"\n \n"]),
)  # fmt: skip


def lines_of(content: bytes) -> list[tuple[int, bytes]]:
    """Numbers and bytes of the lines that are not blank."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.decode("utf-8", "replace").strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@FUZZ
@given(
    content=FILES, template=st.sampled_from(["chat", "alpaca"]), margin=st.sampled_from([-1, 0, 5, 300]), room=st.integers(1, 40)
)  # fmt: skip
@example(
    content=b'{"messages": [{"role": [], "content": "a"}, {"role": "assistant", "content": "b"}]}',
    template="chat",
    margin=5,
    room=40,
)
@example(
    content=b'{"instruction": "a", "input": null, "context": "b", "output": "c"}', template="chat", margin=5, room=40
)
@example(content=b'{"prompt": "a", "input": "b", "output": "c"}', template="chat", margin=5, room=40)
@example(
    content=b'{"prompt": "a", "output": "\\ud800"}\n{"prompt": "a", "output": "b"}', template="chat", margin=0, room=1
)
def test_any_bytes_are_one_clear_line_or_exactly_the_labels_of_the_readable_rows(
    folder, content, template, margin, room
):
    """`margin` tokens are left by the first prompt, `room` at least for each response."""
    path, clean = folder / "any.jsonl", folder / "clean.jsonl"
    path.write_bytes(content)
    lines = lines_of(content)
    readable = [(line, row) for _, line in lines if (row := expected_row(line))]
    bad = [number for number, line in lines if expected_row(line) is None]

    if bad:
        refused = refusal(path)
        assert refused.startswith(f"{path}:{bad[0]}: ")
        assert "skip-bad-rows" in refused
    if not readable:
        assert bad or "has no rows for the split 'train'" in refusal(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert "has no rows for the split 'train'" in refusal(path, skip_bad_rows=True)
        return
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        rows = load_rows(str(path), "train", skip_bad_rows=True, whole=True)
    assert len(rows) == len(readable) == len(lines) - len(bad)
    counts = [int(number) for said in reported for number in re.findall(r"left out (\d+) bad rows", str(said.message))]
    assert counts == ([len(bad)] if bad else [])

    clean.write_bytes(b"\n".join(line for line, _ in readable))
    clean_rows = load_rows(str(clean), "train", whole=True)
    assert [row._replace(where="") for row in rows] == [row._replace(where="") for row in clean_rows]

    if template == "alpaca" and any(len(row.turns) > 1 for _, row in readable):
        with pytest.raises(DataError, match=r"any\.jsonl:\d+: the alpaca template holds one instruction"):
            encode(rows, WORDS, template)
        return
    longest_prompt = len(prompt_ids(readable[0][1], template)) + margin
    limits = longest_prompt + room, longest_prompt
    wanted = [labels for _, row in readable if (labels := expected_labels(row, template, *limits))]
    if not wanted:
        with pytest.raises(DataError, match=f"left out {len(rows)} of {len(rows)} rows .*none is left"):
            encode(rows, WORDS, template, *limits)
        return
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        examples = encode(rows, WORDS, template, *limits)
    left_out = len(rows) - len(wanted)
    assert [f"left out {left_out} of {len(rows)} rows" in str(said.message) for said in reported] == [True] * bool(
        left_out
    )
    batch = collate(examples, PAD)
    assert len(batch.labels) == len(wanted)
    for inputs, labels, (ids, targets) in zip(batch.input_ids.tolist(), batch.labels.tolist(), wanted, strict=True):
        padding = len(labels) - len(targets)
        assert inputs == ids + [PAD] * padding
        assert labels == targets + [IGNORE_INDEX] * padding


def refusal(path: Path, **options: bool) -> str:
    """The one line of the DataError that a file is refused with."""
    with pytest.raises(DataError) as refused:
        load_rows(str(path), "train", whole=True, **options)
    line = str(refused.value)
    assert len(line.splitlines()) == 1
    assert len(line) < len(str(path)) + 400
    return line


# ---- what is too large or too rare for the fuzz ----


def one_row(folder: Path, record: object) -> Row:
    path = folder / "one.jsonl"
    path.write_text(json.dumps(record))
    (row,) = load_rows(str(path), "train", whole=True)
    return row


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_lines_of_a_megabyte(tmp_path, template):
    path = tmp_path / "long.jsonl"
    lines = [
        json.dumps({"prompt": "a", "response": "é" * 500_000}),
        json.dumps({"prompt": "a" * 1_000_000, "response": "b"}),
        json.dumps({"prompt": "a", "response": "b", "other": "c" * 1_000_000}),
    ]
    path.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"left out 1 of 3 rows whose prompt is longer than 290 .*long\.jsonl:2'"):
        examples = encode(load_rows(str(path), "train", whole=True), WORDS, template, LONGEST, LONGEST_PROMPT)
    prompt = prompt_ids(Expected([("user", "a")], "", "", True), template)
    assert [example.prompt_ids for example in examples] == [prompt, prompt]
    assert examples[0].response_ids == byte_ids("é" * 500_000)[: LONGEST - len(prompt)]
    assert examples[1].response_ids == [*byte_ids("b"), *([EOS] if template == "alpaca" else [258, *byte_ids("\n")])]


@pytest.mark.parametrize(
    "line",
    [
        "x" * 1_000_000,
        json.dumps({"k" * 1_000_000: 1}),
        json.dumps({f"k{index}": index for index in range(50_000)}),
        json.dumps({"instruction": "a", "k" * 1_000_000: 1}),
        json.dumps({"prompt": ["a" * 1_000_000], "response": "b"}),
        json.dumps({"prompt": "a", "response": "b", "input": "c" * 1_000_000}),
        json.dumps({"messages": [{"role": "user", "content": "a"}] * 10_000}),
        json.dumps({"messages": [{"role": "r" * 1_000_000, "content": "a"}] * 2}),
    ],
    ids=lambda line: f"{line[:14]} {len(line)}",
)
def test_bad_rows_of_any_size_are_named_in_a_short_line(tmp_path, line):
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' + line)
    assert refusal(path).startswith(f"{path}:2: ")


def test_a_nest_of_any_depth_is_a_bad_row(tmp_path):
    """However much of the stack is left when it is read, and then when it is shown."""
    path = tmp_path / "nest.jsonl"
    for depth in (10, *range(800, 1010), 100_000):
        path.write_text(f'{{"prompt": {"[" * depth}{"]" * depth}, "response": "b"}}')
        assert refusal(path).startswith(f"{path}:1: ")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "a", "input": None, "context": "b", "output": "c"}, ("a", "b")),
        ({"instruction": "a", "input": "", "context": "b", "output": "c"}, ("a", "b")),
        ({"instruction": "a", "context": None, "output": "c"}, ("a", "")),
        ({"prompt": "Read b", "input": "b", "output": "c"}, ("Read b", "")),
        ({"prompt": "Read", "input": "", "context": None, "output": "c"}, ("Read", "")),
        (
            {"prompt": "Below.\n\n### Instruction:\na\n\n### Input:\nb\n\n### Response:", "input": "b", "output": "c"},
            ("a", "b"),
        ),
        (
            {"prompt": "Be a pirate.\n\n### Instruction:\na\n\n### Response:", "output": "c"},
            ("Be a pirate.\n\n### Instruction:\na\n\n### Response:", ""),
        ),
    ],
)
def test_no_part_of_a_prompt_is_lost(tmp_path, record, expected):
    assert one_row(tmp_path, record)[:2] == expected


def test_a_prompt_that_says_nothing_in_its_template_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"one\.jsonl:1: the instruction is empty"):
        one_row(tmp_path, {"prompt": "### Instruction:\n\n\n### Response:\n", "output": "b"})
    assert unwrap_alpaca("### Instruction:\na\n\n### Response:") == ("a", "")


def test_an_array_of_rows_is_read_as_its_rows(tmp_path):
    rows = [{"prompt": "a", "response": "b"}] * 2
    for indent in (None, 2):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows, indent=indent))
        assert [(row.instruction, row.responses) for row in load_rows(str(path), "train", whole=True)] == [
            ("a", ("b",))
        ] * 2
    path.write_text(json.dumps([*rows, [1]]))
    assert refusal(path).startswith(f"{path}:3: a row is an object, got list")


def test_an_empty_name_is_no_dataset():
    """It would be the current folder, and as a validation set all of the training file."""
    for name in ("", " "):
        with pytest.raises(DataError, match="the dataset's name is empty"):
            load_rows(name, "train")
        with pytest.raises(DataError, match="the dataset's name is empty"):
            load_split(DataConfig("docstrings", valid_dataset=name), WORDS, "valid")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "train.jsonl"
    path.write_text("{}")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    for name in (path, tmp_path):
        with pytest.raises(DataError, match=f"cannot read {re.escape(str(name))}: Permission denied"):
            load_rows(str(name), "train")


def test_what_has_no_tokens_is_refused_with_its_row():
    from tokenizers import normalizers

    words = tiny.tokenizer()
    words.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    rows = [Row("a", "", ("b",), where="f:1"), Row("a", "", ("\u200b",), where="f:2")]
    with pytest.raises(DataError, match="'f:2': its response has no token in this tokenizer"):
        encode(rows, words)
    words.chat_template = "{{ '' }}"
    with pytest.raises(DataError, match="'f:1': the chat template leaves 'a' of the user out of the prompt"):
        encode(rows, words)


def test_a_template_that_breaks_on_a_row_names_it_in_one_line():
    words = tiny.tokenizer()
    broken = r"'f:1': the chat template refuses this conversation \(.+\)"
    for template, said in (
        ("{{ 1 + messages[0].content }}", broken), ("{{ raise_exception('roles\nmust\nalternate') }}", broken),
        ("{% if %}", r"the chat template does not compile \(line 1: .+\): mend it"),
    ):  # fmt: skip
        words.chat_template = template
        with pytest.raises(DataError, match=said) as refused:
            encode([Row("a", "", ("b",), where="f:1")], words)
        assert "\n" not in str(refused.value)


# ---- whole runs ----


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


ROWS = [
    {"instruction": f"Say {text}", "input": "", "output": f"{text} {index}"}
    for index, text in enumerate(
        [
            "[/bold]",
            "[link=x]y",
            "<|im_end|>",
            "\ufeff",
            "a\r\nb",
            "\u2028",
            "\u202eabc",
            "\x1b[31mred",
            "\U0001f600",
            "$x_$",
            "é" * 9,
        ]
    )
]
NASTY = [
    b'{"instruction": "lost", "output": ',
    b'{"instruction": "\xff", "output": "lost"}',
    b'{"instruction": "lost", "output": "\\ud800"}',
    b'{"instruction": "lost", "output": 5}',
    b'{"messages": [{"role": {}}, 1]}',
    b"\0" * 50,
    b"[" * 100_000,
    b"",
    b" \t",
    json.dumps({"instruction": "too long " * 40, "output": "left out"}).encode(),
    b"x" * 1_000_000,
]


def nasty_line(row: dict[str, str]) -> bytes:
    """The same row, written as no one should: a key twice, keys that mean nothing, numbers that are none."""
    text = json.dumps(row | {"other": [float("nan"), 10**400, {"a": [[]]}], "response": 5}, ensure_ascii=False)
    return ('{"output": "written over", ' + text[1:]).encode()


@pytest.mark.parametrize("recipe", ["gakd", "sft", "seqkd"])
def test_a_run_on_the_worst_file_that_is_accepted_is_the_run_on_its_good_rows(recipe, material, tmp_path):
    pairs = zip(ROWS, NASTY, strict=True)
    contents = {
        "clean": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS),
        "nasty": b"\xef\xbb\xbf" + b"\r\n".join(line for row, bad in pairs for line in (nasty_line(row), bad)),
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        for split in ("train", "valid", "test"):
            (tmp_path / name / f"{split}.jsonl").write_bytes(content)
    runs = {name: tmp_path / f"run-{name}" for name in ("clean", "nasty")}
    flags = {
        name: arguments(
            material, output, "--dataset", str(tmp_path / name), "--steps", "2", "--max-length", "160",
            "--max-prompt-length", "120", "--examples", "11", "--text-examples", "11", recipe=recipe,
        )
        for name, output in runs.items()
    }  # fmt: skip
    run_here(recipe, *flags["clean"])
    with pytest.raises(DataError, match=r"train\.jsonl:2: not JSON"):
        run_here(recipe, *flags["nasty"])
    with pytest.warns(UserWarning, match="left out") as reported:
        run_here(recipe, *flags["nasty"], "--skip-bad-rows")
    assert sum("left out 8 bad rows" in str(said.message) for said in reported) == 3
    assert sum("left out 1 of 12 rows whose prompt is longer" in str(said.message) for said in reported) == 3
    assert metrics(runs["nasty"]) == metrics(runs["clean"])
    for name in ("before", "after"):
        assert scores(runs["nasty"], name) == scores(runs["clean"], name)
    assert all(float(row["gradient_norm"]) > 0 for row in metrics(runs["nasty"]) if row["gradient_norm"])
