"""A black-box teacher against a real server, `transformers serve`, which is killed in the middle and comes back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from gakd.data import Row
from gakd.data.examples import encode_prompts
from gakd.models import load_model, load_tokenizer, resolve
from gakd.samplers import EndpointConfig, EndpointTeacher, Sampling, decode, generate
from tests import tiny


class TransformersServer:
    """`transformers serve` of a model's folder, on a port of its own on loopback; `log` is what it says."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(self.folder),
            "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu", "--dtype", "float32",
        ]  # fmt: skip
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait_until_it_answers(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + 120
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            try:
                opener.open(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def answered(self) -> int:
        return self.log.read_text().count('POST /v1/chat/completions HTTP/1.1" 200')


@pytest.fixture(params=["tiny", pytest.param("SmolLM2-135M-Instruct", marks=pytest.mark.slow)])
def folder(request, tmp_path) -> Path:
    if request.param == "tiny":
        return tiny.save(tmp_path / "tiny", tiny.model(tied=False, scale=4.0), tiny.tokenizer())
    return Path(resolve(request.param))


def test_a_server_that_is_killed_in_the_middle_and_returns(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    words = [
        "red",
        "cold",
        "the sea",
        "a long road",
        "Rome",
        "bread",
        "seven",
        "music",
        "rain",
        "iron",
        "a horse",
        "sleep",
    ]
    rows = [Row(f"Write a sentence about {word}.", where=f"rows.jsonl:{line}") for line, word in enumerate(words, 1)]
    cache, server = tmp_path / "cache.jsonl", TransformersServer(folder, tmp_path / "server.log")
    config = EndpointConfig(
        f"http://127.0.0.1:{server.port}/v1", str(folder), temperature=0.0, max_new_tokens=24, concurrency=2, timeout=120,
        extra_body='{"chat_template_kwargs": {"enable_thinking": false}}',
    )  # fmt: skip
    at_the_kill = []

    def kill_and_return() -> None:
        while not cache.exists() or cache.read_bytes().count(b"\n") < 4:
            time.sleep(0.001)
        server.kill()
        at_the_kill.append(cache.read_bytes().count(b"\n"))
        server.start()

    try:
        server.start()
        server.wait_until_it_answers()
        killer = threading.Thread(target=kill_and_return)
        killer.start()
        teacher = EndpointTeacher(config, cache)
        found = teacher.responses(rows)
        killer.join()
    finally:
        server.kill()

    assert 4 <= at_the_kill[0] < len(rows), "it was to be killed in the middle"
    assert teacher.usage.tried_again >= 1
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == len(rows), "one response each"
    # A response may be lost on its way when the server is killed, and no other is written twice.
    assert len(rows) <= server.answered() <= len(rows) + config.concurrency
    assert EndpointTeacher(config, cache).responses(rows) == found, "all of it is on disk: no server is needed"

    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    prompts = encode_prompts(rows, tokenizer, "chat")
    expected = generate(model, tokenizer, prompts, Sampling(24, temperature=0.0), batch_size=1)
    assert [own[0].text for own in found] == decode(tokenizer, expected)
    assert [own[0].prompt_tokens for own in found] == list(map(len, prompts))
    assert [own[0].finished for own in found] == [len(response.ids) < 23 for response in expected]
    assert len({own[0].text for own in found}) > 3
