"""Answers that no server should send: each is one failed try, and in the end one line that names the row."""

from __future__ import annotations

import gzip

import pytest

from gakd.data import Row
from gakd.errors import InputError
from gakd.samplers import EndpointConfig, EndpointTeacher, endpoint
from tests.chat_server import ChatServer, Reply, completion, echo, prompt_of, serving

KEY = "sk-0123456789-secret"
ROWS = [Row("Good.", where="rows.jsonl:1"), Row("Bad.", where="rows.jsonl:2")]
USAGE = '{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}'


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.01)


@pytest.fixture
def server():
    with serving(ChatServer()) as server:
        yield server


def teacher_of(server: ChatServer, cache) -> EndpointTeacher:
    return EndpointTeacher(EndpointConfig(server.url, "m", timeout=2.0, patience=0.6, concurrency=1), cache)


def choices(value: object) -> Reply:
    return Reply(completion("x", choices=value))


def choice(**changes: object) -> Reply:
    return choices([{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"} | changes])


def header(name: str, value: str) -> tuple[tuple[str, str], ...]:
    return ((name, value),)


ODD = {
    "choices: object": choices({"0": 1}), "choices: numbers": choices([1, 2]), "choices: null": choices(None),
    "choices: empty": choices([]), "choices: text": choices("abc"), "choices: nulls": choices([None]),
    "message: missing": choices([{"index": 0, "finish_reason": "stop"}]), "message: text": choice(message="x"),
    "content: list": choice(message={"content": [{"type": "text", "text": "x"}]}),
    "content: number": choice(message={"content": 5}), "content: object": choice(message={"content": {}}),
    "content: no items": choice(message={"content": []}), "content: false": choice(message={"content": False}),
    "end: number": choice(finish_reason=5), "end: list": choice(finish_reason=["stop"]),
    "brackets": Reply("[" * 200_000), "closed brackets": Reply("[" * 200_000 + "]" * 200_000),
    "objects": Reply('{"a":' * 200_000), "6000 digits": Reply("9" * 6000),
    "brackets at 500": Reply("[" * 200_000 + "]" * 200_000, 500), "brackets at 400": Reply("[" * 900 + "]" * 900, 400),
    "html": Reply("<html>", headers=header("content-type", "text/html")), "empty": Reply(""), "null": Reply("null"),
    "half": Reply(completion("x")[:60]), "bad utf-8": Reply(completion("x").encode().replace(b'"x"', b'"\xff\xfe"')),
    "no gzip": Reply(completion("x"), headers=header("content-encoding", "gzip")),
    "gzip bomb": Reply(gzip.compress(bytes(200 << 20)), headers=header("content-encoding", "gzip")),
    "error at 200": Reply('{"error": {"message": "upstream"}}'),
    "loop": Reply("", 307, header("location", "/v1/chat/completions")),
    "bad location": Reply("", 307, header("location", "http://[::1")),
    "cut": Reply(completion("x"), cut=20), "reset": Reply(completion("x"), cut=20, reset=True),
    "endless": Reply(b" " * 65536, endless=True), "endless at 500": Reply(b" " * 65536, 500, endless=True),
    "wait of no end": Reply("{}", 503, header("retry-after", "1e400")),
    "wait of no date": Reply("{}", 503, header("retry-after", "Mon, 99 Foo 99999 99:99:99")),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_is_a_failed_try_and_never_a_traceback(server, tmp_path, name):
    server.answer = lambda asked: ODD[name] if "Bad" in prompt_of(asked) else echo(asked)
    with pytest.raises(InputError, match=r"rows\.jsonl:2") as caught:
        teacher_of(server, tmp_path / "c").responses(ROWS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert (tmp_path / "c").read_bytes().count(b"\n") == 1, "what arrived is kept"
    server.answer = echo
    assert len(teacher_of(server, tmp_path / "c").responses(ROWS)) == 2


@pytest.mark.parametrize(
    "usage",
    [
        '"many"', "[1]", "5", '{"prompt_tokens": "7", "completion_tokens": {}}', '{"prompt_tokens": -5}',
        '{"prompt_tokens": Infinity, "completion_tokens": NaN}', '{"prompt_tokens": 1e400}', '{"prompt_tokens": true}',
        '{"completion_tokens": 1.5}', '{"prompt_tokens": %s}' % ("9" * 4000),
    ],
)  # fmt: skip
def test_usage_that_makes_no_sense_is_no_tokens_and_the_text_is_good(server, tmp_path, usage):
    server.script = [Reply(completion("x").replace(USAGE, usage))]
    ((response,),) = teacher_of(server, tmp_path / "c").responses(ROWS[:1])
    assert response == ("x", "stop", 0, 0)
    assert len(server.asked) == 1


def test_a_long_text_comes_back_whole(server, tmp_path):
    server.script = [Reply(completion("word " * (2 << 20)))]
    ((response,),) = teacher_of(server, tmp_path / "c").responses(ROWS[:1])
    assert response.text == "word " * (2 << 20)


def test_a_key_in_text_and_end_is_not_kept(server, tmp_path):
    server.script = [Reply(completion(f"It is {KEY}.", f"stop {KEY}"))]
    ((response,),) = teacher_of(server, tmp_path / "c").responses(ROWS[:1])
    assert response[:2] == ("It is [key].", "stop [key]")
    assert KEY.encode() not in (tmp_path / "c").read_bytes()
