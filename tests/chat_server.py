"""A chat server that fails as it is told to, and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What is sent back after `wait` seconds: `cut` bytes at most, each `pause` seconds after the last; a reset drops the
    connection there. Without an end, the body comes again and again until the client has gone."""

    body: str | bytes = ""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    wait: float = 0.0
    cut: int | None = None
    pause: float = 0.0
    reset: bool = False
    endless: bool = False


def completion(text: str | None, finish_reason: str | None = "stop", **changes: Any) -> str:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        | changes
    )


def prompt_of(asked: dict[str, Any]) -> str:
    return asked["messages"][-1]["content"]


def echo(asked: dict[str, Any]) -> Reply:
    return Reply(completion(f"You said: {prompt_of(asked)}"))


class ChatServer:
    """`asked` holds the bodies of all requests, `keys` their authorization, `most_at_once` the most under way."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply] = echo) -> None:
        self.answer = answer
        self.script: list[Reply] = []
        """Replies to the next requests; `answer` takes over after them."""
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.most_at_once = 0
        self._at_once, self._lock = 0, threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def times_asked(self) -> Counter[str]:
        return Counter(map(prompt_of, self.asked))

    def start(self) -> None:
        server, outer = _Server(("127.0.0.1", self.port), _handler(self)), self
        outer._server, outer.port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def reply(self, path: str, key: str, asked: dict[str, Any]) -> Reply:
        with self._lock:
            self.asked.append(asked)
            self.keys.append(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            scripted = self.script.pop(0) if self.script else None
        try:
            reply = scripted or (self.answer(asked) if path == "/v1/chat/completions" else Reply("{}", 404))
            time.sleep(reply.wait)
        finally:
            with self._lock:
                self._at_once -= 1
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that gave up


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reply = server.reply(self.path, self.headers.get("authorization", ""), asked)
            body = reply.body.encode() if isinstance(reply.body, str) else reply.body
            self.send_response(reply.status)
            for name, value in {"content-type": "application/json", **dict(reply.headers)}.items():
                self.send_header(name, value)
            if not reply.endless:
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            while reply.endless:
                self.wfile.write(body)
            for part in [body[: reply.cut]] if not reply.pause else [bytes([value]) for value in body]:
                self.wfile.write(part)
                time.sleep(reply.pause)
            if reply.reset:  # not an orderly end but a reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if reply.reset or reply.cut is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def serving(server: ChatServer) -> Iterator[ChatServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()
