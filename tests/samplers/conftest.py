"""A server that speaks OpenAI's chat API, for the tests that ask one."""

from __future__ import annotations

import pytest

from gakd.samplers import endpoint
from tests.chat_server import ChatServer, serving


@pytest.fixture
def environment(request, monkeypatch):
    """The module's key, and no patience between tries."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", request.module.KEY)
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.01)


@pytest.fixture
def server():
    with serving(ChatServer()) as server:
        yield server
