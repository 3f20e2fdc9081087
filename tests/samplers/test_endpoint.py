"""A black-box teacher against a server that fails as it is told to."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict, replace
from email.utils import formatdate
from pathlib import Path

import pytest

from gakd.data import Message, Row, load_rows, render
from gakd.data.rows import conversation
from gakd.errors import InputError
from gakd.samplers import EndpointConfig, EndpointTeacher, endpoint, response_records
from gakd.samplers.response_cache import Response, ResponseCache
from tests import tiny
from tests.chat_server import ChatServer, Reply, completion, echo, prompt_of

ROWS = [Row(f"Say {number}.", where=f"rows.jsonl:{number}") for number in range(6)]
KEY = "sk-0123456789-secret"


pytestmark = pytest.mark.usefixtures("environment")


def config_of(server: ChatServer, **changes) -> EndpointConfig:
    return EndpointConfig(**{"base_url": server.url, "model": "m", "timeout": 5.0, "patience": 5.0} | changes)


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def texts(responses: list[list[Response]]) -> list[list[str]]:
    return [[response.text for response in own] for own in responses]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_responses_come_in_the_order_of_the_rows_whatever_the_order_of_arrival(server, tmp_path):
    server.answer = lambda asked: echo(asked)._replace(wait=0.3 if "0" in prompt_of(asked) else 0.0)
    teacher = EndpointTeacher(config_of(server), tmp_path / "folder" / "cache.jsonl")
    found = teacher.responses(ROWS)
    assert texts(found) == [[f"You said: Say {number}."] for number in range(6)]
    assert found[2] == [Response("You said: Say 2.", "stop", 7, 3)]
    assert lines(tmp_path / "folder" / "cache.jsonl")[-1]["text"] == "You said: Say 0."
    assert asdict(teacher.usage) == {"requests": 6, "tried_again": 0, "prompt_tokens": 42, "completion_tokens": 18}


def test_a_request_holds_the_conversation_and_the_settings(server, tmp_path):
    history = (said("system", "Be short."), said("user", "Well?"), said("assistant", "Well."))
    rows = [Row("Sum up.", "A text.\nTwo lines.", ("so",), history), Row("Häh?"), Row("Häh?")]
    settings = config_of(server, temperature=0.7, top_p=None, max_new_tokens=9, extra_body='{"top_k": -1}')
    EndpointTeacher(settings, tmp_path / "cache.jsonl").responses(rows)
    assert len(server.asked) == 2, "equal prompts share a response"
    by_prompt = {prompt_of(asked): asked for asked in server.asked}
    last = said("user", "Sum up.\n\nA text.\nTwo lines.")
    assert by_prompt[last["content"]] == {
        "model": "m", "messages": [*history, last], "temperature": 0.7, "max_tokens": 9, "top_k": -1
    }  # fmt: skip
    assert server.keys == [f"Bearer {KEY}"] * 2
    tokenizer = tiny.tokenizer()
    for row in rows:
        rendered = tokenizer.apply_chat_template(
            conversation(row), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert rendered == render(row, tokenizer)


def test_without_a_key_a_server_that_needs_none_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    EndpointTeacher(config_of(server, limit_field="max_completion_tokens"), tmp_path / "c").responses(ROWS[:1])
    assert server.keys == ["Bearer none"]
    assert "max_tokens" not in server.asked[0]
    assert server.asked[0]["max_completion_tokens"] == 256


def test_what_is_in_the_cache_is_not_asked_for(server, tmp_path):
    settings, cache = config_of(server, samples=2), tmp_path / "cache.jsonl"
    first = EndpointTeacher(settings, cache).responses(ROWS[:3])
    assert len(server.asked) == 6
    written = cache.read_bytes()
    teacher = EndpointTeacher(settings, cache)
    assert teacher.responses(ROWS[:3]) == first
    assert teacher.responses(ROWS[2::-1]) == first[::-1]
    assert teacher.usage.requests == 0
    elsewhere = replace(
        settings, base_url="http://127.0.0.1:1/v1", concurrency=1, timeout=1.0, patience=0.0, key_variable="K"
    )
    assert EndpointTeacher(elsewhere, cache).responses(ROWS[:3]) == first
    assert cache.read_bytes() == written
    # One sample is the first of two; more rows and more samples ask for what is new alone.
    assert EndpointTeacher(config_of(server), cache).responses(ROWS[:3]) == [own[:1] for own in first]
    assert len(server.asked) == 6
    EndpointTeacher(replace(settings, samples=3), cache).responses(ROWS[:4])
    assert len(server.asked) == 6 + 3 + 3


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "n"}, {"temperature": 0.5}, {"temperature": None}, {"top_p": 0.9}, {"max_new_tokens": 255}, {"seed": 0},
        {"seed": 2}, {"extra_body": '{"top_k": 1}'},
    ],
    ids=str,
)  # fmt: skip
def test_other_settings_never_mix(server, tmp_path, changes):
    settings, cache = config_of(server, seed=1), tmp_path / "cache.jsonl"
    EndpointTeacher(settings, cache).responses(ROWS[:1])
    server.answer = lambda asked: Reply(completion("other"))
    assert texts(EndpointTeacher(replace(settings, **changes), cache).responses(ROWS[:1])) == [["other"]]
    assert texts(EndpointTeacher(settings, cache).responses(ROWS[:1])) == [["You said: Say 0."]]
    other = [Row("Say 0.", "now"), Row("Say 0.", history=(said("system", "s"),))]
    assert texts(EndpointTeacher(settings, cache).responses(other)) == [["other"]] * 2


def test_each_request_has_a_seed_of_its_own_that_the_next_run_repeats(server, tmp_path):
    settings = config_of(server, seed=1, samples=2)
    for name in ("a", "b"):
        EndpointTeacher(settings, tmp_path / name).responses(ROWS)
    EndpointTeacher(replace(settings, seed=2), tmp_path / "c").responses(ROWS)
    seeds = [{asked["seed"] for asked in server.asked[start : start + 12]} for start in (0, 12, 24)]
    assert len(seeds[0]) == 12
    assert seeds[0] == seeds[1]
    assert not seeds[0] & seeds[2]
    assert all(0 <= seed < 2**31 for seed in seeds[0])


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_once_than_asked_for(server, tmp_path, concurrency):
    server.answer = lambda asked: echo(asked)._replace(wait=0.05)
    EndpointTeacher(config_of(server, concurrency=concurrency, samples=2), tmp_path / "c").responses(ROWS)
    assert server.most_at_once == concurrency


@pytest.mark.parametrize(
    "failure",
    [
        Reply('{"error": {"message": "slow down"}}', 429),
        Reply("", 500),
        Reply("<html>", 502, (("content-type", "text/html"),)),
        Reply("{}", 503),
        Reply("{}", 408),
        Reply(completion("late"), wait=0.6),
        Reply(completion("trickle"), pause=0.05),
        Reply(completion("cut"), cut=20, reset=True),
        Reply(completion("cut"), cut=20),
        Reply(completion("cut")[:50]),
        Reply("[1]"),
        Reply(completion("x", choices=[])),
        Reply('{"error": {"message": "upstream"}}'),
        Reply("<html>", headers=(("content-type", "text/html"),)),
    ],
    ids=[
        "429",
        "500",
        "502",
        "503",
        "408",
        "hang",
        "trickle",
        "reset",
        "closed",
        "half",
        "list",
        "none",
        "error",
        "html",
    ],
)
def test_what_passes_is_tried_again(server, tmp_path, failure):
    server.script = [failure] * 2
    teacher = EndpointTeacher(config_of(server, concurrency=1, timeout=0.3), tmp_path / "cache.jsonl")
    assert texts(teacher.responses(ROWS[:2])) == [["You said: Say 0."], ["You said: Say 1."]]
    assert server.times_asked() == {"Say 0.": 3, "Say 1.": 1}
    assert (teacher.usage.requests, teacher.usage.tried_again) == (4, 2)
    assert [record["text"] for record in lines(tmp_path / "cache.jsonl")] == ["You said: Say 0.", "You said: Say 1."]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(server, tmp_path, form):
    header = "1.2" if form == "seconds" else formatdate(int(time.time()) + 3, usegmt=True)
    server.script = [Reply("{}", 429, (("retry-after", header),))]
    started = time.monotonic()
    EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS[:1])
    assert time.monotonic() - started >= 1.2


def test_waits_double_with_chance_up_to_a_minute(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.5)
    for tries, longest in [(1, 0.5), (2, 1.0), (4, 4.0), (8, 60.0), (10**6, 60.0)]:
        drawn = [endpoint._delay(tries) for _ in range(400)]
        assert longest / 2 <= min(drawn) < 0.6 * longest
        assert 0.9 * longest < max(drawn) <= longest


def test_patience_ends_and_what_has_arrived_stays(server, tmp_path, capsys):
    server.answer = lambda asked: Reply('{"error": "no [/room]"}', 503) if "3" in prompt_of(asked) else echo(asked)
    settings, cache = config_of(server, patience=0.5, concurrency=1), tmp_path / "cache.jsonl"
    started = time.monotonic()
    with pytest.raises(
        InputError, match=r"no response to rows.jsonl:3 in \d+ tries .*503, no \[/room\].*what has arrived"
    ):
        EndpointTeacher(settings, cache).responses(ROWS)
    assert 0.5 <= time.monotonic() - started < 3
    assert len(lines(cache)) == 3
    printed = capsys.readouterr().out
    assert printed.count("it is tried again for up to") == 1
    assert "9 response tokens; 3 responses in" in " ".join(printed.split())
    server.answer = echo
    assert len(EndpointTeacher(settings, cache).responses(ROWS)) == 6
    times = server.times_asked()
    assert times.pop("Say 3.") > 3
    assert set(times.values()) == {1}


def test_a_wait_longer_than_patience_ends_at_once(server, tmp_path):
    server.script = [Reply("{}", 429, (("retry-after", "3600"),))]
    with pytest.raises(InputError, match="429"):
        EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS[:1])
    assert len(server.asked) == 1


def test_a_server_that_is_down_is_waited_for(server, tmp_path):
    server.answer = lambda asked: echo(asked)._replace(wait=0.02)
    server.stop()
    threading.Timer(0.7, server.start).start()
    assert len(EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS)) == 6
    server.stop()
    with pytest.raises(InputError, match=r"no connection \(.*connect.*\)"):
        EndpointTeacher(config_of(server, patience=0.2), tmp_path / "d").responses(ROWS)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply('{"error": {"message": "bad key"}}', 401), "401, bad key; the environment variable OPENAI_API_KEY holds a key"),
        (Reply("{}", 403), "403, .*OPENAI_API_KEY"),
        (Reply('{"detail": "Not Found"}', 404), r"404, Not Found; check the base URL, .* ends in /v1, and the model 'm'"),
        (Reply('{"error": {"message": "too\\nlong"}}', 400), "rows.jsonl:0: 400, too long; .* leave this row out"),
        (Reply('{"detail": ["x"]}', 422), r"422, \['x'\]"),
        (Reply('{"error": {"message": "spent", "type": "insufficient_quota"}}', 429), "429, spent; nothing is left to pay"),
    ],
    ids=["401", "403", "404", "400", "422", "quota"],
)  # fmt: skip
def test_what_does_not_pass_ends_at_once_in_one_line(server, tmp_path, reply, says):
    server.script = [Reply(completion("late"), wait=4.0), reply]
    started = time.monotonic()
    with pytest.raises(InputError, match=says) as caught:
        EndpointTeacher(config_of(server, concurrency=2), tmp_path / "c").responses(
            [ROWS[0], Row("More", where="rows.jsonl:0")]
        )
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 3, "what was under way is given up"
    assert len(server.asked) == 2


def test_an_address_without_chat_completions_is_named(server, tmp_path):
    for reply in (Reply("<html>", headers=(("content-type", "text/html"),)), Reply("{nonsense")):
        server.asked.clear()
        server.answer = lambda asked, reply=reply: reply
        with pytest.raises(InputError, match=r"no chat completion came back .* ends in /v1"):
            EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS[:1])
        assert len(server.asked) == endpoint.UNREADABLE_TRIES
    with pytest.raises(InputError, match="404"):
        EndpointTeacher(config_of(server, base_url=server.url.removesuffix("/v1")), tmp_path / "c").responses(ROWS[:1])


def test_the_key_is_written_nowhere(server, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, name)
    repeated = json.dumps({"error": {"message": f"Bearer {KEY} is slow, {'x' * 600} {KEY}"}})
    server.script = [Reply(repeated, 500), Reply(f"<html> {KEY}", headers=(("content-type", "text/html"),))]
    teacher = EndpointTeacher(config_of(server, concurrency=1), tmp_path / "cache.jsonl")
    teacher.responses(ROWS[:1])
    server.script = [Reply(repeated, 401)]
    with pytest.raises(InputError) as caught:
        teacher.responses(ROWS)
    captured = capsys.readouterr()
    shown = {
        "error": "".join(traceback.format_exception(caught.value)), "config": f"{teacher.config!r} {asdict(teacher.config)}",
        "teacher": f"{vars(teacher)} {vars(teacher._cache)}", "log": caplog.text, "printed": captured.out + captured.err,
        "cache": (tmp_path / "cache.jsonl").read_text(),
    }  # fmt: skip
    assert server.keys == [f"Bearer {KEY}"] * 4
    assert "Bearer [key] is slow" in shown["printed"]
    assert "Bearer [key] is slow" in shown["error"]
    assert "HTTP" in shown["log"]
    assert len(str(caught.value)) < 450, "a server's page is no error message"
    for place, text in shown.items():
        assert KEY not in text, place
        assert KEY[:12] not in text, place


@pytest.mark.parametrize("bad", [f"{KEY}\nX", f"{KEY}é", f"{KEY} {KEY}"], ids=["line", "accent", "space"])
def test_a_key_that_no_header_can_hold_is_not_shown(server, tmp_path, monkeypatch, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds a space") as caught:
        EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS[:1])
    assert KEY not in "".join(traceback.format_exception(caught.value))
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")  # as a file gives it
    EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS[:1])
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key_variable": KEY}, "the name of an environment variable"),
        ({"base_url": f"http://user:{KEY}@host/v1"}, "put the key into the environment"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "put the key into the environment"),
        ({"base_url": "localhost:8000/v1"}, "expected one such as http"),
        ({"base_url": "http://host/v1/chat/completions"}, "expected one such as http"),
        ({"samples": 0}, "samples"), ({"concurrency": 0}, "concurrency"), ({"timeout": 0.0}, "timeout"),
        ({"patience": -1.0}, "patience"), ({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p"),
        ({"extra_body": "[1]"}, "JSON object"), ({"extra_body": "{"}, "JSON object"),
        ({"extra_body": '{"stream": true}'}, "JSON object"), ({"extra_body": '{"a": NaN}'}, "JSON object"),
        ({"extra_body": '{"a": 1e400}'}, "JSON object"), ({"extra_body": '{"a": -Infinity}'}, "JSON object"),
        ({"extra_body": "[" * 200_000}, "JSON object"), ({"extra_body": '{"a":' * 200_000}, "JSON object"),
        ({"extra_body": f'{{"a": "{KEY}"}}'}, "extra_body holds the key"), ({"model": KEY}, "model holds the key"),
        ({"base_url": f"http://host/{KEY}/v1"}, "base_url holds the key"), ({"base_url": "http://[::1"}, "no address"),
        ({"base_url": "http://host:99999/v1"}, "no address"), ({"key_variable": "hf_0123456789abcdefghij"}, "small letters"),
        *(({name: value}, f"^{name} is a number, ") for name in ("temperature", "top_p", "timeout", "patience")
          for value in (float("nan"), float("inf"), -1.0, True, "1")),
        *(({name: value}, f"^{name} is a whole number, ") for name in ("samples", "concurrency", "max_new_tokens", "seed")
          for value in (1.0, float("nan"), float("inf"), True, "1")),
        *(({name: None}, f"^{name} is") for name in ("samples", "concurrency", "max_new_tokens", "timeout", "patience")),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_bad_settings_are_refused_in_one_line_without_the_key(changes, says):
    with pytest.raises(InputError, match=says) as caught:
        EndpointConfig(**{"base_url": "http://host/v1", "model": "m"} | changes)
    assert KEY not in str(caught.value)
    assert "hf_0123456789abcdefghij" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_variable_of_the_key_may_have_small_letters_where_it_is_set(server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="small letters"):
        config_of(server, key_variable="my_api_key")
    monkeypatch.setenv("my_api_key", KEY)
    EndpointTeacher(config_of(server, key_variable="my_api_key"), tmp_path / "c").responses(ROWS[:1])
    assert server.keys == [f"Bearer {KEY}"]


def test_a_line_that_a_kill_cut_short_is_asked_for_again(server, tmp_path):
    cache, settings = tmp_path / "cache.jsonl", config_of(server, concurrency=1)
    expected = EndpointTeacher(settings, cache).responses(ROWS[:2])
    whole = cache.read_bytes()
    first, second = whole.splitlines(keepends=True)
    for cut in range(len(second)):
        cache.write_bytes(first + second[:cut])
        with ResponseCache(cache) as read:
            assert list(read.found.values()) == expected[0]
        assert cache.read_bytes() == first
    for rest in (second[:-1], second[:20], b"\0" * 9):
        cache.write_bytes(first + rest)
        server.asked.clear()
        assert EndpointTeacher(settings, cache).responses(ROWS[:2]) == expected
        assert server.times_asked() == {"Say 1.": 1}
        assert cache.read_bytes() == whole


def test_a_response_is_on_disk_once_it_is_appended(tmp_path):
    with ResponseCache(tmp_path / "c") as cache:
        cache.append("a", Response("b", "stop"))
        assert len(lines(tmp_path / "c")) == 1


def test_files_of_others_stay_untouched(server, tmp_path):
    settings, cache = config_of(server), tmp_path / "cache.jsonl"
    EndpointTeacher(settings, cache).responses(ROWS[:2])
    whole = cache.read_bytes()
    damaged = [b"x" + whole, whole.replace(b'"text"', b'"test"', 1), b"1\n" + whole]
    foreign = [b'{"instruction": "a", "output": "b"}', b'{"instruction": "a", "output": "b"}\n', b"text", b"{}\n"]
    for content in damaged + foreign:
        cache.write_bytes(content)
        server.asked.clear()
        with pytest.raises(InputError, match="something else wrote"):
            EndpointTeacher(settings, cache).responses(ROWS)
        assert cache.read_bytes() == content
        assert not server.asked
    with pytest.raises(InputError, match="cannot be written"):
        EndpointTeacher(settings, tmp_path).responses(ROWS)


def test_one_process_writes_at_a_time(server, tmp_path):
    cache = tmp_path / "cache.jsonl"
    with ResponseCache(cache), pytest.raises(InputError, match="another process writes"):
        EndpointTeacher(config_of(server), cache).responses(ROWS)
    assert not server.asked
    first = EndpointTeacher(config_of(server), cache)
    first.responses(ROWS[:2])
    EndpointTeacher(config_of(server), cache).responses(ROWS[2:4])
    first.responses(ROWS)  # reads what the other one added
    assert server.times_asked() == dict.fromkeys((row.instruction for row in ROWS), 1)
    cache.unlink()
    first.responses(ROWS[:1])  # a new file in the place of the old one
    assert len(server.asked) == 7


def test_texts_of_all_kinds_come_back_as_they_were(server, tmp_path):
    odd = ["", "a\u2028b\x85c\nd", "\ud83d", "é\0", '"}\n{"key": "', None]
    reasons = ["stop", "length", None] * 2

    def answer(asked):
        index = int(prompt_of(asked)[4])
        return Reply(completion(odd[index], reasons[index], usage=None))

    server.answer = answer
    found = [EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS) for _ in range(2)]
    assert texts(found[0]) == [[text or ""] for text in odd]
    assert found[0] == found[1]
    assert [own[0].finish_reason for own in found[0]] == ["stop", "length", "unknown"] * 2
    assert [own[0].finished for own in found[0]] == [True, False, False] * 2
    assert len(server.asked) == 6


def test_inside_a_running_loop_as_in_a_notebook(server, tmp_path):
    async def cell():
        return EndpointTeacher(config_of(server), tmp_path / "c").responses(ROWS)

    assert len(asyncio.run(cell())) == 6


def test_without_the_client_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'gakd\[api\]'"):
        EndpointTeacher(EndpointConfig("http://127.0.0.1/v1", "m"), tmp_path / "c")


def test_records_read_back_as_rows(tmp_path):
    history = (said("system", "Be short."),)
    rows = [Row("Why?", "now", ("r",)), Row("Well?", "", ("r",), history), Row("And?")]
    responses = [
        [Response("Because.", "stop"), Response("So.", "stop")],
        [Response("We", "length")],
        [Response(" ", "stop")],
    ]
    records = response_records(rows, responses)
    for split in ("train", "valid", "test"):  # else rows of the one were held out for the others
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    read = [row._replace(where="") for row in load_rows(str(tmp_path), "train")]
    cut = Row("Well?", "", ("We",), history, finished=False)
    assert read == [Row("Why?", "now", ("Because.",)), Row("Why?", "now", ("So.",)), cut]
    assert [record["finished"] for record in records] == [True, True, False]
    assert response_records(rows, responses, drop_unfinished=True) == records[:2]
    with pytest.raises(ValueError, match="argument 2"):
        response_records(rows, responses[:2])


def test_the_python_of_the_page_runs(server, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "black-box.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert "http://localhost:8000/v1" in code
    assert '"dolly"' in code
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/train.jsonl").write_text('{"instruction": "Why?", "output": "So."}\n')
    names = {}
    exec(code.replace("http://localhost:8000/v1", server.url).replace('"dolly"', '"data"'), names)
    assert names["records"] == [{"instruction": "Why?", "input": "", "output": "You said: Why?", "finished": True}] * 2
    assert len(lines(Path("responses.jsonl"))) == 2


def test_a_killed_run_asks_for_nothing_twice(server, tmp_path):
    server.answer = lambda asked: echo(asked)._replace(wait=0.05)
    cache, rows = tmp_path / "cache.jsonl", [Row(f"Say {number}.") for number in range(40)]
    code = (
        "import sys; from gakd.data import Row; from gakd.samplers.endpoint import *\n"
        "assert not {'openai', 'matplotlib', 'datasets'} & set(sys.modules), 'imported before they are needed'\n"
        f"config = EndpointConfig({server.url!r}, 'm', concurrency=4, timeout=5.0)\n"
        "EndpointTeacher(config, sys.argv[1]).responses([Row(f'Say {number}.') for number in range(40)])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(cache)], stdout=subprocess.DEVNULL)
    while not cache.exists() or cache.read_bytes().count(b"\n") < 8:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    kept = {record["text"].removeprefix("You said: ") for record in lines(cache)}
    assert 8 <= len(kept) < 40
    lost = set(server.times_asked()) - kept
    assert len(lost) <= 4, "no more than were under way"
    found = EndpointTeacher(config_of(server), cache).responses(rows)
    assert texts(found) == [[f"You said: Say {number}."] for number in range(40)]
    assert server.times_asked() == {row.instruction: 2 if row.instruction in lost else 1 for row in rows}
    assert len(lines(cache)) == 40


def test_tools_and_switches_of_a_row_are_asked_with(server, tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    tool = {"type": "function", "function": {"name": "add"}}
    row = Row(
        "And now?", history=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}),
        between=({"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "4"}),
        tools=(tool,), template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    EndpointTeacher(config_of(server), tmp_path / "c").responses([row, row._replace(tools=())])
    asked = next(body for body in server.asked if "tools" in body)
    assert len(server.asked) == 2, "other tools are another question"
    assert asked["tools"] == [tool]
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert not any("weight" in message for message in asked["messages"])
    assert asked["messages"][3]["tool_calls"][0]["function"]["arguments"] == '{"a": 2}'
