"""Answers of a server that are none: each is a failed try, never a traceback, and what came before is kept."""

from __future__ import annotations

import gzip
import json
import re
import traceback
from urllib.parse import quote

import pytest

from gakd.data import Row
from gakd.errors import InputError
from gakd.samplers import EndpointConfig, EndpointTeacher, endpoint, endpoint_answers, response_records
from gakd.samplers.response_cache import Response, ResponseCache
from gakd.samplers.vllm import VllmServer
from tests.chat_server import ChatServer, Reply, completion, echo, prompt_of

# With characters that addresses, JSON and HTML write in another way.
KEY = 'sk-0123/45+6789"&-secret'
ROWS = [Row("Good.", where="rows.jsonl:1"), Row("Odd.", where="rows.jsonl:2")]
DEEP = 200_000
HTML = (("content-type", "text/html"),)


pytestmark = pytest.mark.usefixtures("environment")


def config_of(server: ChatServer, **changes) -> EndpointConfig:
    return EndpointConfig(
        **{"base_url": server.url, "model": "m", "timeout": 5.0, "patience": 0.3, "concurrency": 1} | changes
    )


def message(**changes) -> Reply:
    return Reply(completion("x", choices=[{"message": {"content": "x"} | changes, "finish_reason": "stop"}]))


def choice(**changes) -> Reply:
    return Reply(completion("x", choices=[{"message": {"content": "x"}, "finish_reason": "stop"} | changes]))


def packed(body: bytes, encoding: str) -> Reply:
    return Reply(body, headers=(("content-encoding", encoding),))


UNREADABLE = {
    "choices a dict": Reply(completion("x", choices={"0": 1})),
    "choices numbers": Reply(completion("x", choices=[1, 2])),
    "choices null": Reply(completion("x", choices=None)),
    "choices empty": Reply(completion("x", choices=[])),
    "choices a text": Reply(completion("x", choices="abc")),
    "a choice null": Reply(completion("x", choices=[None])),
    "no message": Reply(completion("x", choices=[{"finish_reason": "stop"}])),
    "message null": choice(message=None),
    "message a text": choice(message="x"),
    "content a list": message(content=[{"type": "text", "text": "x"}]),
    "content an empty list": message(content=[]),
    "content a number": message(content=5),
    "content false": message(content=False),
    "finish_reason a number": choice(finish_reason=5),
    "finish_reason a list": choice(finish_reason=["stop"]),
    "open brackets": Reply("[" * DEEP),
    "brackets": Reply("[" * DEEP + "]" * DEEP),
    "braces": Reply('{"a":' * DEEP),
    "HTML": Reply("<html>hello</html>", headers=HTML),
    "HTML as JSON": Reply("<html>hello</html>"),
    "nothing": Reply(""),
    "no content": Reply("", 204),
    "half of it": Reply(completion("x")[:60]),
    "null": Reply("null"),
    "a number": Reply("5"),
    "no UTF-8": Reply(completion("x").encode().replace(b'"x"', b'"\xff\xfe"')),
    "no UTF-8 as a page": Reply(b"\xff\xfe\x80", headers=HTML),
    "an error": Reply('{"error": {"message": "upstream"}}'),
    "a stream": Reply('data: {"choices": []}\n\n', headers=(("content-type", "text/event-stream"),)),
    "a redirect to itself": Reply("", 307, (("location", "/v1/chat/completions"),)),
    "a redirect to nowhere": Reply("", 307, (("location", "ftp://x/y"),)),
    "not packed": packed(completion("x").encode(), "gzip"),
    "packed large": packed(gzip.compress(bytes(endpoint_answers.LONGEST_BODY + 1)), "gzip"),
    "packed twice": packed(gzip.compress(gzip.compress(b"{}")), "gzip, gzip"),
    "packed otherwise": packed(b"", "zstd"),
    "without an end": Reply(b" " * 65536, endless=True),
    "an error without an end": Reply(b" " * 65536, 500, endless=True),
}
PASSING = {
    "cut": Reply(completion("x"), cut=20),
    "reset": Reply(completion("x"), cut=20, reset=True),
    "a redirect to no address": Reply("", 307, (("location", "http://[::1"),)),
    "500, deep": Reply('{"error":' + "[" * DEEP, 500),
    "500, nearly too deep": Reply('{"error":' + "[" * 930 + "]" * 930 + "}", 500),
    "429, odd": Reply('{"error": {"message": ["x"], "code": {"a": 1}, "type": [1]}}', 429),
    "wait for ever": Reply("{}", 503, (("retry-after", "1e400"),)),
    "wait until no date": Reply("{}", 503, (("retry-after", "Mon, 99 Foo 99999 99:99:99"),)),
}
REFUSED = {"401, a list": Reply("[1]", 401), "401, a text": Reply('"x"', 401), "307": Reply("", 307)}


@pytest.mark.parametrize("name", UNREADABLE | PASSING)
def test_an_odd_answer_is_a_failed_try(server, tmp_path, name):
    server.script = [(UNREADABLE | PASSING)[name]] * (60 if "to itself" in name else 1)
    teacher = EndpointTeacher(config_of(server, patience=5.0), tmp_path / "cache.jsonl")
    assert [own[0].text for own in teacher.responses(ROWS)] == ["You said: Good.", "You said: Odd."]
    assert teacher.usage.tried_again >= 1


@pytest.mark.parametrize("name", UNREADABLE | PASSING | REFUSED)
def test_a_server_that_answers_nothing_else_ends_the_run_in_one_line(server, tmp_path, name):
    reply = (UNREADABLE | PASSING | REFUSED)[name]
    server.answer = lambda asked: reply if prompt_of(asked) == "Odd." else echo(asked)
    with pytest.raises(InputError, match=r"rows\.jsonl:2") as caught:
        EndpointTeacher(config_of(server), tmp_path / "cache.jsonl").responses(ROWS)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    times = server.times_asked()["Odd."]
    if name in UNREADABLE and "to itself" not in name:
        assert times == endpoint.UNREADABLE_TRIES
        assert "no chat completion came back" in str(caught.value)
    if name in PASSING:
        assert times > endpoint.UNREADABLE_TRIES
    if name in REFUSED:
        assert times == 1
    with ResponseCache(tmp_path / "cache.jsonl") as cache:
        assert [response.text for response in cache.found.values()] == ["You said: Good."]


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ('{"prompt_tokens": 7, "completion_tokens": 3}', (7, 3)),
        ('{"prompt_tokens": 7.0, "completion_tokens": null}', (7, 0)),
        ('{"prompt_tokens": Infinity, "completion_tokens": 3}', (0, 3)), ('{"prompt_tokens": NaN}', (0, 0)),
        ('{"prompt_tokens": 1e400, "completion_tokens": 3}', (0, 3)), ('{"prompt_tokens": -5}', (0, 0)),
        ('{"prompt_tokens": "7", "completion_tokens": 3}', (0, 3)), ('{"prompt_tokens": true}', (0, 0)),
        ('{"prompt_tokens": 1.5, "completion_tokens": 3}', (0, 3)), ('{"prompt_tokens": {}}', (0, 0)),
        (f'{{"prompt_tokens": {"9" * 6000}, "completion_tokens": 3}}', (0, 3)), ("[1]", (0, 0)), ('"x"', (0, 0)),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_usage_that_makes_no_sense_counts_as_nothing(server, tmp_path, usage, counted):
    body = re.sub(r'"usage": \{.*?\}', f'"usage": {usage}', completion("fine"))
    server.answer = lambda asked: Reply(body)
    teacher = EndpointTeacher(config_of(server), tmp_path / "cache.jsonl")
    assert teacher.responses(ROWS[:1]) == [[Response("fine", "stop", *counted)]]
    assert (teacher.usage.prompt_tokens, teacher.usage.completion_tokens) == counted


def test_a_long_text_comes_back_whole(server, tmp_path):
    text = "word " * (2 << 20)
    server.answer = lambda asked: Reply(completion(text))
    assert EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS[:1])[0][0].text == text


FORMS = {
    "as it is": KEY,
    "an address": quote(KEY, safe=""),
    "an address, small": re.sub("%..", lambda found: found[0].lower(), quote(KEY)),
    "an address, twice": quote(quote(KEY, safe="")),
    "JSON": json.dumps(KEY)[1:-1],
    "JSON in JSON": json.dumps(json.dumps(KEY))[3:-3],
    "JSON with strokes": KEY.replace("/", "\\/").replace('"', '\\"'),
    "JSON in numbers": "".join(f"\\u{ord(character):04X}" for character in KEY),
    "HTML": KEY.replace("&", "&amp;").replace('"', "&quot;"),
    "HTML in numbers": "".join(f"&#{ord(character)};" for character in KEY),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_a_server_repeats_is_written_nowhere(server, tmp_path, capsys, form):
    told, cache = FORMS[form], tmp_path / "cache.jsonl"
    error = json.dumps({"error": {"message": f"{'x' * 280} {told} is slow"}})
    server.script = [
        Reply(error, 500),
        Reply(f"<html>{told}</html>", headers=HTML),
        Reply(completion(f"Your key is {told}, {told}.", f"stop {told}")),
    ]
    teacher = EndpointTeacher(config_of(server, patience=5.0), cache)
    found = teacher.responses(ROWS[:1])
    assert found == [[Response("Your key is [key], [key].", "stop [key]", 7, 3)]]
    server.answer = lambda asked: Reply(error, 500)
    with pytest.raises(InputError) as caught:
        EndpointTeacher(config_of(server), cache).responses(ROWS[1:])
    printed = capsys.readouterr()
    assert "in its text: [key] takes its place" in " ".join(printed.out.split())
    places = ["".join(traceback.format_exception(caught.value)), printed.out + printed.err, cache.read_text()]
    for secret in (told, KEY, told[:20], json.dumps(told)[1:20]):
        assert not [place for place in places if secret in place]
    assert response_records(ROWS[:1], found)[0]["output"] == "Your key is [key], [key]."


def test_a_key_in_an_older_cache_is_not_given_out(server, tmp_path):
    cache = tmp_path / "cache.jsonl"
    first = EndpointTeacher(config_of(server), cache)
    key = first._request(ROWS[0], 0).key
    with ResponseCache(cache) as written:
        written.append(key, Response(f"It is {KEY}.", "stop"))
    assert EndpointTeacher(config_of(server), cache).responses(ROWS[:1]) == [[Response("It is [key].", "stop")]]
    assert not server.asked


def test_a_word_that_stands_for_no_key_stays_in_texts(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    server.answer = lambda asked: Reply(completion("An EMPTY text."))
    assert EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS[:1])[0][0].text == "An EMPTY text."


def test_what_a_screen_cannot_show_is_not_shown(server, tmp_path, capsys):
    server.answer = lambda asked: Reply('{"error": {"message": "\\u001b[2J \\ud83d \\u202e"}}', 400)
    with pytest.raises(InputError, match="400, \ufffd\\[2J \ufffd \ufffd;"):
        EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS[:1])


@pytest.mark.parametrize("value", [float("nan"), "\ud83d"], ids=["NaN", "half a pair"])
def test_a_row_that_no_request_can_hold_is_named_before_any_is_asked_for(server, tmp_path, value):
    row = Row("Well?", tools=({"type": "function", "function": {"name": value}},), where="rows.jsonl:3")
    with pytest.raises(InputError, match=r"rows\.jsonl:3 cannot be sent as JSON"):
        EndpointTeacher(config_of(server), tmp_path / "c").responses([*ROWS, row])
    assert not server.asked


@pytest.mark.parametrize("name", [name for name in UNREADABLE if "without an end" not in name and "packed" not in name])
def test_odd_answers_of_a_vllm_server_are_one_line_too(server, monkeypatch, name):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    server.answer = lambda asked: UNREADABLE[name]
    with pytest.raises(InputError) as caught:
        VllmServer(server.url, "m", retries=0, timeout=5.0).complete([{}])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
