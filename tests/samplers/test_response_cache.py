"""The file of the responses that were paid for: what is altered in it is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gakd.errors import InputError
from gakd.samplers.response_cache import Response, ResponseCache
from tests.flips import turned

TEXTS = ["", "Because.", "a\u2028b\x85c\nd", "\ud83d", "é\0", '"}\n{"key": "', "7 and 7.0", "x" * 200]
RESPONSES = {f"{index:064x}": Response(text, "stop", index, 10 * index) for index, text in enumerate(TEXTS)}


def write(path: Path, responses: dict[str, Response] = RESPONSES) -> bytes:
    with ResponseCache(path) as cache:
        for key, response in responses.items():
            cache.append(key, response)
    return path.read_bytes()


def read(path: Path) -> dict[str, Response]:
    with ResponseCache(path) as cache:
        return cache.found


def older(line: bytes) -> bytes:
    record = json.loads(line)
    del record["check"]
    return json.dumps(record).encode() + b"\n"


def test_a_line_is_json_with_a_checksum_at_its_end(tmp_path):
    records = [json.loads(line) for line in write(tmp_path / "c").splitlines()]
    assert all(list(record)[-1] == "check" and len(record["check"]) == 16 for record in records)
    assert len({record["check"] for record in records}) == len(RESPONSES)
    assert read(tmp_path / "c") == RESPONSES


def outcome(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    try:
        found = read(path)
    except InputError as error:
        is_one_line = "give another path" in str(error) and "\n" not in str(error)
        return "named" if is_one_line and path.read_bytes() == content else f"not named, or not untouched: {error}"
    if found == RESPONSES:
        return "harmless"
    *whole, _ = RESPONSES.items()
    assert list(found.items()) == whole
    return "dropped"


def test_random_bits_that_flip_are_noticed_or_harmless(tmp_path):
    content = write(tmp_path / "c")
    outcomes = [outcome(tmp_path / "c", flipped) for flipped in turned(content, 1000)]
    assert outcomes.count("named") >= 990
    assert outcomes.count("dropped") <= 8


def test_each_bit_of_each_line_break_and_of_one_line(tmp_path):
    content = write(tmp_path / "c")
    ends = [place for place, byte in enumerate(content) if byte == ord("\n")]
    for place in [*range(ends[0], ends[1]), *ends]:
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            found = outcome(tmp_path / "c", bytes(flipped))
            assert found == ("dropped" if place == ends[-1] else "named") or found == "harmless", (place, bit)


@pytest.mark.parametrize("mark", [b"\r", b" ", b"\t"])
def test_space_around_a_line_is_harmless(tmp_path, mark):
    assert outcome(tmp_path / "c", write(tmp_path / "c").replace(b"\n", mark + b"\n")) == "harmless"


def test_lines_of_an_older_cache_are_read_and_stay(tmp_path):
    lines = write(tmp_path / "c").splitlines(keepends=True)
    content = b"".join(older(line) if index % 2 else line for index, line in enumerate(lines))
    assert outcome(tmp_path / "c", content) == "harmless"
    assert write(tmp_path / "c", {"new": Response("new", "stop")}).startswith(content)
    assert read(tmp_path / "c") == {**RESPONSES, "new": Response("new", "stop")}


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    content = write(tmp_path / "c")
    start = content[:-1].rindex(b"\n") + 1
    for end in range(start, len(content)):
        assert outcome(tmp_path / "c", content[:end]) == "dropped"
        assert (tmp_path / "c").read_bytes() == content[:start]


OLD = {"key": "k", "text": "a", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 2}


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(OLD | {"check": "0" * 16}), json.dumps(OLD | {"check": None}), json.dumps(OLD | {"chek": "0" * 16}),
        json.dumps({**OLD, "text": 5}), json.dumps({**OLD, "prompt_tokens": True}), json.dumps({**OLD, "key": None}),
        json.dumps({**OLD, "finish_reason": ["stop"]}), json.dumps({"key": "k", "text": "a"}), "{}", "[]", "null", "",
        "[" * 200_000, '{"a":' * 200_000, f'{{"key": {"9" * 6000}}}', json.dumps(OLD)[:-1], json.dumps(OLD) * 2, "\xff",
    ],
    ids=lambda line: line[-60:] or "empty",
)  # fmt: skip
def test_any_other_line_is_named(tmp_path, line):
    content = write(tmp_path / "c") + line.encode("latin-1") + b"\n"
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(InputError, match=rf"c:{len(RESPONSES) + 1} .*give another path, or delete the line$"):
        read(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == content


def test_lines_that_another_process_damaged_are_noticed_at_the_next_time(tmp_path):
    cache = ResponseCache(tmp_path / "c")
    write(tmp_path / "c")
    with cache:
        assert cache.found == RESPONSES
    with (tmp_path / "c").open("a") as file:
        file.write("x\n")
    with pytest.raises(InputError, match=f"c:{len(RESPONSES) + 1} "), cache:
        pass
