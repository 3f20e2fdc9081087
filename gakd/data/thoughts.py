"""A response's thought: in `reasoning_content`, or within <think> and </think> at the beginning of its text."""

from __future__ import annotations

import re
from typing import Literal

from gakd.data.rows import Message

Thinking = Literal["auto", "on", "off"]

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_OPENED = re.compile(r"<think>\s*\Z")
_TRAILING = re.compile(r"<think>\s*(</think>\s*)?\Z")


def has_thought(answer: Message) -> bool:
    """Whether a response thinks; an empty thought is none."""
    if answer.get("reasoning_content"):
        return True
    found = _THOUGHT.match(answer.get("content") or "")
    return found is not None and bool(found[1].strip())


def as_fields(answer: Message) -> Message:
    """The response with its thought in `reasoning_content` and apart from its text."""
    found = _THOUGHT.match(answer.get("content") or "")
    if answer.get("reasoning_content") or found is None:
        return answer
    return answer | {"reasoning_content": found[1].strip("\n"), "content": found[2].lstrip("\n")}


def as_content(fields: Message, is_opened: bool) -> str:
    """Thought and text as a model writes them, behind a prompt that has opened the thought or not."""
    begin = "" if is_opened else "<think>\n"
    return f"{begin}{fields['reasoning_content'].strip()}\n</think>\n\n{(fields.get('content') or '').lstrip()}"


def without_thought(answer: Message) -> Message:
    fields = as_fields(answer)
    return {name: value for name, value in fields.items() if name != "reasoning_content"}


def opened(prompt: str) -> bool:
    """Whether a prompt ends in a thought that it opens."""
    return _OPENED.search(prompt[-40:]) is not None


def without_trailing_thought(prompt: str) -> str:
    """A prompt without the thought, opened or empty, that a generation prompt ends in."""
    return _TRAILING.sub("", prompt)
